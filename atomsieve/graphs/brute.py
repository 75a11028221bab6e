"""Neighbours by looking at every image of every atom: slow, plain, and the check of the other implementations."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.graphs.lattice import lattices
from atomsieve.graphs.limits import MAX_NEIGHBORS_PER_ATOM, TOO_DENSE, raise_graph_error
from atomsieve.structures.batch import StructureBatch

MOST_IMAGES = 500_000
"""More images of a pair than this are not looked at: the cell is too skewed for brute force."""


def _images(dual: NDArray[np.float64], cutoff: float) -> NDArray[np.int64]:
    """Return all shifts [M,3], in lexicographic order, that may bring an atom near another of the same cell.

    Component k of a translation t is its projection on `dual[:, k]`, so |shift_k| <= |t| |dual_k|; the half is for
    fractional coordinates that were rounded to the nearest integer.
    """
    bound = np.where(dual.any(0), np.floor(cutoff * np.linalg.norm(dual, axis=0) + 0.5 + 1e-6), 0).astype(int)
    if np.prod(2 * bound + 1.0) > MOST_IMAGES:
        raise UsageError(f"a cell is too skewed for implementation 'brute' (shifts up to {bound}); use 'torch'")
    return np.array(list(product(*(range(-b, b + 1) for b in bound))), np.int64)


def brute_edges(
    batch: StructureBatch, cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return sender [E], receiver [E], shift [E,3] and vec [E,3] (Angstrom); errors as `neighbor_list`."""
    lattices(batch, cutoff)  # for its checks
    positions = batch.positions.astype(np.float64)
    senders, receivers, shifts, vectors = [], [], [], []
    for s in range(batch.n_structures):
        first, last = int(batch.ptr[s]), int(batch.ptr[s + 1])
        if first == last:
            continue
        pbc = batch.pbc[s].astype(bool)
        cell = np.where(pbc[:, None], batch.cell[s], 0.0)
        dual = np.zeros((3, 3))
        dual[:, pbc] = np.linalg.pinv(cell[pbc])
        images = _images(dual, cutoff)
        for i in range(first, last):
            apart = positions[first:last] - positions[i]
            shift = images - np.rint(apart @ dual).astype(np.int64)[:, None, :]
            move = shift[..., 0:1] * cell[0] + shift[..., 1:2] * cell[1] + shift[..., 2:3] * cell[2]
            vec = apart[:, None, :] + move
            near = vec[..., 0] ** 2 + vec[..., 1] ** 2 + vec[..., 2] ** 2 < cutoff * cutoff
            near[i - first] &= (shift[i - first] != 0).any(1)
            j, m = np.nonzero(near)
            if len(j) > MAX_NEIGHBORS_PER_ATOM:
                raise_graph_error(TOO_DENSE, s, batch, cutoff)
            senders.append(j + first)
            receivers.append(np.full(len(j), i))
            shifts.append(shift[j, m])
            vectors.append(vec[j, m])
    if not senders:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64), np.zeros((0, 3))
    return np.concatenate(senders), np.concatenate(receivers), np.concatenate(shifts), np.concatenate(vectors)
