"""The context of a run on one rank, which its phases share: the main loop, the isolated retry, and the cascade.

A phase is called as `phase(context, chunks)`, computes those chunks together with the other ranks, and returns the
`Tally` of the rows that this rank computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atomsieve.errors import Interrupted
from atomsieve.predict.status import Status
from atomsieve.runs.lock import PathLock
from atomsieve.runs.mpi import Communicator
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.engine.in_flight import InFlightMarkers
from atomsieve.screen.engine.reporter import Reporter
from atomsieve.screen.engine.result_files import RunFiles
from atomsieve.screen.engine.rows import Rows
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.engine.tally import Tally
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.table import Ranking
from atomsieve.screen.selection.row_filter import Where, uses_stability
from atomsieve.screen.selection.top_k import TopK
from atomsieve.screen.telemetry.clock import Clock
from atomsieve.screen.telemetry.monitor import RunMonitor
from atomsieve.structures import StructureReader
from atomsieve.text import pluralize


class StopNow(Exception):  # noqa: N818 - a request, not an error
    """Raised between batches when a signal asked to stop at once: the phase drops its chunk."""


@dataclass(frozen=True)
class Watch:
    """Objects that a rank attends to between batches.

    Attributes
    ----------
    stop : signals that ask to stop.
    in_flight : the markers of the chunks that this rank is computing.
    monitor : energy, memory and metrics.
    lock : of the results folder, on rank 0 only.
    """

    stop: StopRequest
    in_flight: InFlightMarkers = field(default_factory=InFlightMarkers)
    monitor: RunMonitor = field(default_factory=RunMonitor)
    lock: PathLock | None = None


@dataclass(frozen=True)
class RankContext:
    """The context of a run on one rank; see the module.

    Attributes
    ----------
    comm : the ranks. reader : the input. runner : computes chunks. chunks : how the input is cut.
    files : where results go. options : of the run.
    results : the folder, for columns beside the rows.
    ranking : the column that ranks the rows. where : the compiled row filter, None without one.
    clock : seconds of each stage. reporter : lines and events. watch : attended to between batches.
    """

    comm: Communicator
    reader: StructureReader
    runner: Runner
    chunks: Chunks
    files: RunFiles
    options: ScreenOptions
    results: Results
    ranking: Ranking
    where: Where | None
    clock: Clock
    reporter: Reporter
    watch: Watch

    def between(self, state: Callable[[], dict[str, Any]] | None = None) -> None:
        """Attend to everything but the work; called between batches, and every moment of a wait.

        state : seconds of each stage and lengths of queues for the monitor; by default the seconds of `clock`.

        Raises
        ------
        StopNow
            if a signal asks to stop at once.
        """
        watch = self.watch
        if watch.stop.closing:
            watch.in_flight.forgive()
        if watch.stop.requested:
            raise StopNow
        self.comm.drive_progress()
        if watch.lock is not None:
            watch.lock.check()
        watch.monitor.update(state or self._stages, self.comm.read_counts)

    def update_monitor(self, *, finished: bool = False) -> None:
        """Let the monitor read, in a phase that has no queues."""
        self.watch.monitor.update(self._stages, self.comm.read_counts, finished=finished)

    def _stages(self) -> dict[str, Any]:
        return {"seconds_per_stage": dict(self.clock.seconds)}

    @property
    def ranks_at_end(self) -> bool:
        """Whether rows are ranked or filtered by columns that need the stored energies of members and the input."""
        return uses_stability(self.options.by, self.options.where)

    def new_tally(self) -> Tally:
        """Return a tally of no rows, which ranks and filters as the options ask."""
        options = self.options
        most = 0 if self.ranks_at_end else options.top
        return Tally(TopK(most, self.ranking, descending=options.descending, where=self.where))

    def count_structures(self, chunks: Iterable[int]) -> int:
        """Return the number of structures in these chunks."""
        return int(np.diff(self.chunks.starts())[np.array(list(chunks), np.int64)].sum())

    def report_chunk(self, chunk: int, rows: Rows) -> None:
        """Count the structures of a computed chunk as done, for all ranks to see."""
        first, end = self.chunks.span(chunk)
        self.comm.count_done(end - first, int(np.count_nonzero(rows["status"] != Status.OK)))

    def leave_if_stopped(self, remaining: int) -> None:
        """Leave on every rank alike if any was asked to stop before `remaining` structures were done.

        Raises
        ------
        Interrupted
            on every rank.
        """
        stopped = any(self.comm.all_gather(self.watch.stop.closing))
        done, _ = self.comm.read_counts()
        if not stopped or done >= remaining:
            return
        self.reporter.record("interrupted", done=done)
        self.comm.run_on_all(self._leave, done)

    def _leave(self, done: int) -> None:
        raise self.interrupted_error(done)

    def interrupted_error(self, done: int) -> Interrupted:
        """Return the error of a run that was stopped after `done` structures."""
        return Interrupted(
            f"screened now and safe in {self.files.folder.path}: {pluralize(done, 'structure')}; "
            "run the same command again to continue"
        )
