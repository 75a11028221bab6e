"""The screened input, opened again to read the structures of rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.screen.results.record import Results
from atomsieve.structures import StructureBatch, StructureReader, open_structures
from atomsieve.structures.batch import ragged_index
from atomsieve.structures.conversion.copy_record import DatasetCopy
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import FOLDER, STDIN, digest_content, ensure_dataset, is_dataset
from atomsieve.structures.fields import CONDITIONS

log = logging.getLogger(__name__)

GAP = 64  # structures; positions closer than this are read together
PIECE = 20_000  # structures read at once


@contextmanager
def open_screened_input(results: Results, *, convert: bool = True) -> Iterator[StructureReader]:
    """Open the structures that were screened, wherever they lie now: their digest tells that they are the same.

    convert : convert the screened file again if its copy was removed.

    Raises
    ------
    AtomSieveError
        if they are missing; DataError if their content changed since the screening.
    """
    if results.reader is not None:
        yield results.reader
        return
    path = find_screened_input(results, convert=convert)
    with open_structures(path) as reader:
        if reader.identity() != results.manifest["input"]["identity"]:
            raise DataError(f"{path} is no longer what was screened; put the original back, or name it with --input")
        yield reader


def find_screened_input(results: Results, *, convert: bool = True) -> Path:
    """Return the dataset that was screened; its content is yet to be compared.

    Raises
    ------
    AtomSieveError
        if it is missing: the message says what to do.
    """
    converted = results.manifest.get("converted")
    given = Path(results.manifest["input_path"]) if results.moved_input is None else results.moved_input
    if converted is None:
        if not given.exists():
            raise AtomSieveError(
                f"the structures that were screened are no longer at {given}; put them back, or say where they are "
                "with --input PATH"
            )
        return given
    copy = Path(converted["path"])
    beside = results.folder.path.absolute().parent / copy.parent.name / copy.name
    places = [*([given] if is_dataset(given) else []), copy, beside]
    found = next((place for place in places if is_dataset(place) and place.exists()), None)
    if found is not None:
        return found
    if not given.exists():
        named = "standard input" if str(given) == STDIN else str(given)
        raise AtomSieveError(
            f"the structures that were screened, converted from {named}, are no longer at {copy}, nor is the file "
            "there; put one of them back, or say where it is with --input PATH"
        )
    if not convert:
        raise AtomSieveError(f"{copy} is not there")
    return _convert_again(results, given, converted)


def describe_copy(copy: DatasetCopy, reading: ReadOptions) -> dict[str, Any]:
    """Return what run.json records about a converted input."""
    return {"path": str(copy.path.absolute()), "content": copy.content, "reading": reading.list_given()}


def _convert_again(results: Results, given: Path, converted: Mapping[str, Any]) -> Path:
    """Convert the screened file once more, as it was; a file with another content is refused before."""
    reading = ReadOptions(**converted["reading"])
    if digest_content(given, reading.format) != converted["content"]:
        raise DataError(f"{given} is not the file that was screened; put the original back, or name it with --input")
    folder = results.folder.path.absolute().parent / FOLDER
    log.warning("the converted structures at %s were removed; converting %s again", converted["path"], given)
    return ensure_dataset(given, folder, reading, labels=False, keep_bad=True).path


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
