"""Clients of served ensembles. Nothing here needs torch."""
