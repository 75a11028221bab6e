"""The registry of backends, one row for each way to evaluate an ensemble. Needs no torch.

To add a backend that runs an exported file:

1. Write `atomsieve/export/to_<name>.py` with the functions `write` and `open_session` of
   `atomsieve.export.spec.ExportFormat`.
2. Add a row to `BACKENDS` that names it.

Everything else takes the row: `atomsieve export --format <name>` makes the artefact and checks it against FP64, the
manifest records it, `--backend <name>` of screening, relaxation and serving selects it, and `--backend auto` takes it
where it was measured fastest. A backend that does not run such files gives `opener` a module of its own in
`atomsieve/predict/backends/`, with a function `open_backend` like that of `atomsieve.predict.backends.exported`.
"""

from __future__ import annotations

from dataclasses import dataclass

from atomsieve.errors import unknown


@dataclass(frozen=True)
class BackendSpec:
    """One backend.

    Attributes
    ----------
    name : value of `--backend` and, of an exported one, of `--format`.
    opener : module whose `open_backend` opens it.
    writer : module that writes and opens its files; None for a backend that needs no export.
    served_as : value of `--backend` of `atomsieve serve`.
    holds_code : its files are programs, so those of a stranger are opened only after `atomsieve export --trust`.
    arrays : arrays `[K,N,W,F]` (members, atoms, places of the neighbour table, features) that an artefact holds at its
        peak, measured for PaiNN by `benchmarks/speed/backends.py`; sizes the batches given to it.
    """

    name: str
    opener: str
    writer: str | None = None
    served_as: str = ""
    holds_code: bool = True
    arrays: int = 60


_EXPORTED = "atomsieve.predict.backends.exported"

BACKENDS: dict[str, BackendSpec] = {
    spec.name: spec
    for spec in (
        BackendSpec("native", "atomsieve.predict.backends.native", served_as="python"),
        BackendSpec("onnx", _EXPORTED, "atomsieve.export.to_onnx", served_as="onnx", holds_code=False, arrays=60),
        BackendSpec(
            "torchscript",
            _EXPORTED,
            "atomsieve.export.to_torchscript",
            served_as="libtorch",
            arrays=30,
        ),
        BackendSpec("pt2", _EXPORTED, "atomsieve.export.to_pt2", served_as="pt2", arrays=6),
    )
}
"""All backends by name, the reference first."""

FORMATS = tuple(name for name, spec in BACKENDS.items() if spec.writer is not None)
"""Backends that run an exported artefact, whose format has the same name."""

AUTO = "auto"
"""Stands for the fastest backend that was checked on this machine."""

BACKEND_CHOICES = (*BACKENDS, AUTO)
"""Values of `--backend`."""

SERVED_BACKENDS = {spec.served_as: name for name, spec in BACKENDS.items()}
"""Backends by their names in `atomsieve serve`."""


def check_backend(name: str) -> None:
    """Raise UsageError, with the nearest name, unless `name` is a backend or "auto"."""
    if name not in BACKEND_CHOICES:
        raise unknown("backend", name, BACKEND_CHOICES)


def holds_code(format_: str) -> bool:
    """Return whether the files of a format are programs; those of an unknown format count as such."""
    return format_ not in BACKENDS or BACKENDS[format_].holds_code


def check_format(name: str) -> None:
    """Raise UsageError, with the nearest name, unless `name` is a format of exports."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
