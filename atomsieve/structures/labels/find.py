"""Finds the labels of a block of structures: under the names whose meaning is certain, or those that a user gives.

What is not taken is counted, so that the report can name it and the option that would take it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.block import Block, Column
from atomsieve.structures.labels.conditions import count_odd_conditions
from atomsieve.structures.labels.names import NAMES, LabelKeys
from atomsieve.structures.labels.tally import LabelTally
from atomsieve.structures.units import Units

RESIDUE = 1e-6
"""A total charge nearer than this to a whole number is that number: what is left of summing."""
SAME = 1e-6
"""Two numbers of one label whose relative difference is less than this are the same."""

NO_NUMBER = (str, bool, np.bool_)
"""Types of values that are no numbers, though numpy makes numbers of some of them."""

Reasons = dict[int, tuple[str, str]]
"""Why a structure of a block cannot be used, by its place in the block: reason and detail of a `BadItem`."""


@dataclass
class FoundLabels:
    """Labels of a block in this package's units, NaN where there is none, with a mask of each.

    Attributes
    ----------
    values : `energy [S]`, `forces [N,3]`, `stress [S,3,3]`, `charge [S]`, `spin [S]`: those that any structure has.
    has : the mask `[S]` of each of them.
    reasons : structures whose labels cannot be used.
    """

    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    has: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    reasons: Reasons = field(default_factory=dict)


def find_labels(block: Block, keys: LabelKeys, given: Units, tally: LabelTally) -> FoundLabels:
    """Return the labels of a block. `given` are units of the user, which go before those that the file states."""
    search = _Search(block, keys, given.over(block.units), tally)
    for name in ("charge", "spin"):
        search.take(name, search.condition(name))
    count_odd_conditions(block, search.found.values, search.found.has, tally)
    if not keys.none:
        search.take("energy", search.per_structure("energy", ()))
        search.take("forces", search.forces())
        search.take("stress", search.stress())
        search.count_left()
    search.count_units(given)
    return search.found


Values = tuple[NDArray[np.float64], NDArray[np.bool_]]
Rows = tuple[NDArray[np.intp], NDArray[np.float64] | None]


def _rows(column: Column, shapes: tuple[tuple[int, ...], ...]) -> Iterator[Rows]:
    """Yield structures of a column and their values `[P, ...]` in one of the shapes, None where none fits."""
    places = np.flatnonzero(column.has)
    if column.numeric:
        size = int(np.prod(column.values.shape[1:]))
        fits = next((shape for shape in shapes if int(np.prod(shape)) == size), None)
        fits = None if column.values.dtype.kind == "b" else fits  # a truth value is no number
        yield places, None if fits is None else column.values.reshape(len(places), *fits).astype(np.float64)
        return
    for place, value in zip(places, column.values, strict=True):
        try:
            array = np.asarray(value)
            array = np.zeros(0) if array.dtype.kind == "b" else array.astype(np.float64)
        except (ValueError, TypeError):
            yield np.array([place]), None
            continue
        fits = next((shape for shape in shapes if int(np.prod(shape)) == array.size), None)
        yield np.array([place]), None if fits is None else array.reshape(1, *fits)


class _Search:
    """Looks for the labels of one block."""

    def __init__(self, block: Block, keys: LabelKeys, units: Units, tally: LabelTally) -> None:
        self.block, self.keys, self.units, self.tally = block, keys, units, tally
        self.found = FoundLabels()
        self.used: set[str] = set()
        self.told: set[str] = set()
        self.virials = 0  # structures whose stress was made of a virial

    def take(self, name: str, given: Values) -> None:
        """Keep a label that any structure has."""
        values, has = given
        if has.any():
            self.found.values[name], self.found.has[name] = values, has

    def refuse(self, places: NDArray[np.integer], reason: str, name: str, column: Column) -> None:
        """Say why structures cannot be used: what they state under a name."""
        for place in places.tolist():
            self.found.reasons.setdefault(place, (reason, f"{name} is {_show(column, place)}"))

    # -- energy, forces, stress --------------------------------------------------------------------------------------

    def per_structure(self, label: str, shape: tuple[int, ...], names: tuple[str, ...] | None = None) -> Values:
        """Return a label of whole structures from the first of the names that each structure has."""
        values = np.full((len(self.block), *shape), np.nan)
        has = np.zeros(len(self.block), bool)
        takers = np.full(len(self.block), -1)
        shapes = (shape,) if not shape else (shape, (6,))
        names = self.keys.names(label, self.block.names) if names is None else names
        for k, name in enumerate(names):
            column = self.block.info.get(name)
            if column is None:
                continue
            self.used.add(name)
            for places, rows in _rows(column, shapes):
                fresh = ~has[places]
                if rows is None:
                    words = np.array([isinstance(_value(column, p), NO_NUMBER) for p in places.tolist()], bool)
                    self.refuse(places[fresh & words], f"{label} is not a number", name, column)
                    self.refuse(places[fresh & ~words], f"{label} of the wrong shape", name, column)
                    continue
                rows = (_from_voigt(rows) if rows.shape[1:] == (6,) and shape else rows) * self.units.factor(label)
                if label == "energy" and self.units.per_atom:
                    rows = rows * self.block.counts[places]
                if not fresh.all():
                    same = np.isclose(rows, values[places], rtol=SAME, atol=1e-9).reshape(len(rows), -1).all(axis=1)
                    self.pass_over(label, names, takers[places][~fresh], name, same[~fresh])
                values[places[fresh]], has[places[fresh]], takers[places[fresh]] = rows[fresh], True, k
                self.count(label, name, int(fresh.sum()))
        self.count_lacking(label, self.block.info, has)
        self.refuse_not_finite(label, has & ~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        return values, has

    def count_lacking(self, label: str, columns: Mapping[str, Column], has: NDArray[np.bool_]) -> None:
        """Count structures without the key that the user names for a label, but with another name of it."""
        asked = getattr(self.keys, label)
        for name in NAMES[label] if asked is not None else ():
            column = columns.get(name)
            if column is not None and name != asked and (count := int(np.count_nonzero(column.has & ~has))):
                self.tally.missed[name, f"they lack {asked}, which --{label}-key names"] += count

    def pass_over(
        self, label: str, names: tuple[str, ...], takers: NDArray[np.int64], name: str, same: NDArray[np.bool_]
    ) -> None:
        """Count structures that state a label again under another name."""
        for k in np.unique(takers).tolist():
            for equal in (True, False):
                count = int(np.count_nonzero((takers == k) & (same == equal)))
                if count:
                    self.tally.passed[label, names[k], name, equal] += count

    def forces(self) -> Values:
        """Return the forces `[N,3]` from the first of the names that each structure has."""
        block, names = self.block, self.keys.names("forces", self.block.names)
        values: NDArray[np.float64] | None = None
        has = np.zeros(len(block), bool)
        takers = np.full(len(block), -1)
        for k, name in enumerate(names):
            column, other = block.arrays.get(name), block.info.get(name)
            if column is not None and (column.values.dtype.kind not in "iuf" or column.values.shape[1:] != (3,)):
                for place in np.flatnonzero(column.has & ~has).tolist():
                    what = f"{name} is {describe_shape(column, of_atoms=True)}"
                    self.found.reasons.setdefault(place, ("forces of the wrong shape", what))
                column = None
            if column is not None:
                self.used.add(name)
                fresh = column.has & ~has
                if values is None and fresh.all():  # the usual case, without a copy
                    values, has, takers[:] = column.values.astype(np.float64, copy=False), fresh, k
                    self.count("forces", name, len(block))
                    continue
                values = np.full((len(block.numbers), 3), np.nan) if values is None else values
                rows = block.atoms_of(column.has)
                if (again := column.has & has).any():
                    near = np.ones(len(block), bool)
                    both = block.atoms_of(again)
                    far = ~np.isclose(values[both], column.values[both[rows]], rtol=SAME, atol=1e-9).all(axis=1)
                    near[np.repeat(np.arange(len(block)), block.counts)[both][far]] = False
                    self.pass_over("forces", names, takers[again], name, near[again])
                if fresh.any():
                    chosen = block.atoms_of(fresh)
                    values[chosen] = column.values[chosen[rows]]
                    has = has | fresh
                    takers[fresh] = k
                self.count("forces", name, int(fresh.sum()))
            if other is not None:  # no rows of atoms
                self.used.add(name)
                self.refuse(np.flatnonzero(other.has & ~has), "forces of the wrong shape", name, other)
        self.count_lacking("forces", block.arrays, has)
        if values is None:
            return np.full((len(block.numbers), 3), np.nan), has
        factor = self.units.factor("forces")
        values = values if factor == 1.0 else values * factor
        finite = np.isfinite(values)
        if not finite.all() and (bad := ~finite.all(axis=1) & block.atoms_of(has)).any():
            wrong = np.zeros(len(block), bool)
            wrong[np.repeat(np.arange(len(block)), block.counts)[bad]] = True
            self.refuse_not_finite("forces", wrong)
        return values, has

    def stress(self) -> Values:
        """Return the stress `[S,3,3]`, each two values off the diagonal averaged; -virial / volume without it."""
        block, keys = self.block, self.keys
        stress, has = np.full((len(block), 3, 3), np.nan), np.zeros(len(block), bool)
        if keys.virial is None or keys.stress is not None:
            stress, has = self.per_structure("stress", (3, 3))
        names = tuple(name for name in keys.names("virial") if name in block.info)
        if names and (keys.stress is None or keys.virial is not None):
            self.used.update(names)
            volume = np.abs(np.linalg.det(block.cell)) * self.units.factor("length") ** 3
            held = _Search(block, keys, self.units, LabelTally())
            virial, given = held.per_structure("virial", (3, 3), names)
            flat = given & ~has & ~(volume > 0)
            if flat.any():
                self.tally.missed[names[0], "a virial needs a cell to become a stress"] += int(flat.sum())
            with np.errstate(divide="ignore", invalid="ignore"):
                own = -virial / volume[:, None, None]
            if (again := given & has & (volume > 0)).any():
                same = np.isclose(own, stress, rtol=1e-4, atol=1e-7).all(axis=(1, 2))
                takers = np.zeros(int(again.sum()), np.int64)
                self.pass_over("stress", (keys.names("stress")[0],), takers, names[0], same[again])
            fresh = given & ~has & (volume > 0)
            if fresh.any():
                self.virials = int(fresh.sum())
                stress[fresh] = own[fresh]
                has = has | fresh
                for (_, name), count in held.tally.taken.items():
                    self.count("stress", f"-{name}/volume", min(count, int(fresh.sum())))
            for place, why in held.found.reasons.items():
                if not has[place] or fresh[place]:
                    self.found.reasons.setdefault(place, why)
        return (stress + stress.transpose(0, 2, 1)) / 2 if has.any() else stress, has

    def refuse_not_finite(self, label: str, wrong: NDArray[np.bool_]) -> None:
        """Refuse structures whose label is not finite."""
        for place in np.flatnonzero(wrong).tolist():
            self.found.reasons.setdefault(place, (f"{label} not finite", ""))

    # -- charge and multiplicity -------------------------------------------------------------------------------------

    def condition(self, label: str) -> Values:
        """Return a total charge or a multiplicity. Values of each atom are never those of the structure."""
        values, has = np.full(len(self.block), np.nan), np.zeros(len(self.block), bool)
        per_atom = (
            f"values of atoms are no total {label}" if label == "charge" else "values of atoms are no multiplicity"
        )
        for name in self.keys.names(label, self.block.names):
            if name in self.block.arrays:
                self.told.add(name)
                self.tally.missed[name, per_atom] += int(self.block.arrays[name].has.sum())
            column = self.block.info.get(name)
            if column is None:
                continue
            self.used.add(name)
            for places, rows in _rows(column, ((),)):
                if rows is not None and (single := _of_one_atom(column, places, self.block)).any():
                    self.tally.missed[name, per_atom] += int(single.sum())
                    places, rows = places[~single], rows[~single]
                if rows is None:
                    texts = np.array([p for p in places.tolist() if isinstance(_value(column, p), NO_NUMBER)], np.int64)
                    self.refuse(texts, f"{label} is not a number", name, column)
                    if len(texts) < len(places):
                        self.tally.missed[name, per_atom] += len(places) - len(texts)
                    continue
                rounded = round_residue(rows)
                again = has[places] & (values[places] != rounded) & np.isfinite(rounded)
                self.refuse(places[again], f"two values of {label}", name, column)
                fresh = ~has[places] & np.isfinite(rounded)
                values[places[fresh]] = rounded[fresh]
                has[places[fresh]] = True
                self.count(label, name, int(fresh.sum()))
        return values, has

    # -- what is counted ---------------------------------------------------------------------------------------------

    def count(self, label: str, name: str, count: int) -> None:
        """Count structures whose label came from a key."""
        if count:
            self.tally.taken[label, name] += count

    def count_units(self, given: Units) -> None:
        """Count which units were applied, and where the user's differ from those that the file states."""
        block = self.block
        if not (given.stated or block.units.stated) or not len(block):
            return
        taken = {label: int(has.sum()) for label, has in self.found.has.items()} | {"length": len(block)}
        taken["stress"] = taken["stress sign"] = taken.get("stress", 0) - self.virials
        taken["virial"] = self.virials
        own = given.describe() if not block.units.stated else given.list_stated()
        for quantity, unit in self.units.describe().items():
            if taken.get(quantity):
                origin = given.origin if quantity in own else block.units.origin
                self.tally.units[quantity, unit, origin] += taken[quantity]
        for quantity in given.list_stated() & block.units.list_stated():
            mine, said = getattr(given, quantity), getattr(block.units, quantity)
            if taken.get(quantity) and not np.isclose(given.factor(quantity), block.units.factor(quantity), rtol=1e-6):
                self.tally.overruled[quantity, mine, said] += taken[quantity]

    def count_left(self) -> None:
        """Count the keys from which nothing was taken."""
        for key, column in self.block.info.items():
            if key not in self.used:
                self.tally.leave(key, describe_shape(column, of_atoms=False), int(column.has.sum()))
        for key, column in self.block.arrays.items():
            if (
                key not in self.used or key not in self.keys.names("forces", self.block.names)
            ) and key not in self.told:
                self.tally.leave(key, describe_shape(column, of_atoms=True), int(column.has.sum()))


