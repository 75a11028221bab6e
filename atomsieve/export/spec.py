"""The specification of an artefact, and the interface of a format's module."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from atomsieve.export.functional import Functional, needs_reverse
from atomsieve.export.interface import inputs, outputs
from atomsieve.gfm import ExportEntry
from atomsieve.gfm.backends import BACKENDS, check_format
from atomsieve.gfm.exports import export_key
from atomsieve.models import Ensemble
from atomsieve.models.precision import check_precision
from atomsieve.runs.hashing import hash_file


@dataclass(frozen=True)
class Spec:
    """One artefact to be made.

    Attributes
    ----------
    format : onnx, torchscript or pt2; precision : fp64, fp32 or bf16.
    kind : "forces" or "energy"; members : give the forces of each member too.
    device : kind of device it is made for, "cpu" or "cuda".
    default_head : of the ensemble's folder; stored in the file by formats that can hold it.
    """

    format: str
    precision: str
    kind: str = "forces"
    members: bool = False
    device: str = "cpu"
    default_head: str | None = None

    def __post_init__(self) -> None:
        check_format(self.format)
        check_precision(self.precision)

    @property
    def key(self) -> str:
        """Name of the artefact."""
        return export_key(self.format, self.precision, self.kind, self.device)

    def functional(
        self, ensemble: Ensemble, *, inline: bool = False, moments: bool = False, low_precision_products: bool = False
    ) -> Functional:
        """Return the ensemble as the function that is to be lowered."""
        return Functional(
            ensemble,
            precision=self.precision,
            kind=self.kind,
            members=self.members,
            inline=inline,
            moments=moments,
            low_precision_products=low_precision_products,
            device=torch.device(self.device),
        )


@dataclass(frozen=True)
class WrittenFormat:
    """Facts on written files: versions of the programs that wrote them, and flags (opset, options)."""

    versions: dict[str, str]
    flags: dict[str, Any]


def entry_of(ensemble: Ensemble, spec: Spec, place: Path, ensemble_id: str, written: WrittenFormat) -> ExportEntry:
    """Return the manifest entry of the artefact whose files lie in `place`, still without errors and speed."""
    config = ensemble.config
    taken = inputs(charge_spin=config.charge_spin, truncated=needs_reverse(ensemble))
    given = outputs(
        spec.kind, conservative=config.forces == "conservative", members=spec.members, shallow=ensemble.shallow
    )
    return ExportEntry(
        format=spec.format,
        precision=spec.precision,
        kind=spec.kind,
        device=spec.device,
        ensemble_id=ensemble_id,
        files={p.name: {"size": p.stat().st_size, "sha256": hash_file(p)} for p in sorted(place.iterdir())},
        inputs=[s.name for s in taken],
        outputs=[s.name for s in given],
        versions=written.versions,
        flags=written.flags,
        machine=describe_processor(),
    )


class Session(Protocol):
    """An opened artefact: takes checked, contiguous arrays by name and gives outputs by name."""

    def __call__(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Evaluate one batch."""


class ExportFormat(Protocol):
    """The functions of a format's module, `atomsieve.export.to_<format>`; see `atomsieve.gfm.backends`."""

    def write(self, ensemble: Ensemble, spec: Spec, folder: Path, ensemble_id: str) -> WrittenFormat:
        """Write the files of an artefact into an empty folder."""

    def open_session(self, folder: Path, entry: ExportEntry, device: torch.device) -> Session:
        """Open the files of an artefact, already checked; raise AtomSieveError if this machine cannot run them."""


def import_format(name: str) -> ExportFormat:
    """Import the module of a format."""
    check_format(name)
    writer = BACKENDS[name].writer
    assert writer is not None
    module: Any = importlib.import_module(writer)
    return module


def describe_processor() -> str:
    """Return the name of the processor that this program runs on, with its vector extension."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        model = platform.processor() or model
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"
