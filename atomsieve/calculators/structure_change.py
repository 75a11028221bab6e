"""What a relaxation did to structures: cell, displacements, bonds, fragments and empty space, before and after.

Bonds are pairs of atoms closer than `BOND` times the sum of their covalent radii (Cordero et al., Dalton Trans. 2832
(2008), as in ASE). A bond of the start is lost when it is longer than `LOST` times the sum: lengths between the two
are neither, so that a bond at the limit is not lost by a thousandth of an Angstrom.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from atomsieve.graphs import neighbor_list
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.radii import BOND, RADII

Array = NDArray[np.float64]
LOST = 1.5
"""A bond of the start is lost when it is longer than this times the sum of covalent radii."""


@dataclass(frozen=True)
class BondList:
    """Bonds of S structures with N atoms, both directions of each.

    Attributes
    ----------
    sender, receiver : [B] int64, atoms of the batch. shift : [B,3], cell translations of the sender, as in
        `atomsieve.graphs.NeighborList`. ratio : [B], length over the sum of covalent radii. atoms : N.
    """

    sender: NDArray[np.int64]
    receiver: NDArray[np.int64]
    shift: NDArray[np.int32]
    ratio: Array
    atoms: int

    def measure(self, batch: StructureBatch) -> Array:
        """Return the lengths of the same bonds in another geometry of the same atoms, over the sums of radii, [B]."""
        positions, home = np.asarray(batch.positions, np.float64), batch.structure_of_atom
        reach = np.einsum("bi,bij->bj", self.shift.astype(np.float64), batch.cell[home[self.receiver]])
        length = np.linalg.norm(positions[self.sender] + reach - positions[self.receiver], axis=1)
        return np.asarray(length / (RADII[batch.numbers[self.sender]] + RADII[batch.numbers[self.receiver]]))

    def label_fragments(self, kept: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return a number for each atom [N], the same for atoms that bonds (those `kept`, [B]) connect."""
        one, two = (self.sender, self.receiver) if kept is None else (self.sender[kept], self.receiver[kept])
        matrix = coo_matrix((np.ones(len(one), np.int8), (one, two)), shape=(self.atoms, self.atoms))
        return np.asarray(connected_components(matrix, directed=False)[1], np.int64)


def list_bonds(batch: StructureBatch, within: float = BOND) -> BondList:
    """Return the pairs closer than `within` times the sum of their covalent radii; the batch must be sound."""
    if not batch.n_atoms:
        none = np.zeros(0, np.int64)
        return BondList(none, none, np.zeros((0, 3), np.int32), np.zeros(0), 0)
    found = neighbor_list(batch, float(2 * within * RADII[batch.numbers].max()))
    sender, receiver, shift = (t.numpy() for t in (found.sender, found.receiver, found.shift))
    ratio = BondList(sender, receiver, shift, np.zeros(0), batch.n_atoms).measure(batch)
    near = ratio < within
    return BondList(sender[near], receiver[near], shift[near], ratio[near], batch.n_atoms)


@dataclass(frozen=True)
class StructureChange:
    """How S structures differ from what they were; NaN where a value has no meaning, or there is no result.

    Attributes
    ----------
    volume_ratio : [S], volume of the cell over that before; NaN unless periodic along all three vectors.
    strain : [S], change of the cell's shape: the largest principal logarithmic strain, without its volume part.
    moved : [S] Angstrom, largest displacement of an atom beyond the deformation of its cell and the mean.
    bonds_kept : [S], share of the bonds before that are not lost; 1 without bonds.
    bonds_formed : [S], bonds now between atoms farther apart than `LOST` before, over the bonds before (at least 1).
    coordination, coordination_before : [S], mean number of bonds of an atom.
    contact, contact_before : [S], shortest distance over the sum of covalent radii, NaN beyond `LOST`.
    fragments, fragments_before : [S], groups of atoms that bonds connect. Now, bonds of the start count until lost.
    gap, gap_before : [S] Angstrom, thickest layer parallel to a face of the cell without centres of atoms; NaN unless
        periodic.
    """

    volume_ratio: Array
    strain: Array
    moved: Array
    bonds_kept: Array
    bonds_formed: Array
    coordination_before: Array
    coordination: Array
    contact_before: Array
    contact: Array
    fragments_before: Array
    fragments: Array
    gap_before: Array
    gap: Array

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def measure_change(start: StructureBatch, after: StructureBatch, known: NDArray[np.bool_]) -> StructureChange:
    """Compare structures [S] with what they were; values of structures that are not `known` [S] are NaN.

    Both geometries of the `known` structures must be sound, as those are that had a result.
    """
    out = {f.name: np.full(len(start), np.nan) for f in fields(StructureChange)}
    chosen = np.flatnonzero(known & (start.counts > 0))
    if len(chosen):
        found = _measure_sound(start.take(chosen), after.take(chosen))
        for name, values in found.items():
            out[name][chosen] = values
    return StructureChange(**out)


