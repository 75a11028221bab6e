"""Reads a dataset folder that `StructureWriter` wrote and verifies the bytes before their first use."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError
from atomsieve.runs.hashing import compute_file_crc, hash_file
from atomsieve.structures.carried import FILE as CARRIED
from atomsieve.structures.carried import (
    CarriedColumn,
    CarriedFile,
    Kind,
    blank_table,
    conform,
    find_carried,
    join_tables,
    missing_values,
    unify_kinds,
    values_in_kind,
)
from atomsieve.structures.dataset.bp5 import DATA_FILES, Bp5Reader
from atomsieve.structures.dataset.manifest import DatasetManifest, PartRow, load_manifest
from atomsieve.structures.dataset.reader import FileReader
from atomsieve.structures.fields import FIELDS
from atomsieve.structures.interface import PartInfo
from atomsieve.structures.source import SourceInfo

if TYPE_CHECKING:
    import pyarrow as pa


class ManifestReader(FileReader):
    """Reads a dataset folder written by `StructureWriter`; verifies every byte before its first use."""

    def __init__(self, path: Path, verify: str, copies: Path | None = None) -> None:
        manifest = load_manifest(path)
        steps = [(k, j, row) for k, part in enumerate(manifest.parts) for j, row in enumerate(part.steps)]
        wide = any(part.positions == "float64" for part in manifest.parts) or not manifest.parts
        super().__init__(
            path,
            [SourceInfo(row.name, row.level_of_theory) for row in manifest.sources],
            {name for part in manifest.parts for name in part.fields},
            np.array([row.structures for _, _, row in steps], np.int64),
            np.array([row.atoms for _, _, row in steps], np.int64),
            np.dtype(np.float64 if wide else np.float32),
            manifest.notes,
        )
        self.manifest = manifest
        self.verify = verify
        self.parts = tuple(PartInfo(part.path, part.structures) for part in manifest.parts)
        self.verification = "sizes and " + ("all checksums fit" if verify == "full" else "metadata checksums fit")
        self.copied = _find_whole_copies(manifest, copies)
        self._copies = copies
        self._steps = steps
        self._sound = np.zeros(len(steps), bool)
        self.carried = tuple(unify_kinds(columns_of_part(part) for part in manifest.parts))
        self._ends = np.cumsum([part.structures for part in manifest.parts], dtype=np.int64)
        self._carried_files: dict[int, CarriedFile] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ManifestReader, (self.path, self.verify, self._copies)

    def _folder(self, part: int) -> Path:
        """Return the folder from which a part is read: the copy where there is one."""
        near = self._copies is not None and part in self.copied
        return (self._copies if near and self._copies is not None else self.path) / self.manifest.parts[part].path

    def identity(self) -> str:
        """Return the checksum of the manifest without carried columns, which holds those of the files."""
        return self.manifest.identity()

    def verify_all(self) -> None:
        """Verify every byte of the dataset.

        Raises
        ------
        DataError
            naming the first damaged file.
        """
        for step, (part, _, _) in enumerate(self._steps):
            self._part(part)
            self._check_step(step)
            self._step_counts(step)
        for part, row in enumerate(self.manifest.parts):
            if row.carried:
                self._carried_file(part)

    def close(self) -> None:
        """Close the files of this thread; a later read opens them again."""
        super().close()
        self._carried_files.clear()

    def read_carried(self, start: int, stop: int) -> pa.Table | None:
        """Return the carried columns of structures `start:stop` as an Arrow table; None if there are none."""
        if not self.carried:
            return None
        tables = []
        for part, row in enumerate(self.manifest.parts):
            end = int(self._ends[part])
            first = end - row.structures
            low, high = max(start, first), min(stop, end)
            if low < high:
                found = self._carried_file(part).read(low - first, high - first) if row.carried else None
                tables.append(blank_table(high - low, self.carried) if found is None else conform(found, self.carried))
        return join_tables(tables, self.carried)

    def read_carried_at(self, positions: NDArray[np.int64], name: str) -> NDArray[Any]:
        """Return the values of a carried column at sorted positions; see `StructureReader`."""
        kind = find_carried(self.carried, name).kind
        if len(positions) and not 0 <= int(positions[0]) <= int(positions[-1]) < len(self):
            raise UsageError(f"structures up to {int(positions[-1])} of {self.path} were asked for, it has {len(self)}")
        owners = np.searchsorted(self._ends, positions, side="right")
        parts = []
        for part in np.unique(owners).tolist():
            own = positions[owners == part] - (int(self._ends[part]) - self.manifest.parts[part].structures)
            there = next((row for row in self.manifest.parts[part].carried if row.name == name), None)
            if there is None:
                parts.append(missing_values(len(own), kind))
            else:
                values = self._carried_file(part).values_at(own, name)
                parts.append(values_in_kind(values, cast("Kind", there.kind), kind))
        return np.concatenate(parts) if parts else missing_values(0, kind)

    def _carried_file(self, part: int) -> CarriedFile:
        """Return the carried columns of a part; its bytes are verified before their first use."""
        if part not in self._carried_files:
            row, path = self.manifest.parts[part], self._folder(part) / CARRIED
            if self.verify == "full" and hash_file(path) != row.files[CARRIED].sha256:
                raise DataError(f"{path} is damaged (its checksum does not fit); copy or write it again")
            self._carried_files[part] = CarriedFile(path, row.structures)
        return self._carried_files[part]

    def _open_part(self, part: int) -> Bp5Reader:
        row, folder = self.manifest.parts[part], self._folder(part)
        for name, file in row.files.items():
            if name in DATA_FILES and file.sha256 and hash_file(folder / name) != file.sha256:
                raise DataError(f"{folder / name} is damaged (its checksum does not fit); copy or write it again")
        opened = Bp5Reader(folder)
        variables = opened.variables()
        for name in ("natoms", *row.fields[1:]):
            if variables.get(name, 0) != len(row.steps):
                raise DataError(
                    f"{folder} has {variables.get(name, 0)} steps of {name!r}, the manifest says {len(row.steps)}"
                )
        return opened

    def _check_step(self, step: int) -> None:
        """Verify the bytes of a step before the first use of its data."""
        if self._sound[step]:
            return
        part, place, row = self._steps[step]
        data = self._folder(part) / "data.0"
        start = self._steps[step - 1][2].end if place else 0
        if self.verify == "full" and compute_file_crc(data, start, row.end) != row.crc32:
            raise DataError(f"{data} is damaged (bytes {start} to {row.end}, step {place}); copy or write it again")
        self._sound[step] = True

    def _read_counts(self, step: int) -> NDArray[np.int64]:
        part, place, row = self._steps[step]
        data = self._folder(part) / "data.0"
        if not data.is_file() or data.stat().st_size < row.end:  # reading what is not there would hang
            raise DataError(f"{data} was truncated or removed after it was opened; copy or write it again")
        counts = self._part(part).read("natoms", place, 0, row.structures)
        if self.verify == "full" and zlib.crc32(np.ascontiguousarray(counts).tobytes()) != row.counts_crc32:
            raise DataError(f"{self.path}: the atom counts of step {step} are damaged; copy or write the files again")
        return counts

    def _read_rows(self, step: int, name: str, structures: tuple[int, int], atoms: tuple[int, int]) -> NDArray[Any]:
        part, place, _ = self._steps[step]
        field = FIELDS[name]
        first, last = atoms if field.axis == "atom" else structures
        if name not in self.manifest.parts[part].fields:
            return np.full((last - first, *field.trailing), field.missing, field.dtype)
        opened = self._part(part)
        self._check_step(step)
        rows = opened.read(name, place, first, last - first)
        if field.dtype == bool:
            return rows != 0
        if name in ("id", "head"):
            return _correct(self.manifest.parts[part], name, rows)
        return rows


def columns_of_part(part: PartRow) -> list[CarriedColumn]:
    """Return the carried columns of a part."""
    return [CarriedColumn(row.name, cast("Kind", row.kind)) for row in part.carried]


def _correct(part: PartRow, name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """Return ids and heads as they are in the whole dataset; see `PartRow`."""
    if name == "id":
        return rows + part.first_id if part.first_id else rows
    if part.heads is None:
        return rows
    places = np.array([*part.heads, -1], rows.dtype)  # a structure without a source has -1, the last place
    if len(rows) and not -1 <= int(rows.min()) <= int(rows.max()) < len(part.heads):
        raise DataError(f"{part.path}: a structure names a source that the part does not have; write the files again")
    return places[rows]


def _find_whole_copies(manifest: DatasetManifest, copies: Path | None) -> frozenset[int]:
    """Return the parts of which a folder holds a copy whose files have the right sizes; their bytes are verified later.

    Raises
    ------
    DataError
        if there is no such folder: a typing error would otherwise go unnoticed.
    """
    if copies is None:
        return frozenset()
    if not copies.is_dir():
        raise DataError(f"{copies} is no folder; name the one that holds copies of parts, or leave it out")

    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else -1

    return frozenset(
        number
        for number, part in enumerate(manifest.parts)
        if all(size(copies / part.path / name) == row.size for name, row in part.files.items())
    )
