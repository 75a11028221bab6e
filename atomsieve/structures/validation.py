"""Turns items from files into batches: finds the labels, validates every structure, counts the rejected by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, nearest
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import FIELDS, LABELS
from atomsieve.structures.item import BadItem, Item

HEAVIEST = 118


@dataclass(frozen=True)
class LabelKeys:
    """Where the labels are found in a file.

    Attributes
    ----------
    energy, forces, stress : names of the total energy (eV), forces (eV/Angstrom) and stress (eV/Angstrom^3, ASE sign).
    charge, spin : names of the total charge and the multiplicity.
    id : name of an integer identity; None numbers the structures in the order of the input.
    none : leave all labels out.
    """

    energy: str = "energy"
    forces: str = "forces"
    stress: str = "stress"
    charge: str = "charge"
    spin: str = "spin"
    id: str | None = None
    none: bool = False


@dataclass
class ValidItem:
    """A valid structure, with its labels in the shapes of the field registry."""

    item: Item
    index: int
    values: dict[str, Any]
    head: int = -1


@dataclass
class ConversionCounts:
    """Counts of a conversion: items read, rejected items by reason with the first place of each, labels, keys seen."""

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)

    def skip(self, bad: BadItem) -> None:
        """Count one structure that is left out."""
        self.skipped[bad.reason] += 1
        self.first.setdefault(bad.reason, bad.where)


class ItemValidator:
    """Validates items one by one: the `ValidItem`, or None after counting the reason.

    With `keep_bad`, structures with positions, cells or atom counts that no model accepts are kept, so that a screening
    lists them; labels that are not finite are never kept. `charge` and `spin` are for structures that state none.
    """

    def __init__(
        self, keys: LabelKeys, *, keep_bad: bool = False, charge: float | None = None, spin: float | None = None
    ) -> None:
        self.keys = keys
        self.keep_bad = keep_bad
        self.default = {"charge": charge, "spin": spin}
        self.tally = ConversionCounts()

    def __call__(self, item: Item | BadItem) -> ValidItem | None:
        """Return the validated item, or None after counting why it is left out."""
        index = self.tally.read
        self.tally.read += 1
        if isinstance(item, Item):
            if index < 1000:
                self.tally.keys.update(item.info, item.labels, item.arrays)
            reason = self._check_geometry(item)
            found = BadItem(reason, item.where) if reason else self._read_labels(item, index)
        else:
            found = item
        if isinstance(found, BadItem):
            self.tally.skip(found)
            return None
        for name in LABELS:
            self.tally.labels[name] += name in found.values
        return found

    def _check_geometry(self, item: Item) -> str:
        """Return why the structure cannot be used, or an empty string."""
        count = len(item.numbers)
        if item.positions.shape != (count, 3):
            return "positions do not fit the number of atoms"
        if count and (int(np.min(item.numbers)) < 1 or int(np.max(item.numbers)) > HEAVIEST):
            return f"an atomic number outside 1..{HEAVIEST}"
        if self.keep_bad:
            return ""
        if not count:
            return "no atoms"
        if not (np.isfinite(item.positions).all() and np.isfinite(item.cell).all()):
            return "positions or cell are not finite"
        if item.pbc.any() and not np.linalg.norm(item.cell[item.pbc], axis=1).all():
            return "periodic along an axis without a lattice vector"
        return ""

    def _read_labels(self, item: Item, index: int) -> ValidItem | BadItem:
        values: dict[str, Any] = {}
        try:
            for name, keys in (("charge", (self.keys.charge,)), ("spin", (self.keys.spin, "multiplicity"))):
                given = next((v for key in keys if (v := item.find(key)) is not None), self.default[name])
                if given is not None:
                    values[name] = np.float32(_to_scalar(given))
        except (TypeError, ValueError):
            return BadItem(f"{name} is not a number", item.where)
        if not self.keys.none:
            for name in LABELS:
                found = item.find(getattr(self.keys, name))
                if found is None:
                    continue
                try:
                    values[name] = _to_label_shape(name, found, len(item.numbers))
                except (TypeError, ValueError):
                    return BadItem(f"{name} of the wrong shape", item.where)
                if not np.isfinite(values[name]).all():
                    return BadItem(f"{name} not finite", item.where)
        return ValidItem(item, self._id(item, index), values)

    def _id(self, item: Item, index: int) -> int:
        if self.keys.id is None:
            return index
        given = item.find(self.keys.id)
        try:
            return int(str(given))
        except ValueError:
            raise DataError(
                f"{item.where}: {self.keys.id!r} must be an integer to serve as id, got {given!r}; without --id-key "
                "the structures are numbered"
            ) from None

    def check_keys(self) -> None:
        """Raise if a key that was asked for was in no structure.

        Raises
        ------
        UsageError
            naming the nearest key that was there.
        """
        if self.keys.none or not self.tally.read:
            return
        for name in LABELS:
            key = getattr(self.keys, name)
            if key != name and key not in self.tally.keys and not self.tally.labels[name]:
                seen = ", ".join(sorted(self.tally.keys)[:20])
                raise UsageError(f"no structure has {key!r}{nearest(key, self.tally.keys)}; the keys there: {seen}")


def _to_scalar(value: Any) -> float:
    return float(np.asarray(value, np.float64).reshape(()))


def _to_label_shape(name: str, value: Any, count: int) -> NDArray[np.float64]:
    """Return a label in the shape of one structure; a stress may come as 6 Voigt numbers (xx, yy, zz, yz, xz, xy)."""
    array = np.asarray(value, np.float64)
    if name == "energy":
        return array.reshape(1)
    if name == "forces":
        if array.shape != (count, 3):
            raise ValueError("forces")
        return array
    if array.size == 6:
        xx, yy, zz, yz, xz, xy = array.reshape(6)
        array = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return array.reshape(1, 3, 3)


def build_batch(items: Iterable[ValidItem]) -> StructureBatch:
    """Return structures that passed as one batch."""
    rows = list(items)
    if not rows:
        return StructureBatch.empty()
    counts = np.array([len(row.item.numbers) for row in rows], np.int64)
    out: dict[str, Any] = {
        "ptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "numbers": np.concatenate([row.item.numbers for row in rows]).astype(np.uint8),
        "positions": np.concatenate([row.item.positions for row in rows]).astype(np.float64),
        "cell": np.stack([row.item.cell for row in rows]).astype(np.float64),
        "pbc": np.stack([row.item.pbc for row in rows]).astype(bool),
        "id": np.array([row.index for row in rows], np.int64),
    }
    if any(row.head >= 0 for row in rows):
        out["head"] = np.array([row.head for row in rows], np.int32)
    for name in ("charge", "spin"):
        if any(name in row.values for row in rows):
            out[name] = np.array([row.values.get(name, np.nan) for row in rows], np.float32)
    for name in LABELS:
        if not any(name in row.values for row in rows):
            continue
        field_of = FIELDS[name]
        out[name] = np.concatenate(
            [
                row.values[name] if name in row.values else np.full(field_of.shape(1, len(row.item.numbers)), np.nan)
                for row in rows
            ]
        )
        out[f"has_{name}"] = np.array([name in row.values for row in rows])
    return StructureBatch(**out)
