"""Neighbour lists and edge-sorted graphs."""

from atomsieve.graphs.graph import Graph, NeighborList
from atomsieve.graphs.neighbors import build_graph, count_edges, neighbor_list

__all__ = ["Graph", "NeighborList", "build_graph", "count_edges", "neighbor_list"]
