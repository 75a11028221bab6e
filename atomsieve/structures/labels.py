"""Finds the labels of a block of structures: under the names whose meaning is certain, or those that a user gives.

A name that is certain is one that a code or a data format of the field fixes. What looks like a label but is not taken
is counted, so that the report can name it and the option that would take it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.block import Block, Column
from atomsieve.structures.units import Units

NAMES: dict[str, tuple[str, ...]] = {
    "energy": ("energy", "REF_energy", "dft_energy", "DFT_energy"),
    "forces": ("forces", "force", "REF_forces", "dft_forces", "dft_force", "DFT_forces"),
    "stress": ("stress", "REF_stress", "dft_stress", "DFT_stress"),
    "virial": ("virial", "virials", "REF_virials", "REF_virial", "dft_virial", "dft_virials", "DFT_virial"),
    "charge": ("charge", "total_charge"),
    "spin": ("spin", "multiplicity", "spin_multiplicity"),
}
"""Names that are certain, the first that a structure has is taken: ASE's own; `REF_` of MACE; `dft_` of QUIP and GAP;
`force` and `virial` of GPUMD; charge and multiplicity of fairchem, QCSchema and pymatgen."""

RESIDUE = 1e-6
"""A total charge nearer than this to a whole number is that number: what is left of summing."""

Reasons = dict[int, tuple[str, str]]
"""Why a structure of a block cannot be used, by its place in the block: reason and detail of a `BadItem`."""


@dataclass(frozen=True)
class LabelKeys:
    """Where the labels are found in a file; None: under the `NAMES` that are certain.

    Attributes
    ----------
    energy, forces, stress, virial : names of the total energy, forces, stress, and virial (minus stress times volume).
    charge, spin : names of the total charge and the multiplicity.
    id : name of an integer identity; None numbers the structures in the order of the input.
    none : leave all labels out.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    charge: str | None = None
    spin: str | None = None
    id: str | None = None
    none: bool = False

    def names(self, label: str) -> tuple[str, ...]:
        """Return the names under which a label is looked for, the first one first."""
        given = getattr(self, label)
        return NAMES[label] if given is None else (given,)


@dataclass
class LabelTally:
    """What was taken and what was left, over all blocks.

    Attributes
    ----------
    taken : structures by label and by the key that it was taken from.
    left : structures by key that looks like a label and was not taken, with its shape in words.
    units : structures by quantity, unit, and who stated it.
    """

    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    units: Counter[tuple[str, str, str]] = field(default_factory=Counter)


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
    units = given.over(block.units)
    found, used = FoundLabels(), set[str]()
    for name in ("charge", "spin"):
        _take(found, name, _condition(block, keys.names(name), name, found, tally, used))
    if not keys.none:
        _take(found, "energy", _per_structure(block, keys.names("energy"), "energy", (), units, found, tally, used))
        _take(found, "forces", _forces(block, keys.names("forces"), units, found, tally, used))
        _take(found, "stress", _stress(block, keys, units, found, tally, used))
        for quantity, unit in units.describe().items():
            tally.units[quantity, unit, units.origin] += len(block)
        _count_left(block, used, tally)
    return found


Values = tuple[NDArray[np.float64], NDArray[np.bool_]]


def _take(found: FoundLabels, name: str, given: Values) -> None:
    values, has = given
    if has.any():
        found.values[name], found.has[name] = values, has


Rows = tuple[NDArray[np.intp], NDArray[np.float64] | None]


def _rows(column: Column, shapes: tuple[tuple[int, ...], ...]) -> Iterator[Rows]:
    """Yield structures of a column and their values `[P, ...]` in one of the shapes, None where none fits."""
    places = np.flatnonzero(column.has)
    if column.numeric:
        size = int(np.prod(column.values.shape[1:]))
        fits = next((shape for shape in shapes if int(np.prod(shape)) == size), None)
        yield places, None if fits is None else column.values.reshape(len(places), *fits).astype(np.float64)
        return
    for place, value in zip(places, column.values, strict=True):
        try:
            array = np.asarray(value, np.float64)
        except (ValueError, TypeError):
            yield np.array([place]), None
            continue
        fits = next((shape for shape in shapes if int(np.prod(shape)) == array.size), None)
        yield np.array([place]), None if fits is None else array.reshape(1, *fits)


