"""The inputs and outputs of exported models: names, shapes, dtypes, units, and the checks of given arrays.

Structures come as flat arrays plus a padded neighbour table, so that an artefact needs no neighbour search. The numbers
of structures S, atoms N, and places W and V are free. Arrays of atoms and structures follow the field registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.structures.fields import FIELDS

FORCES, ENERGY = "forces", "energy"
OUTPUTS = (FORCES, ENERGY)
"""Kinds of artefacts: everything, or energies alone."""


@dataclass(frozen=True)
class Slot:
    """One input or output of an artefact.

    Attributes
    ----------
    name, unit, doc : for people and for every format.
    axes : names of free axes, or fixed lengths, e.g. ("N", 3).
    dtype : numpy dtype; None stands for the artefact's working precision.
    """

    name: str
    axes: tuple[str | int, ...]
    dtype: np.dtype[Any] | None
    unit: str
    doc: str

    @property
    def symbol(self) -> str:
        """The shape as documented, e.g. `[N,3]`."""
        return "[" + ",".join(str(a) for a in self.axes) + "]"


def _slot_of_field(name: str) -> Slot:
    field = FIELDS[name]
    first = {"structure": "S", "atom": "N"}[field.axis]
    return Slot(name, (first, *field.trailing), field.dtype, field.unit, field.doc)


_INPUTS = (
    _slot_of_field("numbers"),
    _slot_of_field("positions"),
    _slot_of_field("cell"),
    Slot("structure", ("N",), np.dtype("int64"), "", "structure of each atom; atoms of a structure lie together"),
    Slot("neighbors", ("N", "W"), np.dtype("int64"), "", "row i: the atoms j with an edge to atom i; -1 where empty"),
    Slot("shifts", ("N", "W", 3), np.dtype("int32"), "", "cell translations: vec = pos[j] + shift @ cell - pos[i]"),
    Slot("head", ("S",), np.dtype("int64"), "", "index of the head (source) that each structure is evaluated for"),
)
_REVERSE = Slot(
    "reverse",
    ("N", "V"),
    np.dtype("int64"),
    "",
    "row j: places i * W + k of the table that atom j sends to; -1 where empty",
)


def inputs(*, charge_spin: bool, truncated: bool) -> tuple[Slot, ...]:
    """Return the inputs of an artefact, in order.

    charge_spin : the model is conditioned on charge and spin.
    truncated : the model keeps only the nearest neighbours, so its list is not symmetric and needs `reverse`.
    """
    state = (_slot_of_field("charge"), _slot_of_field("spin")) if charge_spin else ()
    return (*_INPUTS, *state, *((_REVERSE,) if truncated else ()))


def outputs(kind: str, *, conservative: bool, members: bool, shallow: bool = False) -> tuple[Slot, ...]:
    """Return the outputs of an artefact, in order; `members` adds the forces of each member.

    A shallow ensemble gives forces of the mean alone: without those of members, and without their spread.
    """
    if shallow and members:
        raise UsageError(
            "an export of a shallow ensemble gives the forces of the mean alone; leave --members out, or use the "
            "native backend"
        )
    f8 = np.dtype("float64")
    energies = (
        Slot("energy", ("S",), f8, "eV", "total energy: mean of the members, element references of the head included"),
        Slot("energy_std", ("S",), f8, "eV", "unbiased standard deviation over members; NaN with one member"),
        Slot("energy_members", ("K", "S"), f8, "eV", "total energy of each member"),
    )
    if kind == ENERGY:
        return energies
    forces: tuple[Slot, ...] = (
        Slot("forces", ("N", 3), None, "eV/Angstrom", "mean of the members"),
        Slot("forces_std", ("N", 3), None, "eV/Angstrom", "unbiased standard deviation over members, per component"),
    )
    if shallow:
        forces = forces[:1]
    virial = Slot("virial", ("S", 3, 3), f8, "eV", "derivative of the energy by strain; stress is virial / volume")
    every = Slot("forces_members", ("K", "N", 3), None, "eV/Angstrom", "forces of each member")
    return (*energies, *forces, *((virial,) if conservative else ()), *((every,) if members else ()))


def check_inputs(
    arrays: Mapping[str, Any], slots: tuple[Slot, ...], *, heads: int, max_number: int = 118
) -> dict[str, NDArray[Any]]:
    """Return the arrays in order, after checking names, dtypes, shapes, memory layout and the range of every index.

    Raises
    ------
    UsageError
        in one line with the array, the error and the allowed values.
    """
    wanted = [s.name for s in slots]
    lacking, odd = [n for n in wanted if n not in arrays], [n for n in arrays if n not in wanted]
    if lacking or odd:
        raise UsageError(
            f"inputs {', '.join(lacking + odd)}: {'missing' if lacking else 'unknown'}; "
            f"this model takes {', '.join(wanted)}"
        )
    found: dict[str, NDArray[Any]] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for slot in slots:
        array = arrays[slot.name]
        if not isinstance(array, np.ndarray):
            raise UsageError(f"{slot.name} is a {type(array).__name__}; give a numpy array {slot.symbol} {slot.dtype}")
        if array.dtype != slot.dtype:
            raise UsageError(f"{slot.name} is {array.dtype}; it must be {slot.dtype} (use .astype)")
        fits = array.ndim == len(slot.axes) and all(
            isinstance(a, str) or a == n for a, n in zip(slot.axes, array.shape, strict=True)
        )
        if not fits:
            raise UsageError(f"{slot.name} has shape {list(array.shape)}; it must be {slot.symbol}")
        for axis, size in zip(slot.axes, array.shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, (size, slot.name))[0] != size:
                other, where = sizes[axis]
                raise UsageError(f"{slot.name} has {axis} = {size}, but {where} has {axis} = {other}; they must agree")
        if not array.flags.c_contiguous:
            raise UsageError(f"{slot.name} is not contiguous in memory; use numpy.ascontiguousarray")
        found[slot.name] = array
    _check_values(found, {name: size for name, (size, _) in sizes.items()}, heads, max_number)
    return found


def _in_range(name: str, array: NDArray[Any], low: int, high: int, remedy: str) -> None:
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        bad = int(array.min()) if int(array.min()) < low else int(array.max())
        raise UsageError(f"{name} holds {bad}; allowed: {low} to {high} ({remedy})")


def _check_values(found: Mapping[str, NDArray[Any]], sizes: Mapping[str, int], heads: int, max_number: int) -> None:
    atoms, structures, places = sizes["N"], sizes["S"], sizes["W"]
    if places < 1:
        raise UsageError("neighbors has no places (W = 0); a table of atoms without neighbours has W = 1, all -1")
    _in_range("numbers", found["numbers"], 1, max_number, "atomic numbers of the table of elements")
    _in_range("structure", found["structure"], 0, structures - 1, "structures of `cell`")
    _in_range("neighbors", found["neighbors"], -1, atoms - 1, "atoms of this batch, or -1 for an empty place")
    _in_range("head", found["head"], 0, heads - 1, "heads of this ensemble")
    if atoms and (np.diff(found["structure"]) < 0).any():
        raise UsageError("structure is not sorted; atoms of one structure must lie together, structures in order")
    table = found["neighbors"]
    if places > 1 and ((table[:, 1:] >= 0) & (table[:, :-1] < 0)).any():
        raise UsageError("neighbors has an empty place (-1) before a full one; list the neighbours first in each row")
    if "reverse" in found:
        _in_range("reverse", found["reverse"], -1, atoms * places - 1, "places i * W + k of `neighbors`, or -1")
    home = found["structure"]
    full = table >= 0
    itself = (table == np.arange(atoms)[:, None]) & ~found["shifts"].any(axis=2)
    if itself.any():
        atom = int(np.argwhere(itself)[0, 0])
        raise UsageError(f"neighbors joins atom {atom} to itself without a shift; an atom's images have one")
    if atoms and (home[np.where(full, table, 0)] != home[:, None])[full].any():
        raise UsageError("neighbors joins atoms of two structures; indices count through the whole batch")
    if "reverse" in found:
        _check_reverse(found["reverse"], table)


def _check_reverse(reverse: NDArray[np.int64], table: NDArray[np.int64]) -> None:
    sender, place = np.nonzero(reverse >= 0)[0], reverse[reverse >= 0]
    flat = table.ravel()
    if not np.array_equal(np.sort(place), np.flatnonzero(flat >= 0)) or (flat[place] != sender).any():
        raise UsageError(
            "reverse does not list each full place of `neighbors` once, in the row of its sender; forces would be wrong"
        )


def check_symmetric(neighbors: NDArray[np.int64], shifts: NDArray[np.int32]) -> None:
    """Refuse a table in which an edge lacks its reverse, as in a list cut to the nearest neighbours.

    Compares the sum of a 64-bit hash over all edges with that over all reversed edges.

    Raises
    ------
    UsageError
        if they differ.
    """
    receiver, place = np.nonzero(neighbors >= 0)
    sender, shift = neighbors[receiver, place], shifts[receiver, place].astype(np.int64)
    forward = _hash(receiver, sender, shift)
    backward = _hash(sender, receiver, -shift)
    if forward != backward:
        raise UsageError(
            "neighbors is truncated: an edge lacks its reverse, and forces would be wrong; list every neighbour within "
            "the cutoff, or export a model trained with max_neighbors"
        )


def _hash(receiver: NDArray[np.int64], sender: NDArray[np.int64], shift: NDArray[np.int64]) -> int:
    total = np.zeros(len(receiver), np.uint64)
    with np.errstate(over="ignore"):
        for column in (receiver, sender, *shift.T):
            total = (total ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            total ^= total >> np.uint64(29)
        return int(total.sum(dtype=np.uint64))
