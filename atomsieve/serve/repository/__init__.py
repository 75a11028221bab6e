"""A Triton model repository made of ensemble folders."""
