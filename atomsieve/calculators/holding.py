"""What a relaxation holds fast: symmetry of the start, atoms, and directions of the cell, as projections of the forces.

A symmetrised force is the mean over the operations of the space group, f(i') <- R f(i), where operation R takes atom i
to i'; the strain likewise, R L R^T. An optimiser whose steps are sums of forces keeps what the forces keep. So does
`ase.constraints.FixSymmetry`; but the start is not refined here, it stays as symmetric as it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import block_diag, csr_matrix

from atomsieve.errors import UsageError
from atomsieve.structures import StructureBatch

Array = NDArray[np.float64]
SYMPREC = 0.01
"""Angstrom within which the start counts as symmetric."""


@dataclass(frozen=True)
class Holding:
    """Projections of the forces on N atoms and of the cell forces of S structures; None holds nothing.

    Attributes
    ----------
    atoms : [3N,3N] sparse, without elements between structures. cells : [S,9,9].
    """

    atoms: Any = None
    cells: Array | None = None

    def take(self, structures: NDArray[np.int64], atoms: NDArray[np.int64]) -> Holding:
        """Return the projections of some structures, whose atoms are `atoms`."""
        rows = (3 * atoms[:, None] + np.arange(3)).ravel()
        own = None if self.atoms is None else self.atoms[rows][:, rows]
        return Holding(own, None if self.cells is None else self.cells[structures])

    def hold_forces(self, forces: Array) -> Array:
        """Return the forces [N,3] that are left."""
        return forces if self.atoms is None else np.asarray(self.atoms @ forces.ravel()).reshape(-1, 3)

    def hold_cells(self, forces: Array) -> Array:
        """Return the symmetric cell forces [S,3,3] that are left."""
        if self.cells is None:
            return forces
        return np.einsum("sij,sj->si", self.cells, forces.reshape(-1, 9)).reshape(-1, 3, 3)


def hold_symmetry(batch: StructureBatch, symprec: float = SYMPREC) -> Holding:
    """Return the projections that keep the space group of every periodic structure; others are free."""
    blocks, cells = [], np.tile(np.eye(9), (len(batch), 1, 1))
    for s in range(len(batch)):
        rotations, goals = _find_operations(batch.slice(s, s + 1), symprec)
        blocks.append(_average_rotations(rotations, goals))
        cells[s] = np.mean([np.kron(r, r) for r in rotations], axis=0)
    return Holding(csr_matrix(block_diag(blocks)) if blocks else None, cells)


def _average_rotations(rotations: Array, goals: NDArray[np.int64]) -> csr_matrix:
    """Return the mean over operations [3n,3n]; rotations : [G,3,3]. goals : [G,n], where each atom goes."""
    many = goals.shape[1]
    here = np.arange(many)
    row = (3 * goals[:, :, None, None] + np.arange(3)[:, None]) + np.zeros((1, 1, 1, 3), np.int64)
    column = (3 * here[None, :, None, None] + np.arange(3)) + np.zeros_like(row)
    value = np.broadcast_to(rotations[:, None], row.shape) / len(rotations)
    return csr_matrix((value.ravel(), (row.ravel(), column.ravel())), shape=(3 * many, 3 * many))


def _find_operations(structure: StructureBatch, symprec: float) -> tuple[Array, NDArray[np.int64]]:
    """Return Cartesian rotations [G,3,3] of a crystal's space group, and the atom to which each takes each [G,n]."""
    import spglib

    many, nothing = structure.n_atoms, (np.eye(3)[None], np.arange(structure.n_atoms)[None])
    cell, positions = structure.cell[0], np.asarray(structure.positions, np.float64)
    sound = structure.pbc.all() and np.isfinite(positions).all() and np.isfinite(cell).all()
    if not many or not sound or abs(np.linalg.det(cell)) < 1e-9:
        return nothing
    place = positions @ np.linalg.inv(cell)
    try:
        given: Any = (cell, place, structure.numbers.astype(int))
        found: Any = spglib.get_symmetry(given, symprec=symprec)
    except spglib.SpglibError:  # newer versions raise where older ones return None
        found = None
    if found is None:
        return nothing
    goals = []
    for rotation, shift in zip(found["rotations"], found["translations"], strict=True):
        apart = place[None] - (place @ rotation.T + shift)[:, None]
        apart -= np.round(apart)
        goals.append(np.linalg.norm(apart @ cell, axis=2).argmin(1))
    turn = cell.T @ found["rotations"] @ np.linalg.inv(cell.T)
    return turn, np.array(goals)


def hold_atoms(fixed: NDArray[np.bool_]) -> Holding:
    """Return the projection that keeps atoms `fixed` [N] where they are, in coordinates of the undeformed cell."""
    free = np.repeat(~fixed, 3).astype(np.float64)
    index = np.arange(len(free))
    return Holding(csr_matrix((free, (index, index)), shape=(len(free),) * 2))


def hold_axes(many: int, axes: str) -> Holding:
    """Return the projection that lets cells strain along some Cartesian axes alone, such as "xy" for slabs."""
    if not axes or set(axes) - set("xyz") or len(set(axes)) != len(axes):
        raise UsageError(f"cell axes must be of x, y and z, each once, such as xy; got {axes!r}")
    free = np.array([axis in axes for axis in "xyz"])
    return Holding(None, np.tile(np.diag((free[:, None] & free).ravel().astype(np.float64)), (many, 1, 1)))


def join_holdings(parts: Sequence[Holding]) -> Holding | None:
    """Return one holding of several that commute (atoms, axes); None of none."""
    out: Holding | None = None
    for part in parts:
        if out is None:
            out = part
            continue
        out = Holding(_compose(out.atoms, part.atoms), _compose(out.cells, part.cells))
    return out


def _compose(one: Any, two: Any) -> Any:
    return two if one is None else one if two is None else one @ two


def find_lowest(batch: StructureBatch, depth: float) -> NDArray[np.bool_]:
    """Return which atoms [N] of structures lie within `depth` (Angstrom) of the lowest, along the third axis' normal.

    The lowest atom of a cell that is periodic along the axis is the one above the thickest empty layer.
    """
    out = np.zeros(batch.n_atoms, bool)
    for s in range(len(batch)):
        own = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        a, b, c = batch.cell[s]
        normal = np.cross(a, b) if np.linalg.norm(np.cross(a, b)) > 0 else np.array([0.0, 0.0, 1.0])
        normal /= np.linalg.norm(normal)
        height = np.asarray(batch.positions[own], np.float64) @ normal
        if batch.pbc[s, 2] and abs(c @ normal) > 0 and len(height):
            period = abs(c @ normal)
            around = np.sort(height % period)
            apart = np.diff(around, append=around[0] + period)
            lowest = around[(int(apart.argmax()) + 1) % len(around)]
            height = (height - lowest + 1e-9) % period
        out[own] = height - height.min(initial=np.inf) <= depth
    return out
