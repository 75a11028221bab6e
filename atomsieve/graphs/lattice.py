"""The periodic directions of a batch of structures, in the form that enumerating lattice points needs (numpy)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.graphs.limits import (
    BAD_CELL,
    BAD_POSITIONS,
    LARGEST_DEFECT,
    MAX_NEIGHBORS_PER_ATOM,
    SHORTEST_VECTOR,
    TOO_DENSE,
    TOO_FAR,
    raise_graph_error,
)
from atomsieve.structures.batch import StructureBatch

REDUCE_ABOVE = 3.0
"""Cells whose vectors are this much longer than their volume needs are reduced before lattice points are listed."""


@dataclass(frozen=True)
class Lattices:
    """Triangular forms of S cells; lattice points are found by loops over planes, lines in a plane, points on a line.

    Attributes
    ----------
    basis : [S,3,3] vectors of the loops, periodic ones last (innermost), zero rows where not periodic.
    to_cell : [S,3,3] int64, `basis = to_cell @ cell`.
    frame : [S,3,3] orthonormal rows, `frame[k]` perpendicular to `basis[k+1:]`.
    tri : [S,3,3] `basis @ frame.T`, upper triangular.
    inverse_height : [S,3] 1/Angstrom, `1/tri[k,k]`; 0 where not periodic.
    natural : [S] the basis is the cell vectors in axis order: loops run in lexicographic order of the shift.
    rank : [S] number of periodic directions.
    extent : [S] Angstrom, a bound on the distance between two atoms of a structure.
    """

    basis: NDArray[np.float64]
    to_cell: NDArray[np.int64]
    frame: NDArray[np.float64]
    tri: NDArray[np.float64]
    inverse_height: NDArray[np.float64]
    natural: NDArray[np.bool_]
    rank: NDArray[np.int64]
    extent: NDArray[np.float64]

    @property
    def volume(self) -> NDArray[np.float64]:
        """Volume, area or length [S] spanned by the periodic vectors; 1 where there is none."""
        heights = self.tri[:, [0, 1, 2], [0, 1, 2]]
        return np.where(self.inverse_height > 0, heights, 1.0).prod(1)


def _without(vectors: NDArray[np.float64], frame: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Subtract from `vectors [S,3]` their components along frame[k+1:], twice for orthogonality to rounding."""
    for _ in range(2):
        for m in range(2, k, -1):
            vectors = vectors - (vectors * frame[:, m]).sum(1, keepdims=True) * frame[:, m]
    return vectors


