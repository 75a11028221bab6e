"""How the members are evaluated on a graph: by the ensemble itself or by an exported artefact."""
