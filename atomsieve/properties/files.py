"""The folder of a calculation of properties.

properties.json    settings, units, and all that was found for each structure: tensors, curves, frequencies
properties.csv     one line for each structure, in the order of the selection
structures.extxyz  the structures for which properties were computed (relaxed), with their numbers
settings.json      input, ensemble, options, selection: what a continued calculation must agree with
kept/NNNNN.json    what was found for one structure, by its rank
converted/         the input as a dataset, where it was another file
lock.json          while it is active
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.properties.columns import list_columns
from atomsieve.runs.output_files import atomic_draft, disk_errors
from atomsieve.runs.output_folder import RecordedFolder, write_output

FORMAT = 1


@dataclass(frozen=True)
class PropertiesFolder(RecordedFolder):
    """Names inside a folder of properties."""

    contents = "properties"
    record_name = "settings.json"
    version = FORMAT
    compared = ("input", "ensemble", "options", "batches", "selection")

    table = property(lambda self: self.path / "properties.csv")
    whole = property(lambda self: self.path / "properties.json")
    structures = property(lambda self: self.path / "structures.extxyz")
    kept = property(lambda self: self.path / "kept")

    def of_rank(self, rank: int) -> Path:
        """Return the file of one structure."""
        return Path(self.kept / f"{rank:05d}.json")

    def list_files(self) -> list[Path]:
        """Return the files of a calculation, the record last."""
        return [self.table, self.whole, self.structures, self.record]

    def list_folders(self) -> list[Path]:
        """Return the folders of a calculation."""
        return [self.kept]

    def list_own_names(self) -> set[str]:
        """Return its names, that of the converted input included."""
        return super().list_own_names() | {"converted"}

    def settle(self, wanted: dict[str, Any], *, overwrite: bool) -> None:
        """Begin a calculation, or continue the one in the folder.

        Raises
        ------
        AtomSieveError
            if an earlier one had other settings: the message names every difference.
        """
        left = [p for p in (*self.list_folders(), *self.list_files()) if p.exists()]
        self.begin_or_continue(wanted, left, overwrite=overwrite)
        with disk_errors(self.path):
            self.kept.mkdir(exist_ok=True)


def keep(folder: PropertiesFolder, rank: int, found: Mapping[str, Any]) -> None:
    """Write what was found for one structure."""
    write_output(folder.of_rank(rank), (json.dumps(_plain(found), allow_nan=False) + "\n").encode())


def read_kept(folder: PropertiesFolder, rank: int) -> dict[str, Any] | None:
    """Return what was found for one structure; None if it is missing or damaged."""
    try:
        found = json.loads(folder.of_rank(rank).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "values" in found else None


def publish(folder: PropertiesFolder, settings: Mapping[str, Any], found: list[dict[str, Any]]) -> None:
    """Write the three files of all structures; the table last: it marks the result as complete."""
    from ase import Atoms
    from ase.io.extxyz import write_extxyz

    columns = list_columns(settings["options"]["what"])
    images = []
    for one in found:
        geometry = one["structure"]
        atoms = Atoms(geometry["numbers"], geometry["positions"], cell=geometry["cell"], pbc=geometry["pbc"])
        atoms.info |= {k: v for k, v in one["values"].items() if v is not None and v != ""}
        images.append(atoms)
    whole = {
        "settings": settings,
        "columns": {name: {"unit": unit, "doc": doc} for name, (unit, doc) in columns.items()},
        "structures": found,
    }
    with (
        disk_errors(folder.path),
        atomic_draft(folder.table, durable=False) as table_draft,
        atomic_draft(folder.structures, durable=False) as structures_draft,
        atomic_draft(folder.whole, durable=False) as whole_draft,
        open(table_draft, "w", newline="") as file,
        open(structures_draft, "w") as frames,
    ):
        whole_draft.write_text(json.dumps(_plain(whole), indent=1) + "\n")
        write_extxyz(frames, images)
        table = csv.writer(file, lineterminator="\n")
        table.writerow([f"{name} [{unit}]" if unit else name for name, (unit, _) in columns.items()])
        table.writerows([format_cell(one["values"].get(name)) for name in columns] for one in found)


def format_cell(value: Any) -> str:
    """Return a value as the text of a table; what is not known is empty."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return nested plain data with null in place of numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
