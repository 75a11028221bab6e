"""Choosing rows: the best, the best of each group, the Pareto front."""
