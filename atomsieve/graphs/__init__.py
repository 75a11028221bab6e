"""Neighbour lists and edge-sorted graphs."""
