"""A run of structures as read from a file: flat arrays, and columns for whatever else each structure states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.item import BadItem, Item
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.units import Units

if TYPE_CHECKING:
    import pyarrow as pa

GATHERED_STRUCTURES = 2000
GATHERED_ATOMS = 200_000


@dataclass
class Column:
    """Values of one key: one of each structure that has it, or one of each atom of those structures.

    Attributes
    ----------
    has : `[S]`, True for structures that state the key.
    values : rows of these structures (of their atoms, in `Block.arrays`) in order, `[P, ...]`. Numbers and truth values
        are float64, int64 or bool; texts, and values whose shapes differ, are an object array `[P]`.
    """

    has: NDArray[np.bool_]
    values: NDArray[Any]

    @property
    def numeric(self) -> bool:
        """True if the values are numbers or truth values of one shape."""
        return self.values.dtype.kind in "biuf"

    def spread(self, fill: Any = None) -> NDArray[Any]:
        """Return one row per structure `[S, ...]` of a column of structures; `fill`, or NaN, where it lacks."""
        if self.has.all():
            return self.values
        dtype = np.float64 if self.numeric else object
        out = np.full((len(self.has), *self.values.shape[1:]), np.nan if self.numeric else fill, dtype)
        out[self.has] = self.values
        return out


class Places(Sequence[str]):
    """Words that say where in the input each structure lies: `FILE: frame 17`. Made when asked for."""

    def __init__(self, path: str, word: str, numbers: NDArray[np.int64]) -> None:
        self.path, self.word, self.numbers = path, word, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, k: int) -> str: ...

    @overload
    def __getitem__(self, k: slice) -> Places: ...

    def __getitem__(self, k: int | slice) -> str | Places:
        if isinstance(k, slice):
            return Places(self.path, self.word, self.numbers[k])
        return f"{self.path}: {self.word} {int(self.numbers[k])}"


@dataclass(frozen=True)
class SourceColumn(Sequence[SourceInfo | None]):
    """The source of each structure: its place `[S]` among those that are known, -1 where it has none."""

    known: tuple[SourceInfo, ...]
    numbers: NDArray[np.int32]

    @staticmethod
    def of(sources: Sequence[SourceInfo | None]) -> SourceColumn:
        """Return the column of any sequence of sources."""
        if isinstance(sources, SourceColumn):
            return sources
        known = tuple(dict.fromkeys(source for source in sources if source is not None))
        places: dict[SourceInfo | None, int] = {None: -1, **{source: k for k, source in enumerate(known)}}
        return SourceColumn(known, np.array([places[source] for source in sources], np.int32))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, k: int) -> SourceInfo | None: ...

    @overload
    def __getitem__(self, k: slice) -> SourceColumn: ...

    def __getitem__(self, k: int | slice) -> SourceInfo | SourceColumn | None:
        if isinstance(k, slice):
            return SourceColumn(self.known, self.numbers[k])
        return self.known[self.numbers[k]] if self.numbers[k] >= 0 else None


@dataclass
class Block:
    """S structures with N atoms in all, in the order of the file, and those between them that could not be read.

    Attributes
    ----------
    ptr : `[S+1]`, atoms of structure s are `ptr[s]:ptr[s+1]`.
    numbers, positions : `[N]` integers and `[N,3]`, in the unit of length of `units`.
    cell, pbc : `[S,3,3]` and `[S,3]`.
    places : `[S]`, where each structure lies, for messages.
    info : values by key that a structure states (labels of the whole structure too: energy, stress).
    arrays : values by key that every atom of a structure has (forces, magnetic moments, charges of atoms).
    units : units of all of these that the file states or its format fixes; those not stated are None.
    bad : `(k, BadItem)`: a structure that could not be read, the k-th of the `read` structures of this block.
    read : structures in the file that this block stands for, the bad ones included.
    sources : `[S]`, source of each structure where the format itself has sources.
    start, stop : where the block begins and ends in its file, in the unit of its format's spans.
    notes : structures by what the reader did or noticed beside taking them, in words for the report.
    names : keys of labels by label that the data set fixes, all at one level of theory: `LabelKeys.names`.
    carried : of a dataset: the columns that its structures carry, an Arrow table of S rows; else None.
    """

    ptr: NDArray[np.int64]
    numbers: NDArray[Any]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    places: Sequence[str]
    info: dict[str, Column] = field(default_factory=dict)
    arrays: dict[str, Column] = field(default_factory=dict)
    units: Units = field(default_factory=Units)
    bad: list[tuple[int, BadItem]] = field(default_factory=list)
    sources: Sequence[SourceInfo | None] | None = None
    start: int = 0
    stop: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    carried: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def read(self) -> int:
        """Number of structures that were read, whole or not."""
        return len(self) + len(self.bad)

    @property
    def ordinals(self) -> NDArray[np.int64]:
        """`[S]`: place of each structure among all that were read, the bad ones counted too."""
        if not self.bad:
            return np.arange(len(self))
        return np.delete(np.arange(self.read), [k for k, _ in self.bad])

    @property
    def counts(self) -> NDArray[np.int64]:
        """`[S]`: atoms per structure."""
        return np.diff(self.ptr)

    def atoms_of(self, has: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return `[N]`: True for the atoms of structures where `has` is True."""
        return np.repeat(has, self.counts)


