"""Versions of the software that computes: other versions may give other last bits."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from atomsieve.native import kernels

log = logging.getLogger(__name__)

PACKAGES = ("atomsieve", "torch", "numpy", "adios2", "mpi4py")
COMPUTING = ("atomsieve", "torch", "kernels")
"""Software that decides the last bits of numbers computed in this process."""


@functools.cache
def _kernels() -> str:
    """Return the identity of the compiled kernels: the first 16 digits of the SHA-256 of their file."""
    library = kernels()
    return "none" if library is None else hashlib.sha256(Path(library._name).read_bytes()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of packages, and the identity of the compiled kernels."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found | {"kernels": _kernels()}


def computing() -> dict[str, str]:
    """Return the versions of the software in `COMPUTING`, by name."""
    found = versions()
    return {name: found[name] for name in COMPUTING}


def warn_if_changed(before: Mapping[str, Any] | None, now: Mapping[str, str] | None) -> None:
    """Log a warning if a run continues with other software than it began with.

    before, now : versions by name; None where servers compute, and in old results.
    """
    if before is None or now is None:
        return
    changed = [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
    if changed:
        log.warning(
            "this run began with other software (%s): rows computed now may differ in their last bits from those of "
            "the earlier software; --overwrite computes all rows again",
            "; ".join(changed),
        )
