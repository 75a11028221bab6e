"""How much memory is free, on the host (within the limits of its control groups) and on a GPU."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

GROUPS = Path("/sys/fs/cgroup")


def read_free_memory(device: Any) -> float:
    """Return the bytes that this process may still take on a device (`cpu`, `cuda:0`)."""
    if str(device).startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + cached)
    import psutil

    return float(min(psutil.virtual_memory().available, read_cgroup_free(), read_rlimit_free()))


def read_rlimit_free() -> float:
    """Return the bytes that `ulimit -v` and `ulimit -d` leave to this process; infinity without such limits."""
    try:
        import resource
    except ImportError:
        return float("inf")
    import psutil

    held = psutil.Process().memory_info()
    taken = {resource.RLIMIT_AS: held.vms, resource.RLIMIT_DATA: getattr(held, "data", 0)}
    soft = {kind: resource.getrlimit(kind)[0] for kind in taken}
    left = [float(soft[kind] - taken[kind]) for kind in taken if soft[kind] != resource.RLIM_INFINITY]
    return max(0.0, min(left, default=float("inf")))


def read_cgroup_free(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the bytes that the control groups of this process leave to it; infinity without a limit.

    A limit may be set at every level from the process's own group up to the root; files that the system can drop are
    not counted as taken. Versions 1 and 2 of control groups are read.
    """
    free = float("inf")
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return free
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            root = groups
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = groups / "memory"
        else:
            continue
        level = root / path.strip("/")
        for folder in (level, *level.parents):
            free = min(free, _read_group(folder, *names))
            if folder == root:
                break
    return free


def _read_group(folder: Path, limit: str, current: str, droppable: str) -> float:
    try:
        text = (folder / limit).read_text().strip()
        if text == "max":
            return float("inf")
        taken = float((folder / current).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0.0, float(text) - taken + float(stat.get(droppable, 0)))
    except (OSError, ValueError):
        return float("inf")


def trim_heap() -> None:
    """Return freed memory that the allocator still holds to the system (with glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def format_bytes(size: float) -> str:
    """Return a number of bytes as text: `812 MiB`, `3.4 GiB`."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"