def _triangular(
    basis: NDArray[np.float64], rank: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return frame, tri and inverse height of `basis [S,3,3]` by Gram-Schmidt from the innermost vector outwards."""
    frame = np.zeros_like(basis)
    height = np.zeros(basis.shape[:2])
    for k in (2, 1, 0):
        own = _without(basis[:, k], frame, k)
        size = np.linalg.norm(own, axis=1)
        periodic = (k >= 3 - rank) & (size > 0)
        trials = np.stack([_without(np.broadcast_to(axis, own.shape), frame, k) for axis in np.eye(3)], 1)
        sizes = np.linalg.norm(trials, axis=2)
        best = sizes.argmax(1)
        rows = np.arange(len(basis))
        any_perpendicular = trials[rows, best] / sizes[rows, best, None]
        frame[:, k] = np.where(periodic[:, None], own / np.where(periodic, size, 1.0)[:, None], any_perpendicular)
        height[:, k] = np.where(periodic, size, 0.0)
    tri = np.triu(basis @ frame.transpose(0, 2, 1))
    tri[:, [0, 1, 2], [0, 1, 2]] = height
    return frame, tri, np.divide(1.0, height, out=np.zeros_like(height), where=height > 0)


def _defect(basis: NDArray[np.float64], tri: NDArray[np.float64], rank: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the product of lengths over the volume spanned [S]: 1 for right angles, infinite for a flat cell."""
    used = np.arange(3) >= 3 - rank[:, None]
    lengths = np.where(used, np.linalg.norm(basis, axis=2), 1.0).prod(1)
    volume = np.where(used, tri[:, [0, 1, 2], [0, 1, 2]], 1.0).prod(1)
    return np.divide(lengths, volume, out=np.full_like(lengths, np.inf), where=volume > 0)


def _reduce(basis: NDArray[np.float64], to_cell: NDArray[np.int64], rank: NDArray[np.int64]) -> None:
    """Shorten the vectors in place until no sum or difference is shorter; the shortest vector ends innermost."""
    for _ in range(200):
        changed = False
        for k in range(3):
            for m in range(3):
                if k == m:
                    continue
                length2 = (basis[:, m] ** 2).sum(1)
                along = (basis[:, k] * basis[:, m]).sum(1)
                usable = (length2 > 0) & (k >= 3 - rank) & (m >= 3 - rank)
                times = np.rint(np.divide(along, length2, out=np.zeros_like(along), where=usable))
                gain = times**2 * length2 - 2 * times * along
                worth = usable & (np.abs(times) < 1e9) & (gain < -1e-12 * (basis[:, k] ** 2).sum(1))
                times[~worth] = 0
                basis[:, k] -= times[:, None] * basis[:, m]
                to_cell[:, k] -= times[:, None].astype(np.int64) * to_cell[:, m]
                changed |= bool(worth.any())
        for k, m, n in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            for a in (-1, 1):
                for b in (-1, 1):
                    trial = basis[:, k] + a * basis[:, m] + b * basis[:, n]
                    worth = (rank == 3) & ((trial**2).sum(1) < (basis[:, k] ** 2).sum(1) * (1 - 1e-12))
                    basis[worth, k] = trial[worth]
                    to_cell[worth, k] += a * to_cell[worth, m] + b * to_cell[worth, n]
                    changed |= bool(worth.any())
        if not changed:
            break
    length = np.where(np.arange(3) >= 3 - rank[:, None], np.linalg.norm(basis, axis=2), np.inf)
    order = np.argsort(-length, axis=1, kind="stable")
    basis[:] = np.take_along_axis(basis, order[:, :, None], 1)
    to_cell[:] = np.take_along_axis(to_cell, order[:, :, None], 1)


def reduce_cells(cell: NDArray[np.floating], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the periodic vectors of cells `[S,3,3]`, those of skewed cells about as short as their lattice allows.

    They come last; rows of directions without periodicity, by `pbc [S,3]`, come first and are zero. Nonsense stays so.
    """
    basis = np.where(pbc[:, :, None], cell, 0.0).astype(np.float64, copy=False)
    if not pbc.all():
        basis = np.take_along_axis(basis, np.argsort(pbc, axis=1, kind="stable")[:, :, None], 1)
    with np.errstate(all="ignore"):  # the squared volume of unit vectors, from the cosines between them
        a, b, c = basis.transpose(1, 2, 0)
        aa, bb, cc, ab, ac, bc = ((u * v).sum(0) for u, v in ((a, a), (b, b), (c, c), (a, b), (a, c), (b, c)))
        pairs = (
            np.divide(uv**2, uu * vv, out=np.zeros_like(uv), where=uu * vv > 0)
            for uv, uu, vv in ((ab, aa, bb), (ac, aa, cc), (bc, bb, cc))
        )
        every = aa * bb * cc
        volume2 = 1 - sum(pairs) + 2 * np.divide(ab * ac * bc, every, out=np.zeros_like(every), where=every > 0)
        skewed = np.flatnonzero((volume2 < REDUCE_ABOVE**-2) & (np.abs(basis) < 1e100).all((1, 2)))
        if len(skewed):
            part, to_cell = basis[skewed], np.zeros((len(skewed), 3, 3), np.int64)
            _reduce(part, to_cell, pbc.sum(1)[skewed])
            basis[skewed] = part
    return basis


def _first(bad: Any, code: int, batch: StructureBatch, cutoff: float) -> None:
    """Raise the fault of the first structure marked in `bad [S]`."""
    if bad.any():
        raise_graph_error(code, int(np.flatnonzero(bad)[0]), batch, cutoff)


def _extents(batch: StructureBatch, cutoff: float) -> NDArray[np.float64]:
    """Return per structure [S] a bound on the distance between two atoms; 0 for an empty structure."""
    positions = batch.positions.astype(np.float64, copy=False)
    finite = np.abs(positions) < 1e100
    if not finite.all():
        structure = batch.structure_of_atom[np.flatnonzero(~finite.all(1))[0]]
        raise_graph_error(BAD_POSITIONS, int(structure), batch, cutoff)
    out = np.zeros(batch.n_structures)
    filled = batch.counts > 0
    if filled.any():
        starts = batch.ptr[:-1][filled]
        span = np.maximum.reduceat(positions, starts) - np.minimum.reduceat(positions, starts)
        out[filled] = span.sum(1)
    return out


def lattices(batch: StructureBatch, cutoff: float) -> Lattices:
    """Return the triangular forms of all cells of a batch.

    Raises
    ------
    DataError
        naming the first structure with atoms whose positions or periodic cell are not finite, whose periodic cell is
        singular or tiny compared with the cutoff, or whose atoms lie too many cells apart for 32-bit shifts.
    """
    extent = _extents(batch, cutoff)
    filled = batch.counts > 0
    pbc = batch.pbc.astype(bool) & filled[:, None]
    cell = np.where(pbc[:, :, None], batch.cell, 0.0)
    _first(~(np.abs(cell) < 1e100).all((1, 2)), BAD_CELL, batch, cutoff)
    rank = pbc.sum(1)
    order = np.argsort(pbc, axis=1, kind="stable")
    basis = np.take_along_axis(cell, order[:, :, None], 1)
    periodic_last = np.take_along_axis(pbc, order, 1)
    to_cell = np.eye(3, dtype=np.int64)[order] * periodic_last[:, :, None]
    frame, tri, inverse = _triangular(basis, rank)
    short = (periodic_last & ~(np.linalg.norm(basis, axis=2) > SHORTEST_VECTOR)).any(1)
    defect = _defect(basis, tri, rank)
    _first(short | ~(defect < LARGEST_DEFECT), BAD_CELL, batch, cutoff)
    skewed = np.flatnonzero(defect > REDUCE_ABOVE)
    if len(skewed):
        part, part_to_cell = basis[skewed], to_cell[skewed]
        _reduce(part, part_to_cell, rank[skewed])
        basis[skewed], to_cell[skewed] = part, part_to_cell
        frame[skewed], tri[skewed], inverse[skewed] = _triangular(part, rank[skewed])
    natural = np.ones(len(rank), bool)
    natural[skewed] = False
    _first((2 * cutoff * inverse + 1).prod(1) > 8 * MAX_NEIGHBORS_PER_ATOM, TOO_DENSE, batch, cutoff)
    out = Lattices(basis, to_cell, frame, tri, inverse, natural, rank, extent)
    _first(~(_largest_shift(out, cutoff) < 1e9), TOO_FAR, batch, cutoff)
    return out


def _largest_shift(lattice: Lattices, cutoff: float) -> NDArray[np.float64]:
    """Bound the components of the shifts of each structure [S]."""
    most = np.zeros((len(lattice.rank), 3))
    for k in range(3):
        span = lattice.extent + cutoff + (most[:, :k] * np.abs(lattice.tri[:, :k, k])).sum(1)
        most[:, k] = span * lattice.inverse_height[:, k]
    shift = (most[:, :, None] * np.abs(lattice.to_cell)).sum(1)
    return np.maximum(shift.max(1, initial=0.0), most.max(1, initial=0.0))
