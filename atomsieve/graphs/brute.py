"""Neighbours by looking at every image of every atom: slow, plain, and the check of the other implementations."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from atomsieve.graphs.faults import MAX_NEIGHBORS_PER_ATOM, TOO_DENSE, raise_fault
from atomsieve.graphs.lattice import extents, lattices
from atomsieve.structures.batch import StructureBatch


def _images(cell: NDArray[np.float64], pbc: NDArray[np.bool_], reach: float) -> NDArray[np.int64]:
    """Return all shifts [M,3], in lexicographic order, that may bring two points `reach` apart onto each other.

    Component k of a translation t is its projection on the dual vector k, so |shift_k| <= |t| |dual_k|.
    """
    bound = np.zeros(3, int)
    if pbc.any():
        dual = np.linalg.pinv(cell[pbc])
        bound[pbc] = np.floor(reach * np.linalg.norm(dual, axis=0) + 1e-6).astype(int)
    ranges = [range(-b, b + 1) for b in bound]
    return np.array(list(product(*ranges)), np.int64)


def brute_edges(
    batch: StructureBatch, cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return sender [E], receiver [E], shift [E,3] and vec [E,3] (Angstrom); errors as `neighbor_list`."""
    extent = extents(batch, cutoff)
    lattices(batch, cutoff)  # for its checks
    positions = batch.positions.astype(np.float64)
    senders, receivers, shifts, vectors = [], [], [], []
    for s in range(batch.n_structures):
        first, last = int(batch.ptr[s]), int(batch.ptr[s + 1])
        if first == last:
            continue
        images = _images(batch.cell[s], batch.pbc[s], cutoff + extent[s])
        cell = np.where(batch.pbc[s][:, None], batch.cell[s], 0.0)
        moves = images[:, :1] * cell[0] + images[:, 1:2] * cell[1] + images[:, 2:] * cell[2]
        home = (images == 0).all(1)
        for i in range(first, last):
            vec = (positions[first:last] - positions[i])[:, None, :] + moves
            near = vec[..., 0] ** 2 + vec[..., 1] ** 2 + vec[..., 2] ** 2 < cutoff * cutoff
            near[i - first, home] = False
            j, m = np.nonzero(near)
            if len(j) > MAX_NEIGHBORS_PER_ATOM:
                raise_fault(TOO_DENSE, s, batch, cutoff)
            senders.append(j + first)
            receivers.append(np.full(len(j), i))
            shifts.append(images[m])
            vectors.append(vec[j, m])
    if not senders:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64), np.zeros((0, 3))
    return np.concatenate(senders), np.concatenate(receivers), np.concatenate(shifts), np.concatenate(vectors)
