"""What a run tells of itself while it runs and at its end: metrics, memory and energy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atomsieve.screen.telemetry import energy
from atomsieve.screen.telemetry.prometheus import Metrics, Snapshot, memory_in_use

if TYPE_CHECKING:
    from atomsieve.runs.mpi import Communicator
    from atomsieve.screen.engine.runner import Runner

SECONDS = 5.0
"""Between two looks."""


class Vitals:
    """Looked at between batches on every rank; without a runner it tells nothing.

    Parameters
    ----------
    runner : of this rank. structures : of the input. metrics : where to write, if anywhere.
    meter : of this machine's energy, on one rank of each.

    Attributes
    ----------
    todo : structures that this start of the run has to do.
    """

    def __init__(
        self,
        runner: Runner | None = None,
        structures: int = 0,
        metrics: Metrics | None = None,
        meter: energy.EnergyMeter | None = None,
    ) -> None:
        self._runner, self._structures, self._metrics, self._meter = runner, structures, metrics, meter
        self.todo = structures
        self._begun = self._looked = time.monotonic()

    def look(
        self,
        state: Callable[[], dict[str, Any]],
        totals: Callable[[], tuple[int, int]],
        *,
        finished: bool = False,
    ) -> None:
        """Read the energy counters and write the metrics, if it is time to: in every phase of a run.

        state : `seconds_per_stage` and the depths of queues. totals : structures done and failed by all ranks.
        finished : the results are complete.
        """
        now = time.monotonic()
        if not finished and now - self._looked < SECONDS:
            return
        self._looked = now
        if self._meter is not None:
            self._meter.update()
        if self._metrics is None or not self._metrics.writes:
            return
        told, (done, failed) = state(), totals()
        stages = told.pop("seconds_per_stage", {})
        queues = {name: value for name, value in told.items() if name.startswith("chunks_")}
        snapshot = Snapshot(
            total=self._structures,
            done=done,
            failed=failed,
            left=self.todo - done,
            per_second=done / max(now - self._begun, 1e-9),
            stages=stages,
            queues=queues,
            memory=self._memory(),
            joules=self._joules(),
            batch_part=self._part,
        )
        self._metrics(snapshot, finished=finished)

    def now(self) -> dict[str, Any]:
        """Return memory, the part of the budget in use, and joules so far, for the log."""
        if self._runner is None:
            return {}
        return {"memory_bytes": self._memory(), "batch_part": self._part, "joules": self._joules()}

    def measured(self, comm: Communicator, computed: int) -> dict[str, Any]:
        """Return energy and memory of the run on rank 0, for the summary; nothing elsewhere. Every rank calls it."""
        if self._runner is None:
            return {}
        limit, cpu = self._runner.limit, self._runner.oversized
        own: dict[str, Any] = {
            "energy": None if self._meter is None else self._meter.report(),
            "peak": max(self._memory().get(kind, 0.0) for kind in ("resident_peak", "resident")),
            "device": self._memory().get("device_peak"),
            "failures": 0 if limit is None else limit.failures,
            "part": self._part,
            "on_cpu": 0 if cpu is None else cpu.computed,
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
        return {} if self._runner is None else memory_in_use(getattr(self._runner.predictor, "device", "cpu"))

    def _joules(self) -> dict[str, float | None]:
        return {} if self._meter is None else self._meter.report()["joules"]

    @property
    def _part(self) -> float:
        limit = None if self._runner is None else self._runner.limit
        return 1.0 if limit is None else limit.part


def vitals_of(runner: Runner, structures: int, comm: Communicator, metrics: str | None, gpus: list[str]) -> Vitals:
    """Return the vitals of this rank; on one rank of each machine they include its energy, and that of its `gpus`.

    Raises
    ------
    AtomSieveError
        if the metrics cannot be written.
    """
    model = runner.predictor
    file = None
    if metrics is not None:
        labels = {
            "ensemble": model.ensemble_id[:12],
            "heads": ",".join(runner.heads),
            "precision": model.precision,
            "backend": model.backend,
            "device": str(model.device),
            "ranks": str(comm.size),
        }
        file = Metrics(metrics, comm.rank, labels)
    meter = None
    if comm.local_rank == 0 and not runner.served:  # what servers take is not this machine's
        meter = energy.meter(gpus)
    return Vitals(runner, structures, file, meter)


def lines_of(measured: dict[str, Any]) -> list[str]:
    """Return lines for people on what `measured` gave."""
    if not measured:
        return []
    lines, memory = [energy.said(measured["energy"])], measured["memory"]
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
