"""Relaxing the best rows of a screening, many at once, resumable."""
