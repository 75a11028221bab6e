"""Turns blocks of structures from files into batches: takes labels, checks everything, counts the rejected."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, nearest
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.block import Block, Column
from atomsieve.structures.conversion.carry import CarryTally
from atomsieve.structures.conversion.references import count_free_atoms, encode_references, find_free_atoms
from atomsieve.structures.fields import LABELS
from atomsieve.structures.item import BadItem
from atomsieve.structures.labels import FoundLabels, LabelKeys, LabelTally, Reasons, find_labels
from atomsieve.structures.units import Units

HEAVIEST = 118
SKIPPED_KEPT = 10_000
KEYS_KEPT = 1000
DEPENDENT = 1e-14
"""Lattice vectors are linearly dependent if the square of the volume that their directions span is not above this."""


@dataclass
class ConversionCounts:
    """Counts of a conversion.

    Attributes
    ----------
    read : structures read, whole or not.
    skipped : rejected structures by reason; `first` is the place of the first of each, with its detail; `places` are
        place, reason and detail of the first `SKIPPED_KEPT` of all.
    labels : structures by label that they have; by `charge` and `spin` those that state one, where any does.
    keys : names of all that structures state (of the first thousands of names).
    found : keys from which labels were taken, and those that were left.
    notes : structures by what their reader did or noticed beside taking them.
    free_atoms : single free atoms by element.
    references : of those that were taken as element references, by source, element and energy (eV).
    carried : values that were carried beside the structures.
    """

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    places: list[tuple[str, str, str]] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    found: LabelTally = field(default_factory=LabelTally)
    notes: Counter[str] = field(default_factory=Counter)
    free_atoms: Counter[str] = field(default_factory=Counter)
    references: Counter[tuple[str, str, float]] = field(default_factory=Counter)
    carried: CarryTally = field(default_factory=CarryTally)

    def merge(self, other: ConversionCounts) -> None:
        """Add the counts of another part of the input, which comes after this one."""
        self.read += other.read
        self.skipped.update(other.skipped)
        self.first.update({reason: place for reason, place in other.first.items() if reason not in self.first})
        self.places += other.places[: max(0, SKIPPED_KEPT - len(self.places))]
        self.labels.update(other.labels)
        self.keys |= other.keys
        self.found.merge(other.found)
        self.notes.update(other.notes)
        self.free_atoms.update(other.free_atoms)
        self.references.update(other.references)
        self.carried.merge(other.carried)

    def manifest_notes(self) -> dict[str, str]:
        """Return what the manifest of a dataset records: keys and units of the labels, and element references."""
        return {**self.found.manifest_notes(), **encode_references(self.references)}

    def skip(self, bad: BadItem) -> None:
        """Count one structure that is left out."""
        self.skipped[bad.reason] += 1
        self.first.setdefault(bad.reason, f"{bad.where}: {bad.detail}" if bad.detail else bad.where)
        if len(self.places) < SKIPPED_KEPT:
            self.places.append((bad.where, bad.reason, bad.detail))


@dataclass
class ValidBlock:
    """The valid structures of a block.

    Attributes
    ----------
    batch : they, with their labels, in this package's units; ids are given or the places in the input.
    block, kept : the block they come from, and their places in it `[V]`.
    free : `[V]`, True for single free atoms.
    """

    batch: StructureBatch
    block: Block
    kept: NDArray[np.int64]
    free: NDArray[np.bool_]

    def values_of(self, key: str) -> list[Any]:
        """Return what each structure states under a key, of the structure itself; None where it does not."""
        column = self.block.info.get(key)
        if column is None:
            return [None] * len(self.kept)
        values = column.spread() if not column.numeric else _as_objects(column)
        return [values[k] for k in self.kept.tolist()]


def _as_objects(column: Column) -> NDArray[Any]:
    out = np.full(len(column.has), None, object)
    out[column.has] = [value if np.ndim(value) else value.item() for value in column.values]
    return out


class BlockValidator:
    """Validates blocks one after another: the valid structures of each; the others are counted by reason.

    With `keep_bad`, structures with positions, cells or atom counts that no model accepts are kept, so that a screening
    lists them; labels that are not finite are never kept. `charge` and `spin` are for structures that state none,
    `units` go before those that files state; without `ask_units`, numbers whose unit nobody states are looked at as if
    they were in this package's. Structures are numbered from `first` on.
    """

    def __init__(
        self,
        keys: LabelKeys,
        *,
        units: Units | None = None,
        keep_bad: bool = False,
        charge: float | None = None,
        spin: float | None = None,
        ask_units: bool = True,
    ) -> None:
        self.keys = keys
        self.ask_units = ask_units
        self.units = units or Units()
        self.keep_bad = keep_bad
        self.default = {"charge": charge, "spin": spin}
        self.tally = ConversionCounts()

    def __call__(self, block: Block) -> ValidBlock:
        """Return the valid structures, after counting why the others are left out.

        Raises
        ------
        UsageError
            if neither the user nor the file states the unit of something that is taken, and the format leaves it open.
        """
        if len(self.tally.keys) < KEYS_KEPT:
            self.tally.keys.update(block.info, block.arrays)
        self.tally.notes.update(block.notes)
        reasons = _check_geometry(block, self.keep_bad)
        found = find_labels(block, self.keys, self.units, self.tally.found)
        if self.ask_units and block.units.needed and len(block):
            self.units.over(block.units).require({"length", *found.values}, block.places[0])
        free = find_free_atoms(block, self.units.over(block.units).factor("length"))
        count_free_atoms(block, free, self.tally.free_atoms)
        for place, why in found.reasons.items():
            reasons.setdefault(place, why)
        self._count(block, reasons)
        kept = np.ones(len(block), bool)
        kept[list(reasons)] = False
        ids = self.tally.read + block.ordinals if self.keys.id is None else _read_ids(block, self.keys.id, kept)
        self.tally.read += block.read
        batch = self._build(block, found, ids)
        batch = batch if kept.all() else batch.take(np.flatnonzero(kept))
        for name in LABELS:
            has = getattr(batch, f"has_{name}")
            self.tally.labels[name] += 0 if has is None else int(has.sum())
        for name in ("charge", "spin"):
            if name in found.has:
                self.tally.labels[name] += int(found.has[name][kept].sum())
        return ValidBlock(batch, block, np.flatnonzero(kept), free[kept])

    def _count(self, block: Block, reasons: Reasons) -> None:
        """Count the structures left out, in the order of the file."""
        ordinals = block.ordinals
        wrong = [(int(ordinals[s]), BadItem(why, block.places[s], detail)) for s, (why, detail) in reasons.items()]
        for _, bad in sorted([*wrong, *block.bad], key=lambda row: row[0]):
            self.tally.skip(bad)

    def _build(self, block: Block, found: FoundLabels, ids: NDArray[np.int64]) -> StructureBatch:
        scale = self.units.over(block.units).factor("length")
        positions, cell = block.positions, block.cell
        if scale != 1.0:
            positions, cell = positions * scale, cell * scale
        arrays: dict[str, Any] = {
            "ptr": block.ptr,
            "numbers": np.clip(block.numbers, 0, 255).astype(np.uint8),
            "positions": positions,
            "cell": cell,
            "pbc": block.pbc,
            "id": ids,
        }
        for name, default in self.default.items():
            values = found.values.get(name)
            if values is None and default is None:
                continue
            values = np.full(len(block), np.nan) if values is None else values
            if default is not None:
                values = np.where(np.isnan(values), default, values)
            arrays[name] = values.astype(np.float32)
        for name in LABELS:
            if name in found.values:
                arrays[name], arrays[f"has_{name}"] = found.values[name], found.has[name]
        return StructureBatch(**arrays)

    def check_keys(self) -> None:
        """Raise if a key that was asked for was in no structure.

        Raises
        ------
        UsageError
            naming the nearest key that was there.
        """
        if not self.tally.read:
            return
        labels = () if self.keys.none else ("energy", "forces", "stress", "virial")
        for name in (*labels, "charge", "spin"):
            key = getattr(self.keys, name)
            if key is not None and key not in self.tally.keys:
                seen = ", ".join(sorted(self.tally.keys)[:20])
                raise UsageError(f"no structure has {key!r}{nearest(key, self.tally.keys)}; the keys there: {seen}")


def _check_geometry(block: Block, keep_bad: bool) -> Reasons:
    """Return why structures cannot be used."""
    reasons: Reasons = {}

    def refuse(wrong: NDArray[np.bool_], reason: str) -> None:
        for place in np.flatnonzero(wrong).tolist():
            reasons.setdefault(place, (reason, ""))

    def of_atoms(wrong: Any) -> NDArray[np.bool_]:
        out = np.zeros(len(block), bool)
        if wrong.any():
            out[np.repeat(np.arange(len(block)), block.counts)[wrong]] = True
        return out

    unknown = (block.numbers < 1) | (block.numbers > HEAVIEST)
    refuse(of_atoms(unknown), f"an atomic number outside 1..{HEAVIEST}")
    if keep_bad:
        return reasons
    refuse(np.asarray(block.counts == 0), "no atoms")
    positions, cell = np.isfinite(block.positions), np.isfinite(block.cell)
    if not (positions.all() and cell.all()):
        wrong = of_atoms(~positions.all(axis=1)) | ~cell.all(axis=(1, 2))
        refuse(wrong, "positions or cell are not finite")
    flat = ~block.cell.any(axis=2) & block.pbc
    refuse(np.asarray(flat.any(axis=1)), "periodic along an axis without a lattice vector")
    refuse(_find_dependent_vectors(block.cell, block.pbc), "periodic along lattice vectors that are linearly dependent")
    return reasons


def _find_dependent_vectors(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return `[S]`: True where the lattice vectors along the periodic axes are linearly dependent."""
    with np.errstate(invalid="ignore", over="ignore"):
        x, y, z = cell[:, :, 0], cell[:, :, 1], cell[:, :, 2]
        volume = (  # a . (b x c), by columns: a determinant of each matrix takes longer than all other checks
            x[:, 0] * (y[:, 1] * z[:, 2] - z[:, 1] * y[:, 2])
            + y[:, 0] * (z[:, 1] * x[:, 2] - x[:, 1] * z[:, 2])
            + z[:, 0] * (x[:, 1] * y[:, 2] - y[:, 1] * x[:, 2])
        )
        squares = x * x + y * y + z * z
        out = volume * volume <= DEPENDENT * squares[:, 0] * squares[:, 1] * squares[:, 2]
        for s in np.flatnonzero(out).tolist():  # no volume: do the vectors along periodic axes alone span something?
            on = cell[s][pbc[s]]
            on = on / np.maximum(np.linalg.norm(on, axis=1, keepdims=True), np.finfo(float).tiny)
            out[s] = len(on) > 1 and np.linalg.det(on @ on.T) <= DEPENDENT
    return np.asarray(out)


def _read_ids(block: Block, key: str, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the integer identity of each structure.

    Raises
    ------
    DataError
        if a structure that is kept has none.
    """
    column = block.info.get(key)
    out = np.zeros(len(block), np.int64)
    values = (
        np.full(len(block), None, object)
        if column is None
        else _as_objects(column)
        if column.numeric
        else column.spread()
    )
    for place in np.flatnonzero(kept).tolist():
        value = values[place]
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # beside a number that is none
            value = int(value)
        try:
            out[place] = int(str(value))
        except (ValueError, OverflowError):
            raise DataError(
                f"{block.places[place]}: {key!r} must be an integer from -2^63 to 2^63 - 1 to serve as id, got "
                f"{value!r}; --carry {key} keeps such ids as texts, and the structures are numbered"
            ) from None
    return out
