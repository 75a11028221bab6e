"""Neighbour lists and edge-sorted graphs.

Names are imported on first use: estimates of the size of a batch, and error messages, need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomsieve.graphs.distance import shortest_distances, shortest_edges
    from atomsieve.graphs.estimate import edge_budget_estimate
    from atomsieve.graphs.graph import Graph, NeighborList
    from atomsieve.graphs.neighbors import build_graph, count_edges, neighbor_list
    from atomsieve.graphs.skin import SkinList

_HOMES = {
    "Graph": "graph",
    "NeighborList": "graph",
    "SkinList": "skin",
    "build_graph": "neighbors",
    "count_edges": "neighbors",
    "edge_budget_estimate": "estimate",
    "neighbor_list": "neighbors",
    "shortest_distances": "distance",
    "shortest_edges": "distance",
}

__all__ = [
    "Graph",
    "NeighborList",
    "SkinList",
    "build_graph",
    "count_edges",
    "edge_budget_estimate",
    "neighbor_list",
    "shortest_distances",
    "shortest_edges",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
