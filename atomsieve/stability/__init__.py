"""Stability against decomposition: reference phases of a head, convex hulls, and energies above them with errors."""
