"""Edge estimates from local densities: a guard against few atoms with more neighbours than memory can hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atomsieve.graphs.lattice import reduce_cells
from atomsieve.structures.batch import StructureBatch

PER_PAIR = 22.0
"""Neighbours within a cutoff per neighbour in the same bin, at even density: the sphere's volume over the bin's."""


def estimate_crowded_edges(batch: StructureBatch, cutoff: float) -> NDArray[np.float64]:
    """Estimate the edges of each structure [S] from where its atoms are.

    Atoms are counted in bins whose diagonal is the cutoff, so that all atoms of a bin are neighbours. An estimate from
    the mean density (`edge_budget_estimate`) is exact enough for matter, but knows nothing of atoms that somebody put
    on one heap, or of a cell far thinner than the cutoff: the larger of the two is safe to plan memory by.
    How thin a cell is shows in the shortest vectors of its lattice, not in those by which it was given.
    """
    side = cutoff / np.sqrt(3.0)
    home = batch.structure_of_atom
    rows = reduce_cells(batch.cell, batch.pbc.astype(bool))
    with np.errstate(all="ignore"):
        bins = np.floor(_wrap_positions(batch, rows) / side)
        lengths = np.linalg.norm(rows, axis=2)
        periodic = np.arange(3) >= 3 - batch.pbc.sum(1)[:, None]
        images = np.where(periodic, np.maximum(side / lengths, 1.0), 1.0).prod(1)
    images = np.where(np.isfinite(images), np.minimum(images, 1e12), 1.0)
    order = np.lexsort((bins[:, 2], bins[:, 1], bins[:, 0], home))
    sorted_bins, sorted_home = bins[order], home[order]
    new = np.ones(len(order), bool)
    new[1:] = (sorted_home[1:] != sorted_home[:-1]) | (sorted_bins[1:] != sorted_bins[:-1]).any(1)
    starts = np.flatnonzero(new)
    together = np.diff(np.append(starts, len(order))).astype(np.float64)
    owner = sorted_home[starts]
    pairs = np.bincount(owner, together * (together * images[owner] - 1.0), minlength=len(batch))
    found = PER_PAIR * pairs
    counts = batch.counts.astype(np.float64)
    return np.where(batch.pbc.any(1), found, np.minimum(found, counts * np.maximum(counts - 1.0, 0.0)))


def _wrap_positions(batch: StructureBatch, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions [N,3], moved into the cell along periodic vectors `rows` [S,3,3]; nonsense stays nonsense."""
    positions = batch.positions.astype(np.float64, copy=True)
    for chosen, invert in ((batch.pbc.all(1), np.linalg.inv), (batch.pbc.any(1) & ~batch.pbc.all(1), np.linalg.pinv)):
        sound = chosen & np.isfinite(rows).all((1, 2))
        if invert is np.linalg.inv:
            sound &= np.abs(np.linalg.det(rows)) > 1e-12
        which = np.flatnonzero(sound)
        if len(which) == 0:
            continue
        try:
            inverse = invert(rows[which])
        except np.linalg.LinAlgError:
            continue
        place = np.full(len(batch), -1)
        place[which] = np.arange(len(which))
        of_atom = place[batch.structure_of_atom]
        atoms = np.flatnonzero(of_atom >= 0)
        own = of_atom[atoms]
        shift = np.floor(np.einsum("ni,nij->nj", positions[atoms], inverse[own]))
        positions[atoms] -= np.einsum("ni,nij->nj", shift, rows[which][own])
    return positions
