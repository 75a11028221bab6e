"""Old place of `atomsieve.remote.AsyncRemotePredictor`; kept for programs written before release 0.1.0."""

from atomsieve.remote.async_predictor import AsyncRemotePredictor

__all__ = ["AsyncRemotePredictor"]
