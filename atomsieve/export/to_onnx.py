"""ONNX: one file of standard operators that any ONNX runtime can run, and its session in onnxruntime.

Its `metadata_props` hold everything that is needed to call the file: see `_metadata`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError, require
from atomsieve.export.functional import Functional
from atomsieve.export.onnx_graph import finish, prepare, store_low_precision, tidy
from atomsieve.export.spec import Session, Spec, WrittenFormat
from atomsieve.export.trace import dynamic_shapes, example_inputs, silence_torch, trace
from atomsieve.gfm import ExportEntry
from atomsieve.models import Ensemble

OPSET = 18
INTERFACE = 1
"""Version of names, shapes and meaning of inputs and outputs, as written into the file."""
OLDEST = (1, 20)
"""The oldest onnxruntime that artefacts are run with."""
FILE = "model.onnx"
DATA = "model.onnx.data"
_LARGEST_SINGLE = 256 << 20  # bytes of weights; with more, they go to a file of their own
_BF16 = "weights stored in BF16, multiplied in FP32"


def write(ensemble: Ensemble, spec: Spec, folder: Path, ensemble_id: str) -> WrittenFormat:
    """Write `model.onnx` (and `model.onnx.data` for large ensembles); the same ensemble gives the same bytes.

    Raises
    ------
    AtomSieveError
        if packages are missing, or the graph cannot be expressed exactly and safely in standard operators.
    """
    onnx = require("onnx", "export", "export to ONNX")
    onnxscript = require("onnxscript", "export", "export to ONNX")
    # The file is the same for all devices, so it can be written on any.
    functional = dataclasses.replace(spec, device="cpu").functional(ensemble, moments=True)
    model = finish(tidy(_convert(functional)), functional.inputs, functional.outputs, {"K": ensemble.members})
    facts = _metadata(ensemble, spec, ensemble_id)
    onnx.helper.set_model_props(model, dict(sorted(facts.items())))
    flags: dict[str, Any] = {"opset": OPSET, "operators": len(model.graph.node)}
    if spec.precision == "bf16":
        store_low_precision(model)
        flags["bf16"] = _BF16
    path = folder / FILE
    large = sum(len(t.raw_data) for t in model.graph.initializer) > _LARGEST_SINGLE
    if large:
        flags["external_data"] = DATA
        onnx.save_model(model, str(path), save_as_external_data=True, location=DATA, size_threshold=1024)
    else:
        onnx.save_model(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    return WrittenFormat(versions, flags)


def _metadata(ensemble: Ensemble, spec: Spec, ensemble_id: str) -> dict[str, str]:
    """Return the metadata of the file; values are texts, lists are JSON."""
    config, heads = ensemble.config, [h.name for h in ensemble.heads]
    # With several heads and no default, no head is the obvious one: the user must choose.
    default = spec.default_head or (heads[0] if len(heads) == 1 else "")
    return {
        "ensemble_id": ensemble_id,
        "interface": str(INTERFACE),
        "precision": spec.precision,
        "kind": spec.kind,
        "cutoff": repr(config.cutoff),
        "max_neighbors": json.dumps(config.max_neighbors),
        "heads": json.dumps(heads),
        "default_head": default,
    }


@contextlib.contextmanager
def _silence_converter() -> Iterator[None]:
    """Hide the converter's log messages and warnings from the user; its errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with silence_torch(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _convert(functional: Functional) -> Any:
    """Return the ensemble as an `onnx_ir.Model`."""
    graph = prepare(trace(functional, core=True))
    try:
        return _run_converter(graph, functional, decomposed=True)
    except torch.onnx.OnnxExporterError:
        # An encoder with operations that the converter does not know: let it take them apart (three times slower).
        return _run_converter(graph, functional, decomposed=False)


def _run_converter(graph: torch.fx.GraphModule, functional: Functional, *, decomposed: bool) -> Any:
    with _silence_converter():
        shapes = dynamic_shapes(functional.inputs)
        program = torch.export.export(graph, example_inputs(functional), dynamic_shapes=shapes, strict=False)
        if decomposed:
            # The graph holds core operations already; taking it apart again costs more than everything else together.
            vars(program)["run_decompositions"] = lambda *_: program
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[s.name for s in functional.inputs],
            output_names=[s.name for s in functional.outputs],
            opset_version=OPSET,
            optimize=False,  # its rules compare constants within 1e-8, and drop small numbers that are meant
            verbose=False,
        )
    assert converted is not None
    return converted.model


def open_session(folder: Path, entry: ExportEntry, device: torch.device) -> Session:
    """Open `model.onnx` in onnxruntime with as many threads as torch uses.

    Raises
    ------
    AtomSieveError
        if onnxruntime is missing, too old, or has no provider for the device.
    DataError
        if the file is no model, or that of another ensemble.
    """
    runtime = require("onnxruntime", "export", "running ONNX artefacts")
    found = tuple(int(part) for part in runtime.__version__.split(".")[:2])
    if found < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise AtomSieveError(
            f"onnxruntime {runtime.__version__} is too old: at least {oldest} is needed; "
            f"pip install 'onnxruntime>={oldest}'"
        )
    path = folder / FILE
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which are raised too
    try:
        session = runtime.InferenceSession(str(path), options, providers=_providers(runtime, device))
    except Exception as error:  # onnxruntime's errors have no common class of their own
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: onnxruntime {runtime.__version__} cannot open it ({reason}); export it again"
        ) from error
    _check_identity(session, path, entry)
    names = [o.name for o in session.get_outputs()]

    def call(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(names, arrays), strict=True))

    return call


def _providers(runtime: Any, device: torch.device) -> list[Any]:
    cpu = "CPUExecutionProvider"
    if device.type == "cpu":
        return [cpu]
    wanted = {"cuda": "CUDAExecutionProvider"}.get(device.type)
    available = runtime.get_available_providers()
    if wanted not in available:
        raise AtomSieveError(
            f"onnxruntime {runtime.__version__} cannot run on {device.type}; it has {', '.join(available)}: "
            "use --device cpu, or pip install onnxruntime-gpu in place of onnxruntime"
        )
    # TF32 keeps 10 bits of products; FP32 artefacts are checked against FP64 to much more.
    return [(wanted, {"device_id": str(device.index or 0), "use_tf32": "0"}), cpu]


def _check_identity(session: Any, path: Path, entry: ExportEntry) -> None:
    facts = session.get_modelmeta().custom_metadata_map
    for name, here, listed in (
        ("ensemble_id", facts.get("ensemble_id"), entry.ensemble_id),
        ("interface", facts.get("interface"), str(INTERFACE)),
        ("precision", facts.get("precision"), entry.precision),
        ("kind", facts.get("kind"), entry.kind),
        ("inputs", [i.name for i in session.get_inputs()], entry.inputs),
        ("outputs", [o.name for o in session.get_outputs()], entry.outputs),
    ):
        if here != listed:
            raise DataError(
                f"{path} is not what the manifest says: {name} is {here!r}, not {listed!r}; export it again"
            )
