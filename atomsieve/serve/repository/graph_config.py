"""The graph model of a repository: the exported artefact of `gfm`, served as `gfm_graph` on ready neighbour tables.

It does not gather requests: the client decides how large a graph is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.export.interface import Slot, inputs, outputs
from atomsieve.gfm import EnsembleManifest, ExportEntry, read_manifest
from atomsieve.gfm.exports import FOLDER, check_export
from atomsieve.gfm.manifest import MANIFEST
from atomsieve.remote.wire import TRITON_TYPES
from atomsieve.serve.model.settings import GFM, GRAPH_FILE, graph_model_name
from atomsieve.serve.repository.config import ALL_VERSIONS, config_parameters, format_message, format_parameters
from atomsieve.serve.repository.layout import CONFIG, RepositoryModel, list_other_versions, merge_config_versions

if TYPE_CHECKING:
    import torch

    from atomsieve.predict import Predictor
    from atomsieve.serve.installation import Installation

BACKENDS = {"onnx": ("onnxruntime", "model.onnx"), "torchscript": ("pytorch", "model.pt")}
"""By backend of the predictor: Triton's own backend for the format, and its name of the file. `pt2` has none."""
WARMUP = "warmup"
"""Folder that Triton reads the tensors of a first request from."""
MODEL = '''"""Served by AtomSieve: everything is in the package, which must be installed where the server runs."""

from atomsieve.serve.graph.model import GraphModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def uses_triton_backend(graph_backend: str, backend: str, server: Installation | None) -> bool:
    """Return whether Triton's own backend runs the artefact.

    graph_backend : auto, triton or python; auto takes Triton's own if `server` has it. backend : of the predictor.
    """
    if graph_backend == "auto":
        return server is not None and server.has_backend(BACKENDS[backend][0])
    return graph_backend == "triton"


def make_graph_model(
    work: Path,
    repository: Path,
    served: RepositoryModel,
    predictor: Predictor,
    gfm: Path,
    group: Mapping[str, Any],
    *,
    version: int,
    native: bool,
) -> Path:
    """Make the graph model of a served ensemble in the scratch folder `work`; return its folder, for `install_version`.

    predictor : of the served model. gfm : its ensemble folder in `work`, of which files are shared where the file
    system can. group : where copies run. native : Triton's own backend runs the artefact, not a Python model.

    Raises
    ------
    AtomSieveError
        if the artefact is damaged, or another version of the model takes or gives something else.
    """
    from atomsieve.devices import choose_device
    from atomsieve.predict.backends.exported import export_entry

    settings, manifest = served.settings, read_manifest(gfm)
    device = choose_device(settings.device if settings.device != "cuda" else "auto")
    entry = export_entry(gfm, manifest, settings.backend, settings.precision, device)
    first = make_warmup_request(gfm, manifest, entry, predictor, device)
    name = graph_model_name(served.name)
    new, folder = work / name / "model", work / name / "model" / str(version)
    folder.mkdir(parents=True)
    _graph_files(new, folder, gfm, entry, first, native)
    if not native:
        (folder / "model.py").write_text(MODEL)
        (folder / GRAPH_FILE).write_text(settings.model_dump_json(indent=1) + "\n")
    text = format_message(graph_config(served, predictor, manifest, entry, first, group, native))
    others = list_other_versions(repository / name, version)
    (new / CONFIG).write_text(merge_config_versions(repository / name, text, others) if others else text)
    return new


def _link_or_copy(source: str, target: str) -> None:
    """Link a file of the repository to another place in it, or copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _graph_files(
    new: Path, folder: Path, gfm: Path, entry: ExportEntry, first: Mapping[str, NDArray[Any]], native: bool
) -> None:
    """Write the checked artefact and the tensors of a warm-up request."""
    place = check_export(gfm, entry)
    if native:
        for name in entry.files:  # weights may lie in a file of their own, by whose name the model finds them
            _link_or_copy(str(place / name), str(folder / {"model.ts": "model.pt"}.get(name, name)))
    else:
        own = folder / GFM
        (own / FOLDER).mkdir(parents=True)
        _link_or_copy(str(gfm / MANIFEST), str(own / MANIFEST))
        shutil.copytree(place, own / FOLDER / entry.key, copy_function=_link_or_copy)
    (new / WARMUP).mkdir()
    for name, array in first.items():
        (new / WARMUP / name).write_bytes(array.tobytes())


def make_warmup_request(
    gfm: Path, manifest: EnsembleManifest, entry: ExportEntry, predictor: Predictor, device: torch.device
) -> dict[str, NDArray[Any]]:
    """Return the artefact's inputs for the test vector of the default head."""
    from atomsieve.export.artefact import Artefact
    from atomsieve.graphs import build_graph
    from atomsieve.remote.test_vector import parse_structures

    head = manifest.default_head
    batch = parse_structures(manifest.test_vector["heads"][head], manifest.config.charge_spin)
    graph = build_graph(batch, manifest.cutoff, max_neighbors=manifest.config.max_neighbors)
    return Artefact(gfm, manifest, entry, device).arrays(batch, graph, predictor.heads.index(head))


# -- configuration -------------------------------------------------------------------------------------------------


def artefact_slots(entry: ExportEntry, manifest: EnsembleManifest) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """Return inputs and outputs of an artefact."""
    taken = inputs(charge_spin=manifest.config.charge_spin, truncated="reverse" in entry.inputs)
    every = outputs(
        entry.kind,
        conservative="virial" in entry.outputs,
        members="forces_members" in entry.outputs,
        shallow=manifest.kind == "shallow",
    )
    return taken, tuple(s for s in every if s.name in entry.outputs)


def graph_config(
    served: RepositoryModel,
    predictor: Predictor,
    manifest: EnsembleManifest,
    entry: ExportEntry,
    first: Mapping[str, NDArray[Any]],
    group: Mapping[str, Any],
    native: bool,
) -> dict[str, Any]:
    """Return the configuration of the graph model of a served ensemble.

    first : tensors of the warm-up request. group : where copies run. native : as of `make_graph_model`.
    """
    from atomsieve.export.artefact import digest_of

    taken, given = ([_slot(s, entry, predictor.members) for s in slots] for slots in artefact_slots(entry, manifest))
    about = config_parameters(predictor) | {
        "max_neighbors": manifest.config.max_neighbors,
        "artefact": digest_of(entry),
    }
    config = {
        "name": graph_model_name(served.name),
        "backend": "python",
        "max_batch_size": 0,
        "version_policy": ALL_VERSIONS,
        "input": taken,
        "output": given,
        "instance_group": [dict(group)],
        "parameters": format_parameters({"FORCE_CPU_ONLY_INPUT_TENSORS": "yes"} | about),
        "model_warmup": [_warmup(taken, first)],
    }
    if not native:
        return config
    backend, file = BACKENDS[entry.format]
    threads = str(served.settings.threads or 0)
    more = {
        "onnxruntime": {"intra_op_thread_count": threads},
        # shapes change with every request, and it would optimize again for each
        "pytorch": {"DISABLE_OPTIMIZED_EXECUTION": "true", "INFERENCE_MODE": "true"},
    }[backend]
    return config | {"backend": backend, "default_model_filename": file, "parameters": format_parameters(more | about)}


def _warmup(tables: Sequence[Mapping[str, Any]], first: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the setting of a warm-up request, whose tensors lie in files of their names."""
    tensors = {
        t["name"]: {"data_type": t["data_type"], "dims": list(first[t["name"]].shape), "input_data_file": t["name"]}
        for t in tables
    }
    return {"name": "test_vector", "batch_size": 1, "inputs": tensors}


def _slot(slot: Slot, entry: ExportEntry, members: int) -> dict[str, Any]:
    """Return an input or output of an artefact."""
    dtype = slot.dtype or np.dtype("float64" if entry.precision == "fp64" else "float32")
    fixed = {"K": members}
    dims = [fixed.get(a, -1) if isinstance(a, str) else a for a in slot.axes]
    return {"name": slot.name, "data_type": f"TYPE_{TRITON_TYPES[dtype.name]}", "dims": dims}
