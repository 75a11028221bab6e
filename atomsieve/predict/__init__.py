"""Predictors: evaluate structures with an ensemble.

Names are imported on first use: code that only packs structures, or asks a server for results, needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomsieve.predict.base import ForwardingPredictor, PredictorBase
    from atomsieve.predict.domain_flags import Outside
    from atomsieve.predict.interface import AnyPredictor, Capabilities
    from atomsieve.predict.prediction import Prediction
    from atomsieve.predict.predictor import Predictor
    from atomsieve.predict.status import Status

_HOMES = {
    "AnyPredictor": "interface",
    "Capabilities": "interface",
    "ForwardingPredictor": "base",
    "Outside": "domain_flags",
    "Prediction": "prediction",
    "Predictor": "predictor",
    "PredictorBase": "base",
    "Status": "status",
}

__all__ = [
    "AnyPredictor",
    "Capabilities",
    "ForwardingPredictor",
    "Outside",
    "Prediction",
    "Predictor",
    "PredictorBase",
    "Status",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
