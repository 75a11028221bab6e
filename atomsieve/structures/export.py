"""Writes structures of a dataset back into common formats, all or those that a filter keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.carried import ID
from atomsieve.structures.dataset.reader import FileReader
from atomsieve.structures.expression import Where, compile_where
from atomsieve.structures.formats import WriteOptions, open_sink
from atomsieve.structures.interface import StructureReader
from atomsieve.structures.labels.names import NAMES
from atomsieve.structures.source import SourceInfo

if TYPE_CHECKING:
    pass

BATCH = 2000
TAKEN = frozenset({*(name for names in NAMES.values() for name in names), "source", "level_of_theory", "pbc"})
"""Names that mean something else in files of structures."""
COLUMNS: dict[str, str] = {
    "index": "place in the dataset, from 0",
    "id": "identity",
    "natoms": "number of atoms",
    "n_elements": "number of different elements",
    "source": "name of the source, empty if none",
    "level_of_theory": "of the source",
    "charge": "total charge, nan if none",
    "spin": "multiplicity, nan if none",
    "periodic": "number of periodic axes",
    "volume": "of the cell, Angstrom^3, 0 without one",
    "energy": "total energy, eV, nan if none",
    "energy_per_atom": "eV, nan if none",
    "max_force": "largest force on an atom, eV/Angstrom, nan if none",
}
"""What `--where` may ask about."""


def filter_columns(batch: StructureBatch, start: int, sources: Sequence[SourceInfo]) -> dict[str, NDArray[Any]]:
    """Return the filter columns [S] of structures that begin at place `start` of the dataset."""
    count, nan = len(batch), np.full(len(batch), np.nan)
    names = np.array([*(s.name for s in sources), ""])
    levels = np.array([*(s.level_of_theory for s in sources), ""])
    head = np.full(count, -1) if batch.head is None else batch.head
    energy = nan
    if batch.energy is not None and batch.has_energy is not None:
        energy = np.where(batch.has_energy, batch.energy, np.nan)
    pairs = np.unique(batch.structure_of_atom * 256 + batch.numbers)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_atom = energy / batch.counts
    return {
        "index": np.arange(start, start + count),
        "id": batch.id,
        "natoms": batch.counts,
        "n_elements": np.bincount(pairs // 256, minlength=count),
        "source": names[head],
        "level_of_theory": levels[head],
        "charge": nan if batch.charge is None else batch.charge,
        "spin": nan if batch.spin is None else batch.spin,
        "periodic": np.count_nonzero(batch.pbc, axis=1),
        "volume": np.abs(np.linalg.det(batch.cell)),
        "energy": energy,
        "energy_per_atom": per_atom,
        "max_force": _max_force(batch),
    }


def _max_force(batch: StructureBatch) -> NDArray[np.float64]:
    out = np.full(len(batch), np.nan)
    if batch.forces is not None and batch.has_forces is not None and batch.n_atoms:
        norms = np.sqrt((batch.forces**2).sum(axis=1))
        largest = np.zeros(len(batch))
        with np.errstate(invalid="ignore"):  # absent forces are NaN
            np.maximum.at(largest, batch.structure_of_atom, norms)
        out = np.where(batch.has_forces & (batch.counts > 0), largest, np.nan)
    return out


@dataclass(frozen=True)
class Subset:
    """Which structures: places `start:stop` (None: to the end), with ids in `ids`, for which `where` holds."""

    start: int = 0
    stop: int | None = None
    ids: tuple[int, ...] | None = None
    where: Where | None = None

    @staticmethod
    def parse(span: str | None, ids: str | None, where: str | None) -> Subset:
        """Return the selection of the options `--range a:b`, `--ids 1,2,3` or `--ids @file`, `--where EXPRESSION`.

        Raises
        ------
        UsageError
            if one of them cannot be read.
        """
        start, stop = 0, None
        if span is not None:
            first, colon, last = span.partition(":")
            try:
                start, stop = int(first or 0), int(last) if last else None
            except ValueError:
                colon = ""
            if not colon or start < 0 or (stop is not None and stop < start):
                raise UsageError(f"a range reads like 100:200, :200 or 100:, got {span!r}")
        chosen = None
        if ids is not None:
            try:
                text = Path(ids[1:]).read_text() if ids.startswith("@") else ids
                chosen = tuple(int(word) for word in text.replace(",", " ").split())
            except OSError as error:
                raise UsageError(f"cannot read the ids of {ids!r}: {error.strerror}") from error
            except ValueError as error:
                raise UsageError(f"ids are integers, as in --ids 1,5,9 or --ids @file: {error}") from error
        return Subset(start, stop, chosen, compile_where(where, COLUMNS) if where is not None else None)

    def apply(self, reader: StructureReader) -> Iterator[tuple[StructureBatch, NDArray[np.int64]]]:
        """Yield the chosen structures, some thousands at a time, with their places in the dataset."""
        stop = len(reader) if self.stop is None else self.stop
        if self.start > len(reader) or stop > len(reader):
            raise UsageError(f"the range {self.start}:{stop} is beyond the {len(reader)} structures of {reader.path}")
        for first in range(self.start, stop, BATCH):
            batch = reader.read(first, min(first + BATCH, stop))
            keep = np.ones(len(batch), bool)
            if self.ids is not None:
                keep &= np.isin(batch.id, np.array(self.ids, np.int64))
            if self.where is not None:
                keep &= self.where(filter_columns(batch, first, reader.sources))
            chosen = np.flatnonzero(keep)
            yield batch.take(chosen), first + chosen


def list_carried(reader: StructureReader, places: NDArray[np.int64]) -> list[dict[str, Any]] | None:
    """Return what structures at sorted places carry, by name, without missing values; None if they carry nothing.

    A column called like a label or a key of a format gets `_given` at its end.
    """
    if not len(places):
        return None
    first = int(places[0])
    table = reader.read_carried(first, int(places[-1]) + 1)
    if table is None:
        return None
    names = [f"{name}_given" if name in TAKEN else name for name in table.column_names]
    rows = table.rename_columns(names).take(places - first).to_pylist()
    return [
        {name: value or "" if name == ID else value for name, value in row.items() if value is not None or name == ID}
        for row in rows
    ]


def export(
    reader: FileReader,
    out: Path,
    selection: Subset,
    *,
    overwrite: bool = False,
    dialect: str = "",
    progress: Callable[[int], None] | None = None,
    form: str | None = None,
    reasons: Counter[str] | None = None,
) -> tuple[int, int]:
    """Write the selected structures to a file whose ending names the format; return numbers of written and skipped.

    `form` asks for a folder with one file of that format per structure, named by its id. `reasons` is told why
    structures are skipped.

    The file appears under its name when it is complete. A dataset folder keeps the sources and notes.

    Raises
    ------
    UsageError
        if the format is unknown, the file exists, or the selection does not fit.
    """
    written = 0
    try:
        with open_sink(out, WriteOptions(reader.sources, overwrite, reader.notes, dialect), form) as sink:
            for batch, places in selection.apply(reader):
                if len(batch):
                    sink.write(batch, list_carried(reader, places))
                written += len(batch)
                if progress is not None:
                    progress(len(places))
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    if reasons is not None:
        reasons.update(sink.reasons)
    return written - sink.skipped, sink.skipped
