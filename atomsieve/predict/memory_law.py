"""The memory law of an ensemble: bytes = fixed + per_atom * atoms + per_edge * edges, fitted once and kept in a cache.

A law belongs to an ensemble, a precision, a backend, a device and the properties asked for. It is kept in the user's
cache folder (`$XDG_CACHE_HOME/atomsieve/memory`, or `~/.cache/atomsieve/memory`), so that each machine measures once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.devices import device_kind
from atomsieve.errors import DataError
from atomsieve.predict.interface import AnyPredictor
from atomsieve.runs.output_files import atomic_draft

log = logging.getLogger(__name__)

VERSION = 1


@dataclass(frozen=True)
class MemoryLaw:
    """Bytes that a call adds to those that the process holds before it: fixed + per_atom * atoms + per_edge * edges."""

    fixed: float
    per_atom: float
    per_edge: float

    def bytes(self, atoms: float, edges: float) -> float:
        """Return the bytes that a batch is expected to take."""
        return self.fixed + self.per_atom * atoms + self.per_edge * edges


def fit_law(atoms: Collection[float], edges: Collection[float], taken: Collection[float]) -> MemoryLaw:
    """Fit measured bytes by non-negative least squares on relative errors, then raise the law above all of them.

    Raises
    ------
    DataError
        if a measurement is not a positive finite number.
    """
    from scipy.optimize import nnls

    y = np.asarray(list(taken), float)
    if len(y) == 0 or not (np.isfinite(y) & (y > 0)).all():
        raise DataError(f"memory of the probe is {y.tolist()} bytes; a law needs positive numbers")
    x = np.stack([np.ones(len(y)), np.asarray(list(atoms), float), np.asarray(list(edges), float)], axis=1)
    scale = x.max(0)
    scale[scale == 0] = 1.0
    found, _ = nnls(x / scale / y[:, None], np.ones(len(y)))
    found *= max(1.0, float(np.max(y / np.maximum(x / scale @ found, 1e-300))))
    return MemoryLaw(*(float(v) for v in found / scale))


# -- the cache -------------------------------------------------------------------------------------------------------


def law_key(predictor: AnyPredictor, want: Collection[str]) -> dict[str, Any]:
    """Return everything that a law depends on, as plain data."""
    return {
        "version": VERSION,
        "ensemble": predictor.ensemble_id,
        "kind": predictor.kind,
        "members": predictor.members,
        "precision": predictor.precision,
        "backend": predictor.backend,
        "artefact": predictor.capabilities.artefact,
        "device": _device_name(predictor),
        "want": sorted(want),
    }


def _device_name(predictor: AnyPredictor) -> str:
    import torch

    if device_kind(predictor.device) == "cuda":
        return str(torch.cuda.get_device_name(predictor.device))
    return f"cpu, {torch.get_num_threads()} threads"


def find_cache_folder() -> Path | None:
    """Return the folder of cached laws, None where this user has no home directory."""
    if Path(named := os.environ.get("XDG_CACHE_HOME", "")).is_absolute():
        return Path(named) / "atomsieve" / "memory"
    try:
        return Path.home() / ".cache" / "atomsieve" / "memory"
    except RuntimeError:
        return None


def _path_of(key: dict[str, Any]) -> Path | None:
    folder = find_cache_folder()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return None if folder is None else folder / f"{digest[:32]}.json"


def load_law(key: dict[str, Any]) -> MemoryLaw | None:
    """Return the cached law of a key, None if there is none or its file is damaged."""
    path = _path_of(key)
    try:
        found = json.loads(path.read_text()) if path is not None else None
        law = MemoryLaw(**found["law"]) if found is not None and found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if law is None or not all(isinstance(v, float) and np.isfinite(v) and v >= 0 for v in asdict(law).values()):
        return None
    return law if law.per_atom + law.per_edge > 0 else None


def store_law(key: dict[str, Any], law: MemoryLaw) -> None:
    """Cache a law; where the cache cannot be written, the next run measures again, and nothing else is lost."""
    if (path := _path_of(key)) is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_draft(path, durable=False) as draft:
            draft.write_text(json.dumps({"key": key, "law": asdict(law)}, indent=1) + "\n")
    except OSError as error:
        log.debug("the memory law is not cached: %s", error)
