"""Compiled kernels and parsers, found once and called through ctypes (which releases the interpreter lock)."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger(__name__)

VARIANTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})),
    ("v3", frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})),
    ("base", frozenset()),
)
"""Builds from fastest to most portable, each with the processor flags it needs."""


def _cpu_flags() -> frozenset[str]:
    """Return the processor's feature flags, or none where the system does not list them."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((row for row in text.splitlines() if row.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """Return the fastest build that this processor runs, or None if none was compiled at installation.

    `ATOMSIEVE_NATIVE=off` disables the kernels; `ATOMSIEVE_NATIVE=base|v3|v4` takes one build.
    """
    wanted = os.environ.get("ATOMSIEVE_NATIVE", "auto")
    if wanted == "off":
        return None
    flags = _cpu_flags()
    for name, needed in VARIANTS:
        if wanted not in ("auto", name) or not needed <= flags:
            continue
        spec = find_spec(f"atomsieve.native._kernels_{name}")
        if spec is not None and spec.origin is not None:
            log.debug("compiled kernels: %s", spec.origin)
            return ctypes.CDLL(spec.origin)
    log.warning("no compiled kernels found; slower torch code is used (reinstall with a C++ compiler at hand)")
    return None


TEXT_VERSION = 6
"""Of the functions and structures of `_text`, as its sources state it too."""


@functools.cache
def text_library() -> ctypes.CDLL | None:
    """Return the compiled parsers and writers of text formats, or None if they were not compiled at installation.

    `ATOMSIEVE_NATIVE=off` disables them too.
    """
    if os.environ.get("ATOMSIEVE_NATIVE", "auto") == "off":
        return None
    spec = find_spec("atomsieve.native._text")
    if spec is not None and spec.origin is not None:
        library = ctypes.CDLL(spec.origin)
        # A library built from other sources, as after an update without a reinstallation, must not be called.
        if getattr(library, "text_version", lambda: 0)() == TEXT_VERSION:
            return library
        log.warning("the compiled parser of text formats is of another version: reinstall; slower Python code is used")
        return None
    log.warning("no compiled parser of text formats found; slower Python code is used (reinstall with a C++ compiler)")
    return None
