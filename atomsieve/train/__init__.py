"""Training of multi-head ensembles over many sources."""
