"""Measures a run while it works and at its end: metrics, memory and energy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from atomsieve.predict.packing import Limit
from atomsieve.runs.mpi import Communicator
from atomsieve.screen.telemetry import energy
from atomsieve.screen.telemetry.prometheus import Metrics, Snapshot, read_memory

SECONDS = 5.0
"""Between two readings."""


@dataclass(frozen=True)
class Watched:
    """The sources that a monitor reads on one rank.

    Attributes
    ----------
    device : where batches are computed. limit : the part of a batch's budget that memory allows, None if not known.
    count_on_cpu : returns how many structures were computed on the CPU because they did not fit into the GPU.
    """

    device: Any
    limit: Limit | None = None
    count_on_cpu: Callable[[], int] = int


class RunMonitor:
    """Read between batches on every rank; without `watched` it measures nothing.

    Parameters
    ----------
    watched : of this rank. structures : of the input. metrics : where to write them; None writes none.
    meter : of this machine's energy, on one rank of each machine.
    """

    def __init__(
        self,
        watched: Watched | None = None,
        structures: int = 0,
        metrics: Metrics | None = None,
        meter: energy.EnergyMeter | None = None,
    ) -> None:
        self._watched, self._structures, self._metrics, self._meter = watched, structures, metrics, meter
        self._expected = structures
        self._begun = self._updated = time.monotonic()

    @property
    def expected(self) -> int:
        """Structures that this start of the run has to compute."""
        return self._expected

    def expect(self, structures: int) -> None:
        """Set the number of structures that this start of the run has to compute."""
        self._expected = structures

    def update(
        self,
        state: Callable[[], dict[str, Any]],
        counts: Callable[[], tuple[int, int]],
        *,
        finished: bool = False,
    ) -> None:
        """Read the energy counters and write the metrics, if `SECONDS` have passed or the run is finished.

        state : returns `seconds_per_stage` and the lengths of queues. counts : structures done and failed, all ranks.
        finished : the results are complete.
        """
        now = time.monotonic()
        if not finished and now - self._updated < SECONDS:
            return
        self._updated = now
        if self._meter is not None:
            self._meter.update()
        if self._metrics is None or not self._metrics.writes:
            return
        found, (done, failed) = state(), counts()
        snapshot = Snapshot(
            total=self._structures,
            done=done,
            failed=failed,
            left=self._expected - done,
            per_second=done / max(now - self._begun, 1e-9),
            stages=found.get("seconds_per_stage", {}),
            queues={name: value for name, value in found.items() if name.startswith("chunks_")},
            memory=self._memory(),
            joules=self._joules(),
            batch_part=self._part,
        )
        self._metrics(snapshot, finished=finished)

    def read(self) -> dict[str, Any]:
        """Return memory, the part of the budget in use, and joules so far, for the log."""
        if self._watched is None:
            return {}
        return {"memory_bytes": self._memory(), "batch_part": self._part, "joules": self._joules()}

    def sum_over_ranks(self, comm: Communicator, computed: int) -> dict[str, Any]:
        """Return energy and memory of the run on rank 0, for the summary; nothing elsewhere. Every rank calls it."""
        if self._watched is None:
            return {}
        limit = self._watched.limit
        own: dict[str, Any] = {
            "energy": None if self._meter is None else self._meter.report(),
            "peak": max(self._memory().get(kind, 0.0) for kind in ("resident_peak", "resident")),
            "device": self._memory().get("device_peak"),
            "failures": 0 if limit is None else limit.failures,
            "part": self._part,
            "on_cpu": self._watched.count_on_cpu(),
        }
        every = comm.gather_on_first(own)
        if every is None:
            return {}
        peaks = [r["device"] for r in every if r["device"] is not None]
        return {
            "energy": energy.total([r["energy"] for r in every], computed),
            "memory": {
                "largest_resident_bytes": max(r["peak"] for r in every),
                "largest_device_bytes": max(peaks, default=None),
                "batches_that_did_not_fit": sum(r["failures"] for r in every),
                "least_part_of_budget": min(r["part"] for r in every),
                "computed_on_cpu_instead": sum(r["on_cpu"] for r in every),
            },
        }

    def _memory(self) -> dict[str, float]:
        return {} if self._watched is None else read_memory(self._watched.device)

    def _joules(self) -> dict[str, float | None]:
        return {} if self._meter is None else self._meter.report()["joules"]

    @property
    def _part(self) -> float:
        limit = None if self._watched is None else self._watched.limit
        return 1.0 if limit is None else limit.part


def open_monitor(
    comm: Communicator,
    watched: Watched,
    structures: int,
    *,
    metrics: str | None,
    labels: Mapping[str, str],
    gpus: list[str],
    served: bool,
) -> RunMonitor:
    """Return the monitor of this rank; on one rank of each machine it includes the machine's energy.

    metrics : name of the file for Prometheus, None for none. labels : of the metric `info`.
    gpus : GPUs of this machine that its ranks compute on. served : servers compute, whose energy is not this machine's.

    Raises
    ------
    AtomSieveError
        if the metrics cannot be written.
    """
    file = None if metrics is None else Metrics(metrics, comm.rank, labels)
    meter = energy.meter(gpus) if comm.local_rank == 0 and not served else None
    return RunMonitor(watched, structures, file, meter)


def format_measurements(measured: dict[str, Any]) -> list[str]:
    """Return lines for people on energy and memory; `measured` is the result of `sum_over_ranks`."""
    if not measured:
        return []
    lines, memory = [energy.format_energy(measured["energy"])], measured["memory"]
    if memory["batches_that_did_not_fit"]:
        lines.append(
            f"batches that did not fit into memory and were split: {memory['batches_that_did_not_fit']:,}; later ones "
            f"were held to {100 * memory['least_part_of_budget']:.0f} % of the budget: last bits may differ from a run "
            "with more memory"
        )
    if memory["computed_on_cpu_instead"]:
        lines.append(
            f"structures that were too large for the device and computed on the CPU: "
            f"{memory['computed_on_cpu_instead']:,}; their last bits are a CPU's (--oversized mark leaves them out)"
        )
    return lines
