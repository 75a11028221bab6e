"""Graph models: an exported artefact inside Triton, evaluated on ready neighbour tables."""
