"""How many edges a structure will have, before they are listed: for packing batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.structures.batch import StructureBatch

DENSITY_OF_MATTER = 0.1
"""Atoms per cubic Angstrom assumed where a structure is not periodic: dense matter, so that the estimate is high."""


def edge_budget_estimate(batch: StructureBatch, cutoff: float) -> NDArray[np.float64]:
    """Estimate the edges of each structure [S] from its density; cheap (no positions are read) and vectorised.

    A fully periodic structure gets n * (4/3 pi cutoff^3 n / V), the mean over random positions. One that is not fully
    periodic is taken to be dense matter, which is an upper bound for all but odd ones: the cell gives no length along
    its free directions. A singular or non-finite cell counts as dense matter too. For the exact number: `count_edges`.

    Raises
    ------
    UsageError
        if the cutoff is not a positive number.
    """
    if not 0 < cutoff < float("inf"):
        raise UsageError(f"cutoff must be a positive number of Angstrom, got {cutoff}")
    counts = batch.counts.astype(np.float64)
    pbc = batch.pbc.astype(bool)
    with np.errstate(invalid="ignore", over="ignore"):
        a, b, c = (batch.cell[:, k] for k in range(3))
        volume = np.abs((a * np.cross(b, c)).sum(1))
    known = pbc.all(1) & np.isfinite(volume) & (volume > 1e-3)
    density = np.where(known, counts / np.where(known, volume, 1.0), DENSITY_OF_MATTER)
    edges = counts * density * (4 / 3 * np.pi * cutoff**3)
    return np.where(pbc.any(1), edges, np.minimum(edges, counts * np.maximum(counts - 1, 0)))