def _measure_sound(start: StructureBatch, after: StructureBatch) -> dict[str, Array]:
    many, home, counts = len(start), start.structure_of_atom, start.counts
    before, now = list_bonds(start, LOST), list_bonds(after, LOST)
    then, since = before.measure(after), now.measure(start)
    old, new = before.ratio < BOND, now.ratio < BOND
    held = old & (then < LOST)

    def count(bonds: BondList, chosen: NDArray[np.bool_]) -> Array:
        return np.bincount(home[bonds.receiver[chosen]], minlength=many).astype(np.float64)

    first = count(before, old)
    return {
        "volume_ratio": measure_volume_ratio(start, after),
        "strain": measure_shape_strain(start, after),
        "moved": measure_displacement(start, after),
        "bonds_kept": np.where(first > 0, count(before, held) / np.maximum(first, 1), 1.0),
        "bonds_formed": count(now, new & (since >= LOST)) / np.maximum(first, 1),
        "coordination_before": first / counts,
        "coordination": count(now, new) / counts,
        "contact_before": _closest(before, home, many),
        "contact": _closest(now, home, many),
        "fragments_before": _count_fragments(before.label_fragments(old), home, many),
        "fragments": _count_fragments(_join(before, held, now, new).label_fragments(), home, many),
        "gap_before": measure_gap(start),
        "gap": measure_gap(after),
    }


def _join(one: BondList, of_one: NDArray[np.bool_], two: BondList, of_two: NDArray[np.bool_]) -> BondList:
    """Return chosen bonds of two lists of the same atoms as one list; some may be in it twice."""

    def join(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(one, name)[of_one], getattr(two, name)[of_two]])

    return BondList(join("sender"), join("receiver"), join("shift"), join("ratio"), one.atoms)


def _closest(bonds: BondList, home: NDArray[np.int64], many: int) -> Array:
    out = np.full(many, np.inf)
    np.minimum.at(out, home[bonds.receiver], bonds.ratio)
    return np.where(np.isfinite(out), out, np.nan)


def _count_fragments(label: NDArray[np.int64], home: NDArray[np.int64], many: int) -> Array:
    first = np.unique(label, return_index=True)[1]  # each fragment lies in one structure
    return np.bincount(home[first], minlength=many).astype(np.float64)


def _deform(start: StructureBatch, after: StructureBatch) -> tuple[NDArray[np.bool_], Array]:
    """Return which structures are periodic along all three vectors [S], and start's cell to after's as F [S,3,3]."""
    periodic = np.asarray(start.pbc.all(1))
    unit = np.eye(3)
    cells = np.where(periodic[:, None, None], start.cell, unit)
    sound = periodic & (np.abs(np.linalg.det(cells)) > 0)
    cells = np.where(sound[:, None, None], start.cell, unit)
    return sound, np.linalg.solve(cells, np.where(sound[:, None, None], after.cell, unit))


def measure_volume_ratio(start: StructureBatch, after: StructureBatch) -> Array:
    """Return the volume over that before [S]; NaN unless periodic along all three vectors."""
    periodic, deformation = _deform(start, after)
    return np.where(periodic, np.abs(np.linalg.det(deformation)), np.nan)


def measure_shape_strain(start: StructureBatch, after: StructureBatch) -> Array:
    """Return the largest principal Hencky strain of the cells without its volume part [S]; NaN unless periodic.

    With F the deformation, the principal strains are half the logarithms of the eigenvalues of F F^T.
    """
    periodic, deformation = _deform(start, after)
    square = np.linalg.eigvalsh(deformation @ deformation.swapaxes(1, 2))
    principal = 0.5 * np.log(np.maximum(square, 1e-300))
    return np.where(periodic, np.abs(principal - principal.mean(1, keepdims=True)).max(1), np.nan)


def measure_displacement(start: StructureBatch, after: StructureBatch) -> Array:
    """Return the largest displacement of an atom [S], Angstrom, beyond the deformation of its cell and the mean."""
    strain = _deform(start, after)[1]
    home = start.structure_of_atom
    gone = after.positions - np.einsum("ni,nij->nj", np.asarray(start.positions, np.float64), strain[home])
    out, filled = np.zeros(len(start)), start.counts > 0
    if filled.any():
        first = start.ptr[:-1][filled]
        gone = gone - np.repeat(np.add.reduceat(gone, first) / start.counts[filled, None], start.counts[filled], axis=0)
        out[filled] = np.maximum.reduceat(np.linalg.norm(gone, axis=1), first)
    return out


def measure_gap(batch: StructureBatch) -> Array:
    """Return the thickest layer without centres of atoms parallel to a face of the cell [S], Angstrom.

    NaN unless periodic along all three vectors. The layer may cross the boundary of the cell.
    """
    periodic = np.asarray(batch.pbc.all(1)) & (np.abs(np.linalg.det(batch.cell)) > 0) & (batch.counts > 0)
    dual = np.linalg.inv(np.where(periodic[:, None, None], batch.cell, np.eye(3)))
    home, out = batch.structure_of_atom, np.zeros(len(batch))
    place = np.einsum("ni,nij->nj", np.asarray(batch.positions, np.float64), dual[home]) % 1.0
    filled = batch.counts > 0
    first, last = batch.ptr[:-1][filled], batch.ptr[1:][filled] - 1
    for axis in range(3):
        order = np.lexsort((place[:, axis], home))
        own = place[order, axis]
        apart = np.diff(own, append=0.0)
        apart[last] = own[first] + 1.0 - own[last]  # round the boundary
        widest = np.zeros(len(batch))
        if filled.any():
            widest[filled] = np.maximum.reduceat(apart, first)
        height = 1.0 / np.linalg.norm(dual[:, :, axis], axis=1)
        out = np.maximum(out, widest * height)
    return np.where(periodic, out, np.nan)
