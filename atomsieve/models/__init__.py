"""Encoders, heads, and the stacked ensemble."""

from atomsieve.models.config import HeadSpec, ModelConfig
from atomsieve.models.ensemble import Ensemble, EnsembleOutput
from atomsieve.models.layers import set_precision

__all__ = ["Ensemble", "EnsembleOutput", "HeadSpec", "ModelConfig", "set_precision"]
