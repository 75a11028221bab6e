"""Served by AtomSieve: everything is in the package, which must be installed where the server runs."""

from atomsieve.serve.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
