"""CPU threads of each copy of a model, so that all copies together use the cores that the machine grants."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomsieve.runs.environment import count_cores

CGROUPS = Path("/sys/fs/cgroup")


def choose_threads(settings_threads: int | None, instances: int = 1) -> int:
    """Return the threads of one copy: those of the settings, of OMP_NUM_THREADS, or an equal share of the cores.

    instances : copies of the model on this machine.
    """
    if settings_threads is not None:
        return settings_threads
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, count_usable_cores() // max(1, instances))


def count_usable_cores(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the cores that this process may use: by its affinity, and by the quota of its container.

    cgroups : where control groups are mounted. own : names those of this process.
    """
    cores, quota = count_cores(), min(_quotas(cgroups, own), default=math.inf)
    return max(1, min(cores, math.ceil(quota)) if math.isfinite(quota) else cores)


def _quotas(cgroups: Path, own: Path) -> list[float]:
    """Return the quotas, in cores, of the groups that this process is in, of either version of control groups."""
    found = []
    for place in _places(cgroups, own):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (place / "cpu.max").read_text().split()
            found.append(float(quota) / float(period))  # `max` is no number: there is no quota
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            spent, period = ((place / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if float(spent) > 0:
                found.append(float(spent) / float(period))
    return found


def _places(cgroups: Path, own: Path) -> list[Path]:
    """Return the folders of the groups of this process and of those that they are in; some need not exist."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    found = [cgroups, cgroups / "cpu"]  # the group of a container, as it sees it
    for fields in lines:
        if len(fields) == 3 and (fields[1] == "" or "cpu" in fields[1].split(",")):
            root = cgroups / "cpu" if fields[1] else cgroups
            path = Path(fields[2].lstrip("/"))
            found += [root / part for part in (path, *path.parents)]
    return list(dict.fromkeys(found))


def count_instances(args: Mapping[str, Any]) -> int:
    """Return the number of copies of a model, from the arguments that Triton's Python backend passes to each."""
    try:
        groups = json.loads(args["model_config"])["instance_group"]
        return max(1, sum(int(g.get("count", 1)) * max(1, len(g.get("gpus") or ())) for g in groups))
    except (KeyError, TypeError, ValueError):
        return 1
