"""Groups of structures: by formula, reduced formula, chemical system, space group or source; a key for each structure.

Compositions become keys of 128 bits by sums of fixed random numbers, one pair for each element, without a Python object
per structure: two different compositions share a key with a probability of about 2^-120.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError, unknown
from atomsieve.screen.results.formulas import count_elements, format_formulas
from atomsieve.screen.results.screened_input import read_at, read_numbers_at
from atomsieve.screen.results.table import ResultColumn, format_column
from atomsieve.structures import StructureBatch, StructureReader

Keys = NDArray[np.uint64]
"""[n,2]: rows of one group are equal."""

COMPOSITIONS = ("formula", "reduced-formula", "chemsys")
GROUPS = (*COMPOSITIONS, "space-group", "source")
SYMPREC = 0.01
"""Angstrom; within it positions count as symmetric."""
UNKNOWN = 231
"""Number of the space group of a crystal for which spglib finds none; the 230 space groups begin with 1."""


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return random-looking numbers (SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def make_composition_keys(ptr: NDArray[np.int64], numbers: NDArray[np.uint8], kind: str) -> Keys:
    """Return the keys [S,2] of structures by `kind`, one of `COMPOSITIONS`; structures without atoms have key 0."""
    structure, element, count = count_elements(ptr, numbers)
    keys = np.zeros((len(ptr) - 1, 2), np.uint64)
    if not len(structure):
        return keys
    starts = np.flatnonzero(np.diff(structure, prepend=-1))
    if kind == "reduced-formula":
        count = count // np.repeat(np.gcd.reduceat(count, starts), np.diff(starts, append=len(count)))
    elif kind == "chemsys":
        count = np.ones_like(count)
    with np.errstate(over="ignore"):
        for k in range(2):
            weight = _mix(np.arange(256, dtype=np.uint64) + np.uint64(256 * k))[element]
            keys[structure[starts], k] = np.add.reduceat(weight * count.astype(np.uint64), starts)
    return keys


def find_space_group(structure: StructureBatch, symprec: float = SYMPREC) -> tuple[int, str]:
    """Return number and symbol of the space group of a structure; 0 if it is no crystal, `UNKNOWN` if none is found."""
    import spglib

    if not structure.pbc.all() or abs(np.linalg.det(structure.cell[0])) < 1e-9:
        return 0, "not a crystal"
    fractional = np.linalg.solve(structure.cell[0].T, structure.positions.astype(np.float64).T).T
    cell: Any = (structure.cell[0], fractional, structure.numbers.astype(int))
    try:
        found: Any = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except spglib.SpglibError:  # newer versions raise where older ones return None
        found = None
    return (UNKNOWN, "unknown") if found is None else (int(found.number), str(found.international))


class Grouping:
    """Keys and labels of the groups that `kind` makes of an input; space groups are remembered by position.

    Raises
    ------
    UsageError
        for a kind that does not exist, or `source` where the input states none.
    """

    def __init__(self, kind: str, reader: StructureReader, symprec: float = SYMPREC) -> None:
        if kind not in GROUPS:
            raise unknown("group", kind, GROUPS)
        if not symprec > 0:
            raise UsageError(f"--symprec must be above 0 Angstrom, got {symprec:g}")
        self.kind, self.reader, self.symprec = kind, reader, symprec
        self._space: dict[int, tuple[int, str]] = {}
        self._source: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None
        if kind == "source":
            self._source, self._names = _find_sources(reader)

    def keys(self, positions: NDArray[np.int64]) -> Keys:
        """Return the keys [n,2] of the structures at `positions [n]`, in any order."""
        wanted, place = np.unique(positions, return_inverse=True)
        if self.kind in COMPOSITIONS:
            keys = make_composition_keys(*read_numbers_at(self.reader, wanted), self.kind)
        else:
            keys = np.zeros((len(wanted), 2), np.uint64)
            keys[:, 0] = self._space_groups(wanted) if self._source is None else self._source(wanted)
        return keys[place.reshape(-1)]

    def labels(self, positions: NDArray[np.int64]) -> list[str]:
        """Return the names of the groups of the structures at `positions`."""
        if self.kind == "source":
            assert self._source is not None
            return [self._names[k] for k in self._source(positions)]
        if self.kind == "space-group":
            self._space_groups(positions)
            found = (self._space[int(p)] for p in positions)
            return [f"{symbol} ({number})" if 0 < number < UNKNOWN else symbol for number, symbol in found]
        wanted, place = np.unique(positions, return_inverse=True)
        texts = format_formulas(*read_numbers_at(self.reader, wanted), self.kind.replace("-", "_"))
        return list(texts[place.reshape(-1)])

    def _space_groups(self, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
        new = np.array([p for p in positions.tolist() if p not in self._space], np.int64)
        if len(new):
            batch = read_at(self.reader, new, ())
            for k, p in enumerate(new.tolist()):
                self._space[p] = find_space_group(batch.slice(k, k + 1), self.symprec)
        return np.array([self._space[p][0] for p in positions.tolist()], np.uint64)


class ColumnGrouping:
    """Keys and labels of groups of rows with the same value in a column, of any kind; missing values are one group."""

    def __init__(self, column: ResultColumn) -> None:
        self.column = column

    def keys(self, rows: NDArray[Any]) -> Keys:
        """Return the keys [n,2] of rows [n]: the bits of a number, or a hash of a text (BLAKE2b, 128 bits)."""
        values = self.column.values(rows)
        keys = np.zeros((len(rows), 2), np.uint64)
        if self.column.kind == "text":
            known = {text: hashlib.blake2b(text.encode(), digest_size=16).digest() for text in set(values.tolist())}
            keys = np.frombuffer(b"".join(known[text] for text in values.tolist()), np.uint64).reshape(-1, 2)
        else:  # adding 0 makes one of the two zeros
            numbers = np.where(np.isnan(values), np.nan, values + 0.0) if self.column.kind == "number" else values
            keys[:, 0] = numbers.astype(np.float64).view(np.uint64)
        return keys

    def labels(self, rows: NDArray[Any]) -> list[str]:
        """Return the values of rows as text."""
        return format_column(self.column, self.column.values(rows))


def _find_sources(reader: StructureReader) -> tuple[Callable[[NDArray[np.int64]], NDArray[np.int64]], list[str]]:
    """Return a function from positions to sources, and the names of the sources.

    The source of a structure is the one that it states, else the part of the input that contains it.
    """
    if "head" in reader.fields and reader.sources:
        names = [*(source.name for source in reader.sources), "no source"]

        def read_stated(positions: NDArray[np.int64]) -> NDArray[np.int64]:
            if not len(positions):
                return np.zeros(0, np.int64)
            head = read_at(reader, positions, ("head",)).head
            assert head is not None
            return np.where(head < 0, len(names) - 1, head).astype(np.int64)

        return read_stated, names
    parts = reader.parts
    if len(parts) < 2:
        raise UsageError(
            f"{reader.path} names no source and is one part, so --per source is not possible; use one of "
            f"{', '.join(kind for kind in GROUPS if kind != 'source')}"
        )
    ends = np.cumsum([part.structures for part in parts])
    return lambda positions: np.searchsorted(ends, positions, side="right"), [part.name for part in parts]
