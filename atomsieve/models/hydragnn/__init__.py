"""HydraGNN's PaiNN for a stack of members."""
