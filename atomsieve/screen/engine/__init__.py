"""The loop of a screening on one rank: reading, packing, computing, writing."""
