"""Shortest distances, from the edges of a graph."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.graphs.graph import Graph
from atomsieve.graphs.neighbors import build_graph
from atomsieve.structures.batch import StructureBatch


def shortest_edges(graph: Graph) -> NDArray[np.float64]:
    """Return the shortest edge of each structure, [S] Angstrom; infinity where there is none."""
    length = torch.linalg.vector_norm(graph.vec.double(), dim=1)
    home = graph.structure.index_select(0, graph.neighbors.receiver)
    out = torch.full((graph.n_structures,), torch.inf, dtype=torch.float64, device=length.device)
    return np.asarray(out.scatter_reduce(0, home, length, "amin").cpu().numpy())


def shortest_distances(batch: StructureBatch, search: float = 3.0) -> NDArray[np.float64]:
    """Return the shortest distance between atoms (or images) of each structure, [S] Angstrom.

    search : distances are looked for below this (Angstrom); infinity means that none was found.
    """
    return shortest_edges(build_graph(batch, search, dtype=torch.float64))
