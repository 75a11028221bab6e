// Batched neighbour list.
