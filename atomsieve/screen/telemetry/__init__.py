"""Measurements of a run: metrics, memory, energy."""
