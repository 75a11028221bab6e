"""Pairs of near structures: energy differences against the work of forces and of stress between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.batch import StructureBatch

Floats = NDArray[np.float64]

GROUP = 300
"""Structures of one group that are compared with each other."""
FAR, NEAR = 0.4, 1e-4
"""Largest displacement of an atom between two structures of a pair, Angstrom, and the smallest that tells anything."""
STRAINED, UNSTRAINED = 0.08, 1e-3
"""Largest and smallest strain between two cells of a pair."""
FEWEST = 10
"""Pairs from which a ratio is taken."""
WIDTH = 0.25
"""A pair agrees with a ratio that differs from its own by less than this part."""


@dataclass(frozen=True)
class Slope:
    """Ratio of energy differences to the work of forces or stress.

    Attributes
    ----------
    value : its weighted median over the pairs: 1 where energies and forces are in fitting units.
    agreement : the part of the pairs, by the size of their work, that agree with it.
    pairs : how many.
    """

    value: float
    agreement: float
    pairs: int

    @property
    def sure(self) -> bool:
        """True if there are enough pairs and most of them agree."""
        return self.pairs >= FEWEST and self.agreement >= 0.6


def fit_slope(difference: Floats, work: Floats) -> Slope:
    """Return the slope through the origin of least absolute deviation: the median of the ratios, weighted by work."""
    usable = np.isfinite(difference) & np.isfinite(work) & (work != 0)
    ratio, weight = difference[usable] / work[usable], np.abs(work[usable])
    if not len(ratio):
        return Slope(np.nan, 0.0, 0)
    order = np.argsort(ratio)
    total = np.cumsum(weight[order])
    value = float(ratio[order][np.searchsorted(total, total[-1] / 2)])
    agrees = np.abs(ratio - value) < WIDTH * abs(value)
    return Slope(value, float(weight[agrees].sum() / weight.sum()), len(ratio))


@dataclass(frozen=True)
class _Group:
    """Structures `[M]` with the same atoms in the same order."""

    positions: Floats  # [M,n,3]
    cell: Floats  # [M,3,3]
    pbc: NDArray[np.bool_]  # [3]
    energy: Floats  # [M]
    forces: Floats  # [M,n,3], zero where there are none
    stress: Floats  # [M,3,3]


def _groups(batch: StructureBatch, chosen: NDArray[np.bool_], *, same_cell: bool) -> Iterator[_Group]:
    """Yield groups of at least two structures: of the same atoms, and of the same cell if that is asked for."""
    members: dict[tuple[bytes, ...], list[int]] = {}
    cells = np.round(batch.cell, 3) + 0.0
    for s in np.flatnonzero(chosen).tolist():
        numbers = batch.numbers[batch.ptr[s] : batch.ptr[s + 1]]
        key = (
            numbers.tobytes(),
            batch.pbc[s].tobytes(),
            cells[s].tobytes() if same_cell and batch.pbc[s].any() else b"",
        )
        members.setdefault(key, []).append(s)
    for own in members.values():
        if len(own) < 2:
            continue
        rows = np.array(own)[np.linspace(0, len(own) - 1, min(len(own), GROUP)).astype(int)]
        n = int(batch.counts[rows[0]])
        atoms = batch.ptr[rows][:, None] + np.arange(n)
        assert batch.energy is not None
        yield _Group(
            batch.positions[atoms].astype(np.float64),
            batch.cell[rows],
            batch.pbc[rows[0]],
            batch.energy[rows],
            np.zeros((len(rows), n, 3)) if batch.forces is None else np.nan_to_num(batch.forces[atoms]),
            np.full((len(rows), 3, 3), np.nan) if batch.stress is None else batch.stress[rows],
        )


def _nearest(points: Floats, far: Floats | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs i, j: each of the points `[M,k]` with its nearest one, each pair once. `far [M,M]` forbids some."""
    squares = (points**2).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * points @ points.T
    np.fill_diagonal(distance, np.inf)
    if far is not None:
        distance[far > 0] = np.inf
    other = distance.argmin(axis=1)
    rows = np.flatnonzero(np.isfinite(distance[np.arange(len(points)), other]))
    pairs = np.unique(np.sort(np.stack([rows, other[rows]], axis=1), axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _rotations(moving: Floats, fixed: Floats) -> Floats:
    """Return the rotations `[P,3,3]` that bring centred points `moving [P,n,3]` nearest to `fixed` (Kabsch 1976)."""
    u, _, vt = np.linalg.svd(np.einsum("pni,pnj->pij", moving, fixed))
    turn = u @ vt
    u[:, :, 2] *= np.sign(np.linalg.det(turn))[:, None]
    rotations: Floats = u @ vt
    return rotations


def _remove_lattice(difference: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> Floats:
    """Return displacements `[M,n,3]` less the lattice vectors of a cell `[3,3]` that are nearest to them."""
    steps = np.round(difference @ np.linalg.pinv(cell)) * pbc
    return difference - steps @ cell


def compare_forces(batch: StructureBatch) -> tuple[Slope, Slope]:
    """Return the ratio of energy differences to the work of the forces, between near structures with equal cells: with
    energies as they are, and with energies taken for energies per atom.

    The work is -1/2 (F_i + F_j) . (x_j - x_i), summed over the atoms; molecules are turned onto each other first.
    """
    nothing = Slope(np.nan, 0.0, 0)
    found: list[Floats] = []
    if batch.energy is None or batch.forces is None or batch.has_energy is None or batch.has_forces is None:
        return nothing, nothing
    for group in _groups(batch, batch.has_energy & batch.has_forces & (batch.counts > 1), same_cell=True):
        x, f = group.positions, group.forces
        if group.pbc.any():
            x = _remove_lattice(x - x[0], group.cell[0], group.pbc)
            i, j = _nearest(x.reshape(len(x), -1))
            step, force = x[j] - x[i], f[i] + f[j]
        else:
            x = x - x.mean(axis=1, keepdims=True)
            turned = x @ _rotations(x, np.broadcast_to(x[0], x.shape))
            i, j = _nearest(turned.reshape(len(x), -1))
            turn = _rotations(x[j], x[i])
            step, force = x[j] @ turn - x[i], f[i] + f[j] @ turn
        size = np.sqrt((step**2).sum(axis=2)).max(axis=1)
        work = -0.5 * (force * step).sum(axis=(1, 2))
        near = (size > NEAR) & (size < FAR)
        atoms = np.full(len(size), float(x.shape[1]))
        found.append(np.stack([size, group.energy[j] - group.energy[i], work, atoms])[:, near])
    if not found:
        return nothing, nothing
    size, difference, work, atoms = np.concatenate(found, axis=1)
    kept = np.argsort(size)[: max(100, len(size) // 3)]
    return fit_slope(difference[kept], work[kept]), fit_slope((difference * atoms)[kept], work[kept])


def compare_stress(batch: StructureBatch, force_slope: float = 1.0) -> tuple[Slope, Slope]:
    """Return the ratio of energy differences to the work of the stress between cells strained a little, as it is and
    with the stress taken for a virial (minus stress times volume).

    The work is 1/2 (V_i s_i + V_j s_j) : strain, and that of the forces on what the atoms move beside the strain is
    taken off the energy difference. `force_slope` scales the forces to the energies.
    """
    nothing = Slope(np.nan, 0.0, 0)
    if batch.energy is None or batch.stress is None or batch.has_energy is None or batch.has_stress is None:
        return nothing, nothing
    chosen = batch.has_energy & batch.has_stress & batch.pbc.all(axis=1) & (batch.counts > 0)
    chosen &= np.abs(np.linalg.det(batch.cell)) > 1e-3
    found: list[Floats] = []
    for group in _groups(batch, chosen, same_cell=False):
        inverse = np.linalg.inv(group.cell)
        share = group.positions @ inverse
        share = share - share[:1] - np.round(share - share[:1])
        volume = np.abs(np.linalg.det(group.cell))
        size = float(volume[0]) ** (1 / 3)
        points = np.concatenate([group.cell.reshape(len(share), 9) / size, share.reshape(len(share), -1)], axis=1)
        alike = np.abs(np.log(volume[:, None] / volume[None, :])) < UNSTRAINED
        i, j = _nearest(points, alike.astype(float))
        if not len(i):
            continue
        change = inverse[i] @ group.cell[j] - np.eye(3)
        strain = change @ np.linalg.inv(np.eye(3) + change / 2)
        strain = (strain + strain.transpose(0, 2, 1)) / 2
        step = (share[j] - share[i]) @ ((group.cell[i] + group.cell[j]) / 2)
        inner = -0.5 * ((group.forces[i] + group.forces[j]) * step).sum(axis=(1, 2))
        own = group.stress * volume[:, None, None]
        work = 0.5 * ((own[i] + own[j]) * strain).sum(axis=(1, 2))
        virial = -0.5 * ((group.stress[i] + group.stress[j]) * strain).sum(axis=(1, 2))
        near = (np.abs(strain).max(axis=(1, 2)) < STRAINED) & (np.sqrt((step**2).sum(axis=2)).max(axis=1) < FAR)
        difference = group.energy[j] - group.energy[i] - (force_slope * inner if np.isfinite(force_slope) else inner)
        found.append(np.stack([difference, work, virial])[:, near])
    if not found:
        return nothing, nothing
    difference, work, virial = np.concatenate(found, axis=1)
    return fit_slope(difference, work), fit_slope(difference, virial)
