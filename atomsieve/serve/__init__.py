"""A real Triton endpoint for an ensemble: the model repository, the server and its supervisor, clients."""
