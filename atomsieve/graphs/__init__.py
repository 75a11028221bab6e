"""Neighbour lists and edge-sorted graphs."""

from atomsieve.graphs.distance import shortest_distances, shortest_edges
from atomsieve.graphs.estimate import edge_budget_estimate
from atomsieve.graphs.graph import Graph, NeighborList
from atomsieve.graphs.neighbors import build_graph, count_edges, neighbor_list
from atomsieve.graphs.skin import SkinList

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
