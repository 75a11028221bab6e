"""Old place of `serve.graph.model`; kept for model repositories written before release 0.1.0."""

from atomsieve.serve.graph.model import GraphModel
from atomsieve.serve.graph.removed import FinishModel, PrepareModel

__all__ = ["FinishModel", "GraphModel", "PrepareModel"]
