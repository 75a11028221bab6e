"""Encoders, heads, the stacked ensemble and the gfm/ folder."""
