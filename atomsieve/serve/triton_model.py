"""Old place of `serve.model.triton_model`; kept for model repositories written before release 0.1.0."""

from atomsieve.serve.model.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
