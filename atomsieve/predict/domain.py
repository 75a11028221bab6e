"""Is a structure like what a head was trained on? One flag with reasons, because an ensemble can agree on nonsense."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atomsieve.graphs import Graph, shortest_edges
from atomsieve.models import Manifest
from atomsieve.predict.outside import Outside
from atomsieve.structures import StructureBatch

__all__ = ["DomainTest", "Outside"]


class DomainTest:
    """Judges structures for the heads of an ensemble.

    Attributes
    ----------
    needs_features : the test reads the encoder's features.
    """

    needs_features = False

    def __init__(self, manifest: Manifest) -> None:
        self._closest = [h.statistics.get("shortest_distance", 0.0) for h in manifest.heads]

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int, features: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return the reasons [S] against each structure (`Outside`), and its distance [S] in feature space (or NaN)."""
        outside = np.zeros(len(batch), np.uint8)
        outside[shortest_edges(graph) <= self._closest[head] - 1e-3] |= np.uint8(Outside.SHORT_CONTACT)
        return outside, np.full(len(batch), np.nan)
