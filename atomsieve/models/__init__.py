"""Encoders, heads, the stacked ensemble and the gfm/ folder."""

from atomsieve.models.config import HeadSpec, ModelConfig
from atomsieve.models.ensemble import Ensemble, EnsembleOutput
from atomsieve.models.exports import ExportEntry
from atomsieve.models.folder import (
    Manifest,
    ensemble_id,
    load_gfm,
    read_calibration,
    read_manifest,
    record_exports,
    record_files,
    same_weights,
    save_gfm,
    weights_id,
)
from atomsieve.models.layers import set_precision

__all__ = [
    "Ensemble",
    "EnsembleOutput",
    "ExportEntry",
    "HeadSpec",
    "Manifest",
    "ModelConfig",
    "ensemble_id",
    "load_gfm",
    "read_calibration",
    "read_manifest",
    "record_exports",
    "record_files",
    "same_weights",
    "save_gfm",
    "set_precision",
    "weights_id",
]