def _per_structure(
    block: Block,
    names: tuple[str, ...],
    label: str,
    shape: tuple[int, ...],
    units: Units,
    found: FoundLabels,
    tally: LabelTally,
    used: set[str],
) -> Values:
    """Return a label of whole structures from the first of the names that each structure has."""
    values = np.full((len(block), *shape), np.nan)
    has = np.zeros(len(block), bool)
    shapes = (shape,) if not shape else (shape, (6,))
    for name in names:
        column = block.info.get(name)
        if column is None:
            continue
        for places, rows in _rows(column, shapes):
            fresh = ~has[places]
            if not fresh.any():
                continue
            used.add(name)
            if rows is None:
                for place in places[fresh].tolist():
                    found.reasons.setdefault(
                        place, (f"{label} of the wrong shape", f"{name} is {_show(column, place)}")
                    )
                continue
            rows = rows[fresh]
            if rows.shape[1:] == (6,):
                rows = _from_voigt(rows)
            values[places[fresh]] = rows * units.factor(label)
            has[places[fresh]] = True
            tally.taken[label, name] += int(fresh.sum())
    _refuse_not_finite(found, label, has & ~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    return values, has


def _forces(
    block: Block, names: tuple[str, ...], units: Units, found: FoundLabels, tally: LabelTally, used: set[str]
) -> Values:
    values = np.full((len(block.numbers), 3), np.nan)
    has = np.zeros(len(block), bool)
    for name in names:
        column = block.arrays.get(name)
        if column is not None and (not column.numeric or column.values.shape[1:] != (3,)):
            for place in np.flatnonzero(column.has & ~has).tolist():
                found.reasons.setdefault(
                    place, ("forces of the wrong shape", f"{name} has {column.values.shape[1:]} per atom")
                )
            column = None
        if column is not None and (fresh := column.has & ~has).any():
            used.add(name)
            values[block.atoms_of(fresh)] = column.values[np.repeat(fresh[column.has], block.counts[column.has])]
            has |= fresh
            tally.taken["forces", name] += int(fresh.sum())
        other = block.info.get(name)
        if other is not None:  # no rows of atoms
            used.add(name)
            for place in np.flatnonzero(other.has & ~has).tolist():
                found.reasons.setdefault(place, ("forces of the wrong shape", f"{name} is {_show(other, place)}"))
    factor = units.factor("forces")
    if factor != 1.0:
        values *= factor
    bad = ~np.isfinite(values).all(axis=1) & block.atoms_of(has)
    if bad.any():
        owner = np.repeat(np.arange(len(block)), block.counts)
        wrong = np.zeros(len(block), bool)
        wrong[owner[bad]] = True
        _refuse_not_finite(found, "forces", wrong)
    return values, has


def _stress(
    block: Block, keys: LabelKeys, units: Units, found: FoundLabels, tally: LabelTally, used: set[str]
) -> Values:
    """Return the stress `[S,3,3]`, each two values off the diagonal averaged; -virial / volume where only that is."""
    nothing = np.full((len(block), 3, 3), np.nan), np.zeros(len(block), bool)
    stress, has = nothing
    if keys.virial is None or keys.stress is not None:
        stress, has = _per_structure(block, keys.names("stress"), "stress", (3, 3), units, found, tally, used)
    if keys.stress is None or keys.virial is not None:
        volume = np.abs(np.linalg.det(block.cell)) * units.factor("length") ** 3 if len(block) else np.zeros(0)
        names = tuple(name for name in keys.names("virial") if name in block.info)
        if names and (volume > 0).any():
            held = FoundLabels()
            virial, given = _per_structure(block, names, "virial", (3, 3), units, held, LabelTally(), set())
            fresh = given & ~has & (volume > 0)
            if fresh.any():
                used.update(names)
                stress[fresh] = -virial[fresh] / volume[fresh, None, None]
                has = has | fresh
                found.reasons.update({k: v for k, v in held.reasons.items() if k not in found.reasons})
                tally.taken["stress", f"-{names[0]}/volume"] += int(fresh.sum())
    return (stress + stress.transpose(0, 2, 1)) / 2, has


def _condition(
    block: Block, names: tuple[str, ...], label: str, found: FoundLabels, tally: LabelTally, used: set[str]
) -> Values:
    """Return a total charge or a multiplicity. A value of every atom is never that of the structure."""
    values, has = np.full(len(block), np.nan), np.zeros(len(block), bool)
    for name in names:
        column = block.info.get(name)
        if column is None:
            continue
        for places, rows in _rows(column, ((),)):
            if rows is None:
                texts = [p for p in places.tolist() if isinstance(_value(column, p), str)]
                for place in texts:
                    found.reasons.setdefault(place, (f"{label} is not a number", f"{name} is {_show(column, place)}"))
                continue
            used.add(name)
            rounded = round_residue(rows)
            again = has[places] & (values[places] != rounded) & np.isfinite(rounded)
            for place in places[again].tolist():
                found.reasons.setdefault(place, (f"two values of {label}", f"{name} is {_show(column, place)}"))
            fresh = ~has[places] & np.isfinite(rounded)
            values[places[fresh]] = rounded[fresh]
            has[places[fresh]] = True
            tally.taken[label, name] += int(fresh.sum())
    return values, has


def round_residue(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest whole number of each value that is nearer to one than `RESIDUE`, and the other values."""
    return np.where(np.abs(values - np.round(values)) < RESIDUE, np.round(values) + 0.0, values)


def _from_voigt(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `[P,3,3]` of `[P,6]` numbers xx, yy, zz, yz, xz, xy."""
    xx, yy, zz, yz, xz, xy = rows.T
    return np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)


def _refuse_not_finite(found: FoundLabels, label: str, wrong: NDArray[np.bool_]) -> None:
    for place in np.flatnonzero(wrong).tolist():
        found.reasons.setdefault(place, (f"{label} not finite", ""))


def _value(column: Column, place: int) -> Any:
    return column.values[int(np.count_nonzero(column.has[:place]))]


def _show(column: Column, place: int) -> str:
    return " ".join(repr(_value(column, place)).split())[:60]


HINTS = (
    "energy",
    "force",
    "grad",
    "stress",
    "virial",
    "charge",
    "spin",
    "multiplicity",
    "dipole",
    "magmom",
    "polariz",
    "hessian",
)
"""Parts of names that look like labels."""


def _count_left(block: Block, used: set[str], tally: LabelTally) -> None:
    for key, column in (*block.info.items(), *block.arrays.items()):
        plain = key.lower()
        if key in used or key.startswith("ref_") or not any(word in plain for word in HINTS):
            continue
        if column.values.dtype.kind not in "biufO" or (
            column.values.dtype.kind == "O" and isinstance(column.values[0], str)
        ):
            continue
        shape = ("atom", *column.values.shape[1:]) if block.arrays.get(key) is column else column.values.shape[1:]
        tally.left[key, "x".join(str(n) for n in shape) or "number"] += int(column.has.sum())
