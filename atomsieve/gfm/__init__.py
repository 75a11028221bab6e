"""The gfm/ folder: an ensemble on disk, complete, checked byte for byte, and safe to open from a stranger.

Names are imported on first use: the registry of backends needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {"ExportEntry": "exports"}

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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'folder')}"), name)
