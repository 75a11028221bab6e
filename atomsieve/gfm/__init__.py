"""The gfm/ folder: an ensemble on disk, complete, checked byte for byte, and safe to open from a stranger.

Names are imported on first use: the registry of backends needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomsieve.gfm.exports import ExportEntry
    from atomsieve.gfm.folder import (
        load_gfm,
        read_calibration,
        record_evaluation,
        record_exports,
        record_files,
        save_gfm,
    )
    from atomsieve.gfm.manifest import EnsembleManifest, ensemble_id, read_manifest, same_weights, weights_id

_HOMES = {
    "ExportEntry": "exports",
    "EnsembleManifest": "manifest",
    "ensemble_id": "manifest",
    "read_manifest": "manifest",
    "same_weights": "manifest",
    "weights_id": "manifest",
}

__all__ = [
    "EnsembleManifest",
    "ExportEntry",
    "ensemble_id",
    "load_gfm",
    "read_calibration",
    "read_manifest",
    "record_evaluation",
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
