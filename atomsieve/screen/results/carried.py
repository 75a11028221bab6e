"""Carried columns of a results folder: what the input states of its structures beside atoms and cell.

While a run is at work they are read from the input; at its end those of the screened structures are copied into
`carried.arrow`, so that results keep ids and context without the input.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.runs.output_files import atomic_draft, output_errors
from atomsieve.screen.results.columns import COLUMNS
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import open_screened_input
from atomsieve.structures import StructureReader
from atomsieve.structures.carried import ID, ROWS, CarriedColumn, CarriedFile, CarriedWriter

COPIED = 16 * ROWS  # rows that are copied at once
GIVEN = "_given"
"""Ends the name of a carried column whose own name means something else in results."""
COMPUTED = (
    "formula", "reduced_formula", "chemsys", "formation_energy", "sigma_formation_energy", "energy_above_hull",
    "sigma_energy_above_hull", "p_stable", "why",
)  # fmt: skip
"""Names that are computed of rows: no value of a file takes them."""


def describe_carried(reader: StructureReader) -> list[list[str]]:
    """Return the carried columns of an input as plain data for run.json."""
    return [[column.name, column.kind] for column in reader.carried]


def list_carried(results: Results) -> list[tuple[str, CarriedColumn]]:
    """Return the carried columns of a results folder, each with the name that it has there."""
    taken = {*COLUMNS, *COMPUTED, *(name.lower() for name in results.labels.reasons.values())}
    out: list[tuple[str, CarriedColumn]] = []
    for name, kind in results.manifest.get("carried", ()):
        column = CarriedColumn(name, kind)
        free = name in ({name for name, _ in out} | taken) and (name, kind) != (ID, "text")
        out.append((f"{name}{GIVEN}" if free else name, column))
    return out


def copy_carried(reader: StructureReader, count: int, folder: ResultsFolder) -> None:
    """Copy the carried columns of the first `count` structures into a results folder, some thousands at a time."""
    if not reader.carried:
        return
    with (
        output_errors(folder.carried),
        atomic_draft(folder.carried, durable=False) as draft,
        CarriedWriter(draft, reader.carried) as writer,
    ):
        for start in range(0, count, COPIED):
            table = reader.read_carried(start, min(start + COPIED, count))
            assert table is not None
            writer.write(table)


class CarriedReader:
    """Values of carried columns of the rows of a results folder; files are opened when they are first asked for."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._source: CarriedFile | StructureReader | None = None

    def read(self, positions: NDArray[np.int64], name: str) -> NDArray[Any]:
        """Return the values [n] of a column of the input at `positions [n]`, in any order.

        Raises
        ------
        AtomSieveError
            if neither the copy nor the input is there; DataError if one is damaged or changed.
        """
        source = self._open()
        if len(positions) < 2 or (np.diff(positions) > 0).all():  # rows of one head, in the order of the input
            return (
                source.values_at(positions, name)
                if isinstance(source, CarriedFile)
                else (source.read_carried_at(positions, name))
            )
        wanted, place = np.unique(positions, return_inverse=True)
        return self.read(wanted, name)[place.reshape(-1)]

    def _open(self) -> CarriedFile | StructureReader:
        if self._source is None:
            copy = self._results.folder.carried
            if self._results.complete and copy.exists():
                self._source = CarriedFile(copy, self._results.chunks.n)
            else:
                stack = ExitStack()
                self._source = stack.enter_context(open_screened_input(self._results))
                weakref.finalize(self, stack.close)
        return self._source
