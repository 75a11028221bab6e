"""Predictor: the one way to get numbers out of a gfm/ folder."""