def describe_shape(column: Column, *, of_atoms: bool) -> str:
    """Return the shape of a value in words: `number`, `3x3`, `6 numbers`, `3 per atom`, `text`, `flag`."""
    shape = column.values.shape[1:]
    if not column.numeric:
        plain = len(column.values) and all(isinstance(value, str) for value in column.values[:20])
        return ("text" if plain or column.values.dtype.kind in "US" else "other") + (" per atom" if of_atoms else "")
    size = int(np.prod(shape))
    if column.values.dtype.kind == "b":
        return "flag per atom" if of_atoms else "flag" if size == 1 else f"{size} flags"
    word = "x".join(str(n) for n in shape)
    if of_atoms:
        return f"{word or 1} per atom"
    return "number" if size == 1 else word if len(shape) > 1 else f"{size} numbers"


def _of_one_atom(column: Column, places: NDArray[np.intp], block: Block) -> NDArray[np.bool_]:
    """Return where a list of one number may be that of the one atom, as nothing in the block says otherwise."""
    alone = block.counts[places] == 1
    if column.numeric:
        listed = column.values.ndim > 1 and bool(alone.all())
        return alone & listed
    return alone & np.array([np.ndim(_value(column, place)) > 0 for place in places.tolist()], bool)


def round_residue(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest whole number of each value that is nearer to one than `RESIDUE`, and the other values."""
    with np.errstate(invalid="ignore"):  # infinity
        return np.where(np.abs(values - np.round(values)) < RESIDUE, np.round(values) + 0.0, values)


def _from_voigt(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `[P,3,3]` of `[P,6]` numbers xx, yy, zz, yz, xz, xy."""
    xx, yy, zz, yz, xz, xy = rows.T
    return np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)


def _value(column: Column, place: int) -> Any:
    return column.values[int(np.count_nonzero(column.has[:place]))]


def _show(column: Column, place: int) -> str:
    return " ".join(repr(_value(column, place)).split())[:60]
