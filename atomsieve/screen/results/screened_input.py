"""The screened input, opened again to read the structures of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.screen.results.record import Results
from atomsieve.structures import StructureBatch, StructureReader, open_structures
from atomsieve.structures.batch import ragged_index
from atomsieve.structures.fields import CONDITIONS

GAP = 64  # structures; positions closer than this are read together
PIECE = 20_000  # structures read at once


@contextmanager
def open_screened_input(results: Results) -> Iterator[StructureReader]:
    """Open the input of a results folder.

    Raises
    ------
    AtomSieveError
        if it is missing; DataError if its content changed since the screening.
    """
    path = Path(results.manifest["input_path"])
    if not path.exists():
        raise AtomSieveError(f"the structures that were screened are no longer at {path}; put them back")
    with open_structures(path) as reader:
        if reader.identity() != results.manifest["input"]["identity"]:
            raise DataError(f"{path} is no longer what was screened; put the original back")
        yield reader


def read_at(
    reader: StructureReader, positions: NDArray[np.int64], fields: Iterable[str] = CONDITIONS
) -> StructureBatch:
    """Return the structures at `positions` of the input, in that order; a position may occur more than once."""
    wanted, place = np.unique(positions, return_inverse=True)
    read = [batch for _, batch in read_batches_at(reader, wanted, fields)]
    return StructureBatch.concatenate(read).take(place.reshape(-1))


def read_batches_at(
    reader: StructureReader, positions: NDArray[np.int64], fields: Iterable[str] = CONDITIONS
) -> Iterator[tuple[slice, StructureBatch]]:
    """Yield the structures at the sorted `positions` in batches: a slice of `positions`, and their structures."""
    for first, stop in merge_into_ranges(positions):
        inside = slice(*np.searchsorted(positions, (first, stop)).tolist())
        yield inside, reader.read(first, stop, fields).take(positions[inside] - first)


def read_numbers_at(
    reader: StructureReader, positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return `ptr [n+1]` and the atomic numbers of the structures at the sorted `positions [n]`, reading no more."""
    counts, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    for first, stop in merge_into_ranges(positions):
        found = reader.read_arrays(first, stop, ("numbers",))
        inside = positions[np.searchsorted(positions, first) : np.searchsorted(positions, stop)] - first
        counts.append(np.diff(found["ptr"])[inside])
        numbers.append(found["numbers"][ragged_index(found["ptr"][:-1][inside], counts[-1])])
    return np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64), np.concatenate(numbers)


def merge_into_ranges(positions: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges (start, stop) of the input that contain the sorted `positions` with gaps of up to `GAP`."""
    runs = np.flatnonzero(np.diff(positions) > GAP) + 1
    for run in np.split(positions, runs) if len(positions) else []:
        while len(run):
            inside = int(np.searchsorted(run, run[0] + PIECE))
            yield int(run[0]), int(run[inside - 1]) + 1
            run = run[inside:]
