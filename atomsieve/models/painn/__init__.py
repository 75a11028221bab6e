"""PaiNN for a stack of members."""
