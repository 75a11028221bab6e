"""Entries of exported artefacts in the manifest of a gfm/ folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from atomsieve.errors import DataError
from atomsieve.runs.hashing import hash_file

FOLDER = "exports"


class ExportEntry(BaseModel):
    """One artefact: its files, how it came to be, and how far it is from FP64.

    Attributes
    ----------
    format, precision : names of `atomsieve.gfm.backends` and `atomsieve.models.precision`.
    kind : "forces" (everything) or "energy" (energies alone).
    device : kind of device it runs on: "cpu", "cuda", or "any".
    ensemble_id : of the weights that it was made of (`weights_id`; see `same_weights`).
    files : size and sha256 of each file, by name in the artefact's folder.
    inputs, outputs : names, in order.
    versions : of the programs that wrote it; flags : opset, compile options and the like.
    machine : processor it was made and checked on.
    fidelity : errors against FP64 (see `atomsieve.export.fidelity`); speed : structures per second measured then.
    """

    model_config = ConfigDict(extra="forbid")

    format: str
    precision: str
    kind: str = "forces"
    device: str = "cpu"
    ensemble_id: str
    files: dict[str, dict[str, Any]]
    inputs: list[str]
    outputs: list[str]
    versions: dict[str, str]
    flags: dict[str, Any] = Field(default_factory=dict)
    machine: str = ""
    fidelity: dict[str, Any] = Field(default_factory=dict)
    speed: dict[str, float] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name of the artefact, and of its folder in `exports/`."""
        return export_key(self.format, self.precision, self.kind, self.device)


def export_key(format_: str, precision: str, kind: str = "forces", device: str = "cpu") -> str:
    """Return e.g. `onnx-fp32`, `pt2-bf16-cuda` or `torchscript-fp64-energy`."""
    parts = [format_, precision, *(["energy"] if kind == "energy" else []), *(["cuda"] if device == "cuda" else [])]
    return "-".join(parts)


def check_export(folder: str | Path, entry: ExportEntry, place: Path | None = None) -> Path:
    """Return the folder of an artefact (or `place`) after checking size and SHA-256 of every file.

    Raises
    ------
    DataError
        naming the file that is missing or changed, with the remedy.
    """
    place = place or Path(folder) / FOLDER / entry.key
    again = (
        f"export it again with: atomsieve export {folder} --format {entry.format} --precision {entry.precision} --force"
    )
    for name, expected in entry.files.items():
        if Path(name).name != name:
            raise DataError(
                f"{folder}: the manifest names a file outside the artefact, {name!r}; do not trust this folder"
            )
        path = place / name
        if not path.is_file():
            raise DataError(f"{path} is missing; {again}")
        if path.stat().st_size != expected.get("size") or hash_file(path) != expected.get("sha256"):
            raise DataError(f"{path} is damaged or was changed (its SHA-256 differs from the manifest's); {again}")
    return place
