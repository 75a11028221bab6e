"""Why a structure has no result: one code per structure, found without disturbing its neighbours in the batch."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from atomsieve.graphs.limits import LARGEST_DEFECT, LONGEST_VECTOR, SHORTEST_VECTOR
from atomsieve.structures import StructureBatch
from atomsieve.structures.labels import RESIDUE

SHORTEST_DISTANCE = 0.1
"""Atoms closer than this (Angstrom) are taken to lie on one point."""


class Status(IntEnum):
    """Outcome for one structure; everything but OK has no numbers."""

    OK = 0
    NAN_INPUT = 1
    OVERLAPPING_ATOMS = 2
    UNSEEN_ELEMENT = 3
    TOO_LARGE = 4
    EMPTY = 5
    BAD_CELL = 6
    MISSING_CHARGE_OR_SPIN = 7
    NAN_OUTPUT = 8
    OUT_OF_MEMORY = 9
    CHARGE_NOT_MODELLED = 10
    BAD_GEOMETRY = 11
    POISONED = 12
    BAD_CHARGE_OR_SPIN = 13

    @classmethod
    def _missing_(cls, value: object) -> Status | None:
        """Return a code of a later version, as a server may give it, under a name made of its number."""
        if not isinstance(value, int | np.integer) or not 0 <= value < 256:
            return None
        found = int.__new__(cls, int(value))
        found._name_, found._value_ = f"STATUS_{value}", int(value)
        return found

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS.get(self, f"has the status {self.value}, which only a later version of AtomSieve can explain")


_MEANINGS = {
    Status.OK: "has a result",
    Status.NAN_INPUT: "positions or cell are not finite",
    Status.OVERLAPPING_ATOMS: f"two atoms are closer than {SHORTEST_DISTANCE} Angstrom",
    Status.UNSEEN_ELEMENT: "holds an element that the head was not trained on",
    Status.TOO_LARGE: "has more atoms than allowed",
    Status.EMPTY: "has no atoms",
    Status.BAD_CELL: "periodic, but its cell vectors are missing or dependent",
    Status.MISSING_CHARGE_OR_SPIN: "the model needs charge and spin multiplicity, and one is not given",
    Status.NAN_OUTPUT: "the model gave a number that is not finite",
    Status.OUT_OF_MEMORY: "does not fit into memory alone",
    Status.CHARGE_NOT_MODELLED: "has a charge or a spin multiplicity above 1 that the model does not take into account",
    Status.BAD_GEOMETRY: "has no neighbour list: absurdly dense, or atoms absurdly far apart",
    Status.POISONED: "was not computed: its chunk ended its process again and again",
    Status.BAD_CHARGE_OR_SPIN: "has a spin multiplicity that is no whole number of 1 or more (0 usually stands for one "
    "that was not stated), or more charge or spin than it has electrons",
}


def any_atom(batch: StructureBatch, flag: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask [S] of the structures of which any atom has the flag [N]."""
    out = np.zeros(batch.n_structures, bool)
    filled = batch.counts > 0
    if filled.any():
        out[filled] = np.logical_or.reduceat(flag, batch.ptr[:-1][filled])
    return out


def find_bad_cells(batch: StructureBatch) -> NDArray[np.bool_]:
    """Return a mask [S] of periodic structures whose vectors are too short, absurdly long, or linearly dependent."""
    lengths = np.linalg.norm(batch.cell, axis=2)
    absurd = (batch.pbc & ~((lengths >= SHORTEST_VECTOR) & (lengths <= LONGEST_VECTOR))).any(1)
    pair = batch.pbc[:, :, None] & batch.pbc[:, None, :]
    safe = np.where(lengths > 0, lengths, 1.0)
    unit = batch.cell / safe[:, :, None]
    gram = np.where(pair, unit @ unit.transpose(0, 2, 1), np.eye(3))
    volume = np.sqrt(np.maximum(np.linalg.det(gram), 0.0))
    return absurd | (batch.pbc.any(1) & ~(volume * LARGEST_DEFECT > 1.0))


def check_inputs(
    batch: StructureBatch,
    seen: NDArray[np.bool_],
    *,
    charge_spin: bool,
    impossible: NDArray[np.bool_] | None = None,
    max_atoms: int | None,
) -> NDArray[np.uint8]:
    """Return the status [S] of structures, as far as it is known before the neighbour list is built.

    seen : [256] bool, the elements of the head.
    charge_spin : the model is conditioned on charge and spin.
    impossible : [S], structures whose charge or spin such a model does not take.
    """
    status = np.zeros(batch.n_structures, np.uint8)
    charge = np.full(len(batch), np.nan, np.float32) if batch.charge is None else batch.charge
    spin = np.full(len(batch), np.nan, np.float32) if batch.spin is None else batch.spin
    if charge_spin:
        if impossible is not None:
            status[impossible] = Status.BAD_CHARGE_OR_SPIN
        status[np.isnan(charge) | np.isnan(spin)] = Status.MISSING_CHARGE_OR_SPIN
    else:
        charged = ~np.isnan(charge) & (np.abs(charge) > RESIDUE)
        status[charged | (spin > 1)] = Status.CHARGE_NOT_MODELLED
    status[any_atom(batch, ~seen[batch.numbers])] = Status.UNSEEN_ELEMENT
    finite = np.isfinite(batch.cell).all((1, 2))
    with np.errstate(invalid="ignore"):
        status[find_bad_cells(batch)] = Status.BAD_CELL
    status[~finite | any_atom(batch, ~np.isfinite(batch.positions).all(1))] = Status.NAN_INPUT
    if max_atoms is not None:
        status[batch.counts > max_atoms] = Status.TOO_LARGE
    status[batch.counts == 0] = Status.EMPTY
    return status
