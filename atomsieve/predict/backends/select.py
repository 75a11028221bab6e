"""Chooses a backend by its name in the registry, `atomsieve.gfm.backends`, and opens it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from atomsieve.export.spec import describe_processor
from atomsieve.export.trust import is_trusted
from atomsieve.gfm import EnsembleManifest
from atomsieve.gfm.backends import AUTO, BACKENDS, FORMATS, check_backend
from atomsieve.models import Ensemble
from atomsieve.models.precision import check_precision
from atomsieve.predict.backends.exported import find_export
from atomsieve.predict.backends.interface import Backend

__all__ = ["fastest", "open_backend"]


def open_backend(
    name: str, folder: str | Path, ensemble: Ensemble, manifest: EnsembleManifest, precision: str, device: torch.device
) -> Backend:
    """Open a backend by name; "auto" takes the fastest one in this precision that was checked here (see `fastest`).

    Raises
    ------
    UsageError
        for a name or precision that does not exist, with those that do; AtomSieveError if the folder has no such
        export, or this machine cannot run it.
    """
    check_backend(name)
    check_precision(precision)
    why = "as asked"
    if name == AUTO:
        name, why = fastest(folder, manifest, precision, device)
    opened: Backend = import_module(BACKENDS[name].opener).open_backend(
        name, folder, ensemble, manifest, precision, device, why
    )
    return opened


def fastest(folder: str | Path, manifest: EnsembleManifest, precision: str, device: torch.device) -> tuple[str, str]:
    """Return the backend that was measured fastest on this machine, and one line on why.

    A candidate passed its fidelity check (none is written otherwise) on this processor, and holds no foreign code.
    Speeds count relative to native, each measured in the same run.
    """
    here, ratios, left = describe_processor(), {"native": 1.0}, []
    for name in FORMATS:
        entry = find_export(manifest, name, precision, device)
        if entry is None or entry.kind != "forces":
            continue
        if entry.machine != here:
            left.append(f"{entry.key} was checked on another processor")
        elif not is_trusted(folder, entry):
            left.append(f"{entry.key} holds code that this user has not trusted")
        elif entry.speed.get("native"):
            ratios[name] = entry.speed["structures_per_s"] / entry.speed["native"]
    best = max(ratios, key=lambda n: ratios[n])
    known = ", ".join(f"{n} {r:.2f}" for n, r in sorted(ratios.items(), key=lambda kv: -kv[1]))
    why = (
        f"fastest in {precision} here, relative to native: {known}"
        if len(ratios) > 1
        else (f"no export in {precision} was checked on this machine")
    )
    return best, "; ".join([why, *left])
