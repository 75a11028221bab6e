"""Encoders, heads, and the stacked ensemble.

Names are imported on first use: the names of the precisions need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomsieve.models.config import HeadSpec, ModelConfig
    from atomsieve.models.ensemble import Ensemble
    from atomsieve.models.layers import set_precision
    from atomsieve.models.output import EnsembleOutput

_HOMES = {
    "Ensemble": "ensemble",
    "EnsembleOutput": "output",
    "HeadSpec": "config",
    "ModelConfig": "config",
    "set_precision": "layers",
}

__all__ = ["Ensemble", "EnsembleOutput", "HeadSpec", "ModelConfig", "set_precision"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