def gather_blocks(found: Iterable[Item | BadItem | Block]) -> Iterator[Block]:
    """Yield blocks: those that are found, and single structures some thousands at a time."""
    items: list[Item | BadItem] = []
    atoms = 0
    units: Units | None = None  # of those items
    for one in found:
        if isinstance(one, Block):
            if items:
                yield build_block(items)
                items, atoms = [], 0
            yield one
            continue
        if isinstance(one, Item):
            if items and units is not None and one.units is not units and one.units != units:
                yield build_block(items)
                items, atoms = [], 0
            units = one.units
        items.append(one)
        atoms += len(one.numbers) if isinstance(one, Item) else 0
        if len(items) >= GATHERED_STRUCTURES or atoms >= GATHERED_ATOMS:
            yield build_block(items)
            items, atoms = [], 0
    if items:
        yield build_block(items)


def _units_of(items: Sequence[Item | BadItem]) -> Units:
    return next((item.units for item in items if isinstance(item, Item)), Units())


def build_block(found: Sequence[Item | BadItem]) -> Block:
    """Return structures of one set of units as a block. One whose arrays do not fit together becomes bad."""
    items: list[Item] = []
    bad: list[tuple[int, BadItem]] = []
    for k, one in enumerate(found):
        if isinstance(one, BadItem):
            bad.append((k, one))
        elif np.shape(one.positions) != (len(one.numbers), 3):
            bad.append((k, BadItem("positions do not fit the number of atoms", one.where)))
        else:
            items.append(one)
    counts = np.array([len(item.numbers) for item in items], np.int64)
    info, arrays = _columns(items, counts)
    return Block(
        ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        numbers=np.concatenate([item.numbers for item in items]) if items else np.zeros(0, np.int64),
        positions=np.concatenate([item.positions for item in items]).astype(np.float64) if items else np.zeros((0, 3)),
        cell=np.stack([item.cell for item in items]).astype(np.float64) if items else np.zeros((0, 3, 3)),
        pbc=np.stack([item.pbc for item in items]).astype(bool) if items else np.zeros((0, 3), bool),
        places=[item.where for item in items],
        info=info,
        arrays=arrays,
        units=_units_of(items),
        bad=bad,
        notes=dict(Counter(item.note for item in items if item.note)),
        sources=[item.source for item in items] if any(item.source is not None for item in items) else None,
    )


def _columns(items: Sequence[Item], counts: NDArray[np.int64]) -> tuple[dict[str, Column], dict[str, Column]]:
    """Return what the items state by key: of structures, and of atoms. A label precedes an info value of its name."""
    info: dict[str, list[tuple[int, Any]]] = {}
    arrays: dict[str, list[tuple[int, NDArray[Any]]]] = {}
    for s, item in enumerate(items):
        stated = [(key, value, is_label_of_atoms(key)) for key, value in {**item.info, **item.labels}.items()]
        stated += [(key, value, True) for key, value in item.arrays.items()]
        for key, value, of_atoms in stated:
            array = as_array_of_atoms(value, int(counts[s])) if of_atoms else None
            if array is not None:
                arrays.setdefault(key, []).append((s, array))
            elif value is not None:
                info.setdefault(key, []).append((s, value))
    out = {key: build_column(rows, len(items)) for key, rows in info.items()}
    atoms = {}
    for key, parts in arrays.items():
        shapes = {part.shape[1:] for _, part in parts}
        if len(shapes) > 1:  # no array of one shape: kept as objects, so that a label among them is found to be wrong
            out.setdefault(key, build_column(list(parts), len(items)))
            continue
        has = np.zeros(len(items), bool)
        has[[s for s, _ in parts]] = True
        atoms[key] = Column(has, np.concatenate([part for _, part in parts]))
    return out, atoms


LABELS_OF_ATOMS = ("magmoms", "charges", "energies", "stresses")
"""Results of a calculator that have a row per atom, beside forces."""


def is_label_of_atoms(key: str) -> bool:
    """Return True for names of results that have a row per atom."""
    return "force" in key.lower() or key in LABELS_OF_ATOMS


def as_array_of_atoms(value: Any, count: int) -> NDArray[Any] | None:
    """Return a value as `[count, ...]` of numbers, truth values or texts; None if it is no such array."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    if array.dtype.kind == "O" and all(isinstance(word, str) for word in array.flat):
        array = array.astype(np.str_)
    if array.ndim < 1 or len(array) != count or array.dtype.kind not in "biufUS":
        return None
    return array


def build_column(rows: Sequence[tuple[int, Any]], count: int) -> Column:
    """Return the values `(s, value)` of structures of a block of `count` as a column."""
    has = np.zeros(count, bool)
    has[[s for s, _ in rows]] = True
    given = [value for _, value in rows]
    if not any(isinstance(value, str | bytes | dict) for value in given):
        try:
            numbers = np.asarray(given)
        except (ValueError, TypeError):  # values of different shapes
            numbers = np.zeros(0, object)
        mixed = numbers.dtype.kind in "iuf" and any(isinstance(value, bool | np.bool_) for value in given)
        if numbers.dtype.kind in "biuf" and len(numbers) == len(given) and not mixed:  # truth values stay what they are
            return Column(has, numbers)
    values = np.empty(len(given), object)
    for k, value in enumerate(given):
        values[k] = value
    return Column(has, values)
