"""Screening: reader -> packer -> runner -> reducer -> writer, on one process or on the ranks of an MPI job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import Interrupted
from atomsieve.screen.finish import ScreenResult, finish
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.prepare import Job, durable_chunks, prepare
from atomsieve.screen.progress import EventLog, ProgressView
from atomsieve.screen.runner import OK, Begun, PredictorLike
from atomsieve.screen.served import Served, Watch, kept
from atomsieve.screen.signals import StopRequest
from atomsieve.screen.store import ResultWriter
from atomsieve.screen.team import Team, connect, guarded
from atomsieve.serve.transport import EndpointError

if TYPE_CHECKING:
    from rich.console import Console

CONDITIONS = ("charge", "spin")
"""Optional fields that a model may need; labels stay on disk."""


class _Stop(Exception):  # noqa: N818 - a request, not an error
    """Leaves the chunk at hand."""


def run_screen(
    candidates: str | Path,
    ensemble: str | Path | None,
    options: ScreenOptions | None = None,
    *,
    served: Served | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    predictor: PredictorLike | None = None,
    reader: Any = None,
    team: Team | None = None,
) -> ScreenResult:
    """Screen every structure of `candidates` with the ensemble folder `ensemble`, or continue a run broken off.

    Parameters
    ----------
    candidates
        input, of any kind that `open_structures` reads.
    ensemble
        the `gfm/` folder; with `served` it may be None, or what the servers must hold.
    options
        what to compute and how; the defaults suit a first run.
    served
        endpoints that compute instead of this process.
    out
        results folder; None takes `<candidates>.results` beside the input.
    overwrite
        discard results of other settings that are in `out`.
    console
        where rank 0 shows the choices made and the progress; None shows nothing.
    predictor
        taken instead of loading the ensemble.
    reader
        taken instead of opening the candidates.
    team
        the processes; None finds out (one alone, or the ranks that a launcher started). Closed at the end.

    Raises
    ------
    AtomSieveError
        among others if `out` is in use or holds results of other settings; Interrupted after Ctrl-C or SIGTERM. With
        several ranks an error is printed once, and every rank leaves by SystemExit with its code.
    """
    team = team or connect()
    with guarded(team), StopRequest() as stop, ExitStack() as stack:
        job = prepare(
            Path(candidates), ensemble, options or ScreenOptions(), served=served, out=out, overwrite=overwrite,
            console=console, predictor=predictor, reader=reader, team=team, stack=stack,
        )  # fmt: skip
        team.record = lambda text: EventLog(job.folder.log)("failed", rank=team.rank, error=text)
        done = durable_chunks(job, stop)
        _leave_if_stopped(job, stop, remaining=job.chunks.count - len(done))
        todo = [chunk for chunk in range(job.chunks.count) if chunk not in done]
        begun = time.perf_counter()
        if todo:
            _screen(job, todo, stop)
        computed = _structures(job, todo)

        def between() -> None:
            if stop.requested:
                raise _interrupted(job, job.team.totals()[0])

        return finish(job, computed, time.perf_counter() - begun, between)


def _screen(job: Job, todo: list[int], stop: StopRequest) -> None:
    """Compute the chunks `todo` together with the other ranks; afterwards all of them are durable."""
    team, clock = job.team, job.clock
    structures = _structures(job, todo)
    view = ProgressView(job.console, job.chunks.n, job.chunks.n - structures, job.log)
    writer = ResultWriter(job.folder, job.rows, job.forces, team.rank, job.options.commit_seconds)

    watch = Watch(job.runner.predictor, job.console, job.log)

    def between_batches() -> None:
        watch()
        if stop.requested:
            raise _Stop
        team.poke()
        if job.lock is not None:
            job.lock.check()
        if view.due:
            view.update(*team.totals())

    with kept(job.folder), view, writer:
        try:
            for chunk, rows, forces, seconds in _computed(job, todo, between_batches):
                with clock("reduce"):
                    job.take(rows)
                with clock("write"):
                    writer.put(chunk, rows, forces, seconds)
                first, end = job.chunks.span(chunk)
                team.report(end - first, int(np.count_nonzero(rows["status"] != OK)))
        except _Stop:
            team.stop()
        except EndpointError:
            writer.commit()
            raise
        with clock("write"):
            writer.commit()
        with clock("wait"):
            _leave_if_stopped(job, stop, remaining=structures)
        watch()
        view.update(*team.totals(), last=True)


def _computed(
    job: Job, todo: list[int], between: Callable[[], None]
) -> Iterator[tuple[int, NDArray[Any], NDArray[np.float32] | None, float]]:
    """Yield chunks that fall to this rank: number, rows, forces, seconds. Servers get the next while one is awaited."""
    begun: deque[tuple[int, float, Begun]] = deque()
    claims = job.team.claims(todo)
    try:
        while True:
            while len(begun) <= job.runner.elsewhere and (chunk := next(claims, None)) is not None:
                since = time.perf_counter()
                first, end = job.chunks.span(chunk)
                with job.clock("read"):
                    batch = job.reader.read(first, end, CONDITIONS)
                with job.clock("predict"):
                    begun.append((chunk, since, job.runner.begin(batch, first)))
            if not begun:
                return
            chunk, since, work = begun[0]
            with job.clock("predict"):
                rows, forces = job.runner.finish(work, between)
            begun.popleft()
            yield chunk, rows, forces, time.perf_counter() - since
    finally:
        for *_, work in begun:
            work.cancel()


def _structures(job: Job, chunks: list[int]) -> int:
    return sum(end - first for first, end in map(job.chunks.span, chunks))


def _leave_if_stopped(job: Job, stop: StopRequest, remaining: int) -> None:
    """Leave on every rank alike if any was asked to stop while work remains."""
    stopped = any(job.team.gather(stop.requested))
    done, _ = job.team.totals()
    if not stopped or done >= remaining:
        return
    if job.log is not None:
        job.log("interrupted", done=done)

    def leave() -> None:
        raise _interrupted(job, done)

    job.team.together(leave)


def _interrupted(job: Job, done: int) -> Interrupted:
    return Interrupted(
        f"{done:,} structures were screened now and are safe in {job.folder.path}; "
        "run the same command again to continue"
    )
