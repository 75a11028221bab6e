"""PaiNN with quadrupoles of neighbours, for a stack of members."""
