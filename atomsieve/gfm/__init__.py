"""The gfm/ folder: an ensemble on disk, complete, checked byte for byte, and safe to open from a stranger."""

from atomsieve.gfm.exports import ExportEntry
from atomsieve.gfm.folder import (
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

__all__ = [
    "ExportEntry",
    "Manifest",
    "ensemble_id",
    "load_gfm",
    "read_calibration",
    "read_manifest",
    "record_exports",
    "record_files",
    "same_weights",
    "save_gfm",
    "weights_id",
]
