"""Served by AtomSieve: everything is in the package, which must be installed where the server runs."""

from atomsieve.serve.graph_model import GraphModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
