"""A run's state as a Prometheus text file, for collectors of node metrics: `screen run --metrics FILE`.

The file is replaced as a whole every few seconds. Counters count this start of the run; a restart begins at 0, which
Prometheus recognizes as a reset.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError, UsageError, require

log = logging.getLogger(__name__)

SECONDS = 5.0
"""Between two versions of the file."""
RANK = "{rank}"
"""In a file's name: every rank writes a file of its own."""
PREFIX = "atomsieve_screen_"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment, as one rank sees it.

    Attributes
    ----------
    total : structures of the input. done, failed : by this start of the run, all ranks together. left : to be done.
    per_second : structures done per second since the loop began.
    stages : seconds of each stage so far, of this rank. queues : entries waiting before each stage, of this rank.
    memory : bytes by kind, of this rank. joules : by kind, of this machine; None where unknown.
    batch_part : part of the budget of a batch that memory was found to allow.
    """

    total: int
    done: int
    failed: int
    left: int
    per_second: float
    stages: Mapping[str, float] = field(default_factory=dict)
    queues: Mapping[str, int] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    joules: Mapping[str, float | None] = field(default_factory=dict)
    batch_part: float = 1.0


class Metrics:
    """Writes snapshots of one rank.

    Parameters
    ----------
    path : the file. With `{rank}` in its name every rank has one, without it rank 0 has the only one.
    rank : of this process. labels : facts on the run (`ensemble`, `head`, `device`, ...), for the metric `info`.

    Raises
    ------
    AtomSieveError
        if the package is not installed, or the folder of the file is not there or cannot be written; UsageError if
        anything else in braces is in its name.
    """

    def __init__(self, path: str | Path, rank: int, labels: Mapping[str, str]) -> None:
        if wrong := set(re.findall(r"\{.*?\}", str(path))) - {RANK}:
            raise UsageError(f"--metrics {path}: unknown {', '.join(sorted(wrong))}; only {RANK} is replaced in a name")
        self.path = Path(str(path).replace(RANK, str(rank)))
        self.writes = rank == 0 or RANK in str(path)
        self._rank, self._labels = str(rank), dict(labels)
        self._written = float("-inf")
        self._warned = False
        self._prometheus: Any = None
        if self.writes:
            self._prometheus = require("prometheus_client", "metrics", "--metrics")
            require("prometheus_client.core", "metrics", "--metrics")
            if not self.path.parent.is_dir():
                raise AtomSieveError(
                    f"--metrics {path}: there is no folder {self.path.parent}; make it, or name another"
                )
            if self.path.is_dir():
                raise AtomSieveError(
                    f"--metrics {path} is a folder; name a file in it, such as {self.path}/screen.prom"
                )

            self._check_writable()

    def _check_writable(self) -> None:
        """Refuse a place that cannot be written before work begins."""
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            draft.touch()
            draft.unlink()
        except OSError as error:
            raise AtomSieveError(
                f"--metrics {self.path} cannot be written ({error.strerror}); name a file in another folder"
            ) from error

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return self.writes and time.monotonic() - self._written > SECONDS

    def __call__(self, now: Snapshot, *, finished: bool = False) -> None:
        """Write a snapshot; a file that cannot be written is reported once and does not stop the run."""
        if not self.writes:
            return
        self._written = time.monotonic()
        registry = self._prometheus.CollectorRegistry(auto_describe=False)
        registry.register(_Collector(list(self._families(now, finished))))
        try:
            self._prometheus.write_to_textfile(str(self.path), registry)
        except OSError as error:
            if not self._warned:
                log.warning("metrics cannot be written to %s: %s", self.path, error.strerror or error)
            self._warned = True

    def _families(self, now: Snapshot, finished: bool) -> Iterator[Any]:
        core = self._prometheus.core
        rank = {"rank": self._rank}

        def gauge(name: str, text: str, values: Mapping[str, float], label: str | None = None, **more: str) -> Any:
            return _family(core.GaugeMetricFamily, name, text, values, label, more)

        def counter(name: str, text: str, values: Mapping[str, float], label: str | None = None, **more: str) -> Any:
            return _family(core.CounterMetricFamily, name, text, values, label, more)

        yield gauge("info", "What is run; always 1.", {"": 1.0}, None, **self._labels)
        yield gauge("structures", "Structures of the input.", {"": now.total})
        yield counter("structures_done", "Structures done since this start, by all ranks.", {"": now.done})
        yield counter("structures_failed", "Of them, without a result.", {"": now.failed})
        yield gauge("structures_left", "Structures still to be done.", {"": now.left})
        yield gauge("structures_per_second", "Mean since this start, of all ranks.", {"": now.per_second})
        yield counter("stage_seconds", "Time in each stage, of this rank.", now.stages, "stage", **rank)
        yield gauge("queue_depth", "What waits before a stage, of this rank.", now.queues, "queue", **rank)
        yield gauge("memory_bytes", "Memory of this rank and its device.", now.memory, "kind", **rank)
        yield gauge("batch_part", "Part of a batch's budget that memory allows.", {"": now.batch_part}, None, **rank)
        known = {kind: joules for kind, joules in now.joules.items() if joules is not None}
        yield counter("energy_joules", "Energy of this machine since this start.", known, "kind", **rank)
        yield gauge("finished", "1 when all structures are done.", {"": float(finished)})
        yield gauge("updated_seconds", "When this was written (Unix time).", {"": time.time()})


class _Collector:
    """Gives the registry metric families that are complete."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families


def _family(
    kind: Any, name: str, text: str, values: Mapping[str, float], label: str | None, more: Mapping[str, str]
) -> Any:
    """Return a metric with one value, or one for each value of a label."""
    names = [*more, *([label] if label else [])]
    family = kind(PREFIX + name, text, labels=names)
    for value_of_label, value in values.items():
        family.add_metric([*more.values(), *([value_of_label] if label else [])], float(value))
    return family


def read_memory(device: Any) -> dict[str, float]:
    """Return bytes by kind: `resident` and `resident_peak` of this process, and the memory of its GPU."""
    import psutil

    found = {"resident": float(psutil.Process().memory_info().rss)}
    try:
        import resource

        found["resident_peak"] = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except ImportError:
        pass  # where there is none, the peak is left out
    if str(device).startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        found |= {
            "device_allocated": float(torch.cuda.memory_allocated(device)),
            "device_peak": float(torch.cuda.max_memory_allocated(device)),
            "device_reserved": float(torch.cuda.memory_reserved(device)),
            "device_used_by_all": float(total - free),
            "device_total": float(total),
        }
    return found
