"""Models that take graphs, in a model repository: the exported artefact, and a pipeline that feeds it raw structures.

Beside a model `gfm` stand `gfm_graph` (the artefact), `gfm_prepare`, `gfm_finish`, and `gfm_pipeline`: an ensemble of
the three in Triton's sense, with inputs and outputs of `gfm`. None of them gathers requests: a graph is already as
large as is good.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.export.interface import Slot
from atomsieve.gfm import ExportEntry, Manifest, read_manifest
from atomsieve.gfm.exports import FOLDER, check_export
from atomsieve.gfm.folder import MANIFEST
from atomsieve.remote.wire import INPUTS, OUTPUTS, TRITON_TYPES, Tensor
from atomsieve.serve.model.settings import GFM, GRAPH_FILE
from atomsieve.serve.repository.config import ALL_VERSIONS, message, texts
from atomsieve.serve.repository.write import CONFIG, Served, agreed, facts, other_versions

if TYPE_CHECKING:
    import torch

    from atomsieve.predict import Predictor
    from atomsieve.serve.server.process import Installation

BACKENDS = {"onnx": ("onnxruntime", "model.onnx"), "torchscript": ("pytorch", "model.pt")}
"""By backend of the predictor: Triton's own backend for the format, and what it calls the file. `pt2` has none."""
WARMUP = "warmup"
"""Folder that Triton reads the tensors of a first request from."""
MODEL = '''"""Served by AtomSieve: everything is in the package, which must be installed where the server runs."""

from atomsieve.serve.graph.model import {name} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def native(graph_backend: str, backend: str, server: Installation | None) -> bool:
    """Say whether Triton's own backend runs the artefact.

    graph_backend : auto, triton or python; auto takes Triton's own if `server` has it. backend : of the predictor.
    """
    if graph_backend == "auto":
        return server is not None and server.has_backend(BACKENDS[backend][0])
    return graph_backend == "triton"


def made(
    work: Path,
    repository: Path,
    served: Served,
    predictor: Predictor,
    gfm: Path,
    group: Mapping[str, Any],
    *,
    version: int,
    native: bool,
) -> list[tuple[Path, str]]:
    """Make the four models beside one in the scratch folder `work`; return folder, to be `placed`, and name of each.

    predictor : of the served model. gfm : its ensemble folder in `work`, of which files are shared where the file
    system can. group : where copies run. native : Triton's own backend runs the artefact, not a Python model.

    Raises
    ------
    AtomSieveError
        if the artefact is damaged, or another version of a model takes or gives something else.
    """
    from atomsieve.predict.backends.select import choose_device, export_entry

    settings, manifest = served.settings, read_manifest(gfm)
    device = choose_device(settings.device if settings.device != "cuda" else "auto")
    entry = export_entry(gfm, manifest, settings.backend, settings.precision, device)
    first = first_request(gfm, manifest, entry, predictor, device)
    configs = configurations(served, predictor, manifest, entry, first, group, version, native)
    found = []
    for part, config in configs.items():
        name = f"{served.name}_{part}"
        new, folder = work / name / "model", work / name / "model" / str(version)
        folder.mkdir(parents=True)
        if part == "graph":
            _graph_files(new, folder, gfm, entry, first, native)
        elif part != "pipeline":
            shutil.copytree(gfm, folder / GFM, copy_function=_shared)
        if part != "pipeline" and not (part == "graph" and native):
            (folder / "model.py").write_text(MODEL.format(name=f"{part.capitalize()}Model"))
            (folder / GRAPH_FILE).write_text(settings.model_dump_json(indent=1) + "\n")
        others = other_versions(repository / name, version)
        text = message(config)
        alone = part == "pipeline"  # its steps name one version
        (new / CONFIG).write_text(agreed(repository / name, text, others) if others and not alone else text)
        found.append((new, name))
    return found


def _shared(source: str, target: str) -> None:
    """Link a file of the repository to another place in it, or copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _graph_files(
    new: Path, folder: Path, gfm: Path, entry: ExportEntry, first: Mapping[str, NDArray[Any]], native: bool
) -> None:
    """Lay out the artefact, checked, and a first request."""
    place = check_export(gfm, entry)
    if native:
        for name in entry.files:  # weights may lie in a file of their own, by whose name the model finds them
            _shared(str(place / name), str(folder / {"model.ts": "model.pt"}.get(name, name)))
    else:
        own = folder / GFM
        (own / FOLDER).mkdir(parents=True)
        _shared(str(gfm / MANIFEST), str(own / MANIFEST))
        shutil.copytree(place, own / FOLDER / entry.key, copy_function=_shared)
    (new / WARMUP).mkdir()
    for name, array in first.items():
        (new / WARMUP / name).write_bytes(array.tobytes())


def first_request(
    gfm: Path, manifest: Manifest, entry: ExportEntry, predictor: Predictor, device: torch.device
) -> dict[str, NDArray[Any]]:
    """Return the artefact's inputs for the test vector of the default head."""
    from atomsieve.export.artefact import Artefact
    from atomsieve.graphs import build_graph
    from atomsieve.remote.test_vector import structures_of

    head = manifest.default_head
    batch = structures_of(manifest.test_vector["heads"][head], manifest.config.charge_spin)
    graph = build_graph(batch, manifest.cutoff, max_neighbors=manifest.config.max_neighbors)
    return Artefact(gfm, manifest, entry, device).arrays(batch, graph, predictor.heads.index(head))


# -- configurations ------------------------------------------------------------------------------------------------


def configurations(
    served: Served,
    predictor: Predictor,
    manifest: Manifest,
    entry: ExportEntry,
    first: Mapping[str, NDArray[Any]],
    group: Mapping[str, Any],
    version: int,
    native: bool,
) -> dict[str, dict[str, Any]]:
    """Return the configurations of the four models, by part.

    first : the tensors of a first request. group : instances. version : of the steps. native : see `write`.
    """
    from atomsieve.export.artefact import digest_of
    from atomsieve.serve.pipeline import PASSED, USED, finished, slots

    taken, every = slots(entry, manifest)
    raw = [_wire(t) | {"optional": t.optional} for t in INPUTS.values()]
    answers = [_wire(OUTPUTS[n], predictor.members) for n in finished(predictor)]
    passed = [{"name": p.name, "data_type": f"TYPE_{TRITON_TYPES[p.dtype.name]}", "dims": [-1]} for p in PASSED]
    tables = [_slot(s, entry, predictor.members) for s in taken]
    network = [_slot(s, entry, predictor.members) for s in every]
    used = [t for t in network if t["name"] in USED]
    about = facts(predictor) | {"max_neighbors": manifest.config.max_neighbors, "artefact": digest_of(entry)}

    def python(part: str, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
        # what stands before and behind an artefact needs no GPU, but for the features of the domain test
        return {
            "name": f"{served.name}_{part}",
            "backend": "python",
            "max_batch_size": 0,
            "version_policy": ALL_VERSIONS,
            "input": inputs,
            "output": outputs,
            "instance_group": [dict(group)],
            "parameters": texts({"FORCE_CPU_ONLY_INPUT_TENSORS": "yes"} | about),
        }

    graph = python("graph", tables, network) | {"model_warmup": [_warmup(tables, first)]}
    if native:
        backend, file = BACKENDS[entry.format]
        threads = str(served.settings.threads or 0)
        more = {
            "onnxruntime": {"intra_op_thread_count": threads},
            # shapes change with every request, and it would optimize anew for each
            "pytorch": {"DISABLE_OPTIMIZED_EXECUTION": "true", "INFERENCE_MODE": "true"},
        }[backend]
        graph |= {"backend": backend, "default_model_filename": file, "parameters": texts(more | about)}
    return {
        "graph": graph,
        "prepare": python("prepare", raw, [t | {"name": f"graph_{t['name']}"} for t in tables] + passed),
        "finish": python("finish", [*raw, *passed, *(t | {"name": f"network_{t['name']}"} for t in used)], answers),
        "pipeline": {
            "name": f"{served.name}_pipeline",
            "platform": "ensemble",
            "max_batch_size": 0,
            "version_policy": {"latest": {"num_versions": 1}},
            "input": raw,
            "output": answers,
            "ensemble_scheduling": {"step": _steps(served.name, version, tables, used, passed, answers)},
            "parameters": texts(about),
        },
    }


def _steps(
    model: str,
    version: int,
    tables: Sequence[Mapping[str, Any]],
    used: Sequence[Mapping[str, Any]],
    passed: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the steps of the pipeline, all of one version, so that halves of two ensembles never meet."""
    raw = {name: name for name in INPUTS}
    past = {p["name"]: p["name"] for p in passed}
    steps = {
        "prepare": (raw, {f"graph_{t['name']}": f"graph_{t['name']}" for t in tables} | past),
        "graph": ({t["name"]: f"graph_{t['name']}" for t in tables}, {t["name"]: f"network_{t['name']}" for t in used}),
        "finish": (
            raw | past | {f"network_{t['name']}": f"network_{t['name']}" for t in used},
            {t["name"]: t["name"] for t in answers},
        ),
    }
    return [
        {"model_name": f"{model}_{part}", "model_version": version, "input_map": taken, "output_map": gives}
        for part, (taken, gives) in steps.items()
    ]


def _warmup(tables: Sequence[Mapping[str, Any]], first: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the setting of a first request, whose tensors lie in files of their names."""
    tensors = {
        t["name"]: {"data_type": t["data_type"], "dims": list(first[t["name"]].shape), "input_data_file": t["name"]}
        for t in tables
    }
    return {"name": "test_vector", "batch_size": 1, "inputs": tensors}


def _wire(tensor: Tensor, members: int = -1) -> dict[str, Any]:
    """Return a tensor of the wire for a model without batches, with the leading axis of length 1."""
    dims = [members if n == -1 and k == 1 and "members" in tensor.name else n for k, n in enumerate(tensor.dims)]
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": [1, *dims]}


def _slot(slot: Slot, entry: ExportEntry, members: int) -> dict[str, Any]:
    """Return an input or output of an artefact."""
    dtype = slot.dtype or np.dtype("float64" if entry.precision == "fp64" else "float32")
    fixed = {"K": members}
    dims = [fixed.get(a, -1) if isinstance(a, str) else a for a in slot.axes]
    return {"name": slot.name, "data_type": f"TYPE_{TRITON_TYPES[dtype.name]}", "dims": dims}
