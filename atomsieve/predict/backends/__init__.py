"""Backends: ways to evaluate the members of an ensemble on a graph, behind one interface."""
