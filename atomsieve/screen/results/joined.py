"""Columns that a user joined to results from tables: `joined.arrow`, a row for each screened structure.

joined.json   the columns: name, kind, and the table that they came from
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.screen.results.record import Results
from atomsieve.structures.carried import CarriedColumn, CarriedFile


def list_joined(results: Results) -> list[CarriedColumn]:
    """Return the joined columns of a results folder; none if nothing was joined."""
    try:
        found = json.loads(results.folder.joined_record.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError as error:
        raise DataError(f"{results.folder.joined_record} is damaged ({error}); join the tables again") from error
    return [CarriedColumn(column["name"], column["kind"]) for column in found["columns"]]


class JoinedReader:
    """Values of joined columns by position; the file is opened when they are first asked for."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._file: CarriedFile | None = None

    def read(self, positions: NDArray[np.int64], name: str) -> NDArray[Any]:
        """Return the values [n] of a column at `positions [n]`, in any order."""
        if self._file is None:
            self._file = CarriedFile(self._results.folder.joined, self._results.chunks.n)
        wanted, place = np.unique(positions, return_inverse=True)
        return self._file.values_at(wanted, name)[place.reshape(-1)]
