"""What the neighbour list tests compare: edges as rows of integers, lengths from the positions alone."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from atomsieve.graphs.graph import NeighborList
from atomsieve.structures.batch import StructureBatch

IMPLEMENTATIONS = [
    "native",
    "torch",
    pytest.param(
        "nvalchemi", marks=pytest.mark.skipif(find_spec("nvalchemiops") is None, reason="extra 'cuda' is not installed")
    ),
    "brute",
]


def rows(neighbors: NeighborList) -> np.ndarray:
    """Edges as [E,5] int64: receiver, sender, shift."""
    return np.column_stack([neighbors.receiver, neighbors.sender, neighbors.shift]).astype(np.int64)


def vectors(batch: StructureBatch, neighbors: NeighborList) -> np.ndarray:
    """vec [E,3] from the definition."""
    receiver, sender, shift = rows(neighbors)[:, 0], rows(neighbors)[:, 1], rows(neighbors)[:, 2:]
    positions = batch.positions.astype(np.float64)
    cell = np.where(batch.pbc[:, :, None], batch.cell, 0.0)[batch.structure_of_atom[receiver]]
    return positions[sender] - positions[receiver] + np.einsum("ek,ekc->ec", shift, cell)


def lengths(batch: StructureBatch, neighbors: NeighborList) -> np.ndarray:
    return np.linalg.norm(vectors(batch, neighbors), axis=1)


def near_cutoff(batch: StructureBatch, neighbors: NeighborList) -> np.ndarray:
    """Edges whose being listed is a matter of rounding."""
    return np.abs(lengths(batch, neighbors) - neighbors.cutoff) < 1e-7


def agree(batch: StructureBatch, found: NeighborList, wanted: NeighborList) -> None:
    """Both lists have the same edges in the same order, but for edges at the cutoff."""
    assert found.cutoff == wanted.cutoff
    assert lengths(batch, found).max(initial=0.0) < found.cutoff + 1e-7
    ours, theirs = (rows(n)[~near_cutoff(batch, n)] for n in (found, wanted))
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs)
