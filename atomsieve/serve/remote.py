"""Old place of `atomsieve.remote.predictor`; kept for programs written before release 0.1.0."""

from atomsieve.remote.predictor import RemotePredictor

__all__ = ["RemotePredictor"]
