"""Candidates for the encoder in plain PyTorch, as `benchmarks/probe.py` trains them; none is part of the package."""
