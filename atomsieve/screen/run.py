"""Screening: reader -> packer -> runner -> reducer -> writer, on one process or on the ranks of an MPI job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.errors import Interrupted
from atomsieve.predict.status import Status
from atomsieve.runs.mpi import Communicator, connect_ranks, guard_ranks
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.cascade.driver import refine
from atomsieve.screen.engine import locality as near
from atomsieve.screen.engine.progress import EventLog, ProgressView
from atomsieve.screen.engine.reader_process import Reading
from atomsieve.screen.engine.runner import Begun, PredictorLike
from atomsieve.screen.engine.servers import Served, Watch, kept
from atomsieve.screen.engine.writer_thread import Writing
from atomsieve.screen.failures import translate_loss
from atomsieve.screen.finish import ScreenResult, finish
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.quarantine import retry as suspects
from atomsieve.screen.setup import Job, durable_chunks, prepare
from atomsieve.text import pluralize

if TYPE_CHECKING:
    from rich.console import Console


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
    comm: Communicator | None = None,
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
    comm
        the processes; None finds out (one alone, or the ranks that a launcher started). Closed at the end.

    Raises
    ------
    AtomSieveError
        among others if `out` is in use or holds results of other settings; Interrupted after Ctrl-C or SIGTERM. With
        several ranks an error is printed once, and every rank leaves by SystemExit with its code.
    """
    comm, options = comm or connect_ranks(), options or ScreenOptions()
    with guard_ranks(comm, translate_loss), StopRequest(options.grace) as stop, ExitStack() as stack:
        job = prepare(
            Path(candidates),
            ensemble,
            options,
            served=served,
            out=out,
            overwrite=overwrite,
            console=console,
            predictor=predictor,
            reader=reader,
            comm=comm,
            stack=stack,
        )
        comm.save_traceback = lambda text: EventLog(job.folder.log)("failed", rank=comm.rank, error=text)
        if (line := near.said(comm, job.reader, options.copies)) and job.console is not None:
            job.console.print(line, highlight=False, soft_wrap=True)
        done = durable_chunks(job, stop)
        _leave_if_stopped(job, stop, remaining=job.chunks.count - len(done))
        suspected = suspects.find(job, done)
        todo = [chunk for chunk in range(job.chunks.count) if chunk not in done and chunk not in suspected]
        begun, computed = time.perf_counter(), _structures(job, [*todo, *suspected])
        job.vitals.todo = computed
        with job.journal:
            stop.heard = job.journal.told
            if todo:
                screen_chunks(job, todo, stop, _structures(job, list(suspected)))
            if suspected:
                suspects.screen_suspects(job, suspected, stop, ensemble, predictor)
                _leave_if_stopped(job, stop, remaining=computed)
        if job.options.cascade is not None:
            job = refine(job, stop, computed)

        def between() -> None:
            if stop.requested:
                raise _interrupted(job, job.comm.read_counts()[0])
            job.look()

        result = finish(job, computed, time.perf_counter() - begun, between)
        if comm.rank == 0:
            suspects.settled(job)
        job.look(finished=True)
        return result


def screen_chunks(job: Job, todo: list[int], stop: StopRequest, later: int = 0) -> None:
    """Compute the chunks `todo` together with the other ranks; afterwards all of them are durable.

    Chunks are read ahead by a process of its own, packed and computed here, reduced and written by a thread. `later`
    structures are in neither these chunks nor durable ones.
    """
    comm, clock, runner = job.comm, job.clock, job.runner
    structures = _structures(job, todo)
    writer = job.writer()
    claims = comm.claim(todo, *near.queues(comm, job.reader, job.chunks, todo))
    reading = Reading(job.reader, claims, job.chunks.span, job.journal.begin, lambda: between_batches())
    writing = Writing(writer, job.take)
    view = ProgressView(
        job.console, job.chunks.n, job.chunks.n - structures - later, job.log, lambda: _vitals(job, reading, writing)
    )
    watch = Watch(runner.predictor, job.console, job.log)

    def between_batches() -> None:
        watch()
        writing.check()
        if stop.closing:
            job.journal.told()
        if stop.requested:
            raise _Stop
        comm.drive_progress()
        if job.lock is not None:
            job.lock.check()
        if view.due:
            view.update(*comm.read_counts())
        job.vitals.look(lambda: _vitals(job, reading, writing), comm.read_counts)

    begun: deque[tuple[int, float, Begun]] = deque()
    with kept(job.folder), view:
        try:
            with reading, writing:
                for chunk, batch in reading:
                    if stop.closing:
                        comm.stop_claims()
                        break
                    job.journal.begin(chunk)
                    with clock("pack"):
                        begun.append((chunk, time.perf_counter(), runner.begin(batch, job.chunks.start(chunk))))
                    if len(begun) > runner.elsewhere:  # servers get a chunk while the one before is awaited
                        _finish(job, *begun[0], writing, between_batches)
                        begun.popleft()
                while begun:
                    _finish(job, *begun[0], writing, between_batches)
                    begun.popleft()
        except _Stop:
            comm.stop_claims()
        finally:
            for *_, work in begun:
                work.cancel()
            clock.seconds |= _stages(job, reading, writing)
        writing.check()
        with clock("wait for ranks"):
            _leave_if_stopped(job, stop, remaining=structures)
        watch()
        view.update(*comm.read_counts(), last=True)


def _finish(job: Job, chunk: int, since: float, work: Begun, writing: Writing, between: Callable[[], None]) -> None:
    """Compute what is left of a chunk, and hand it over to be written."""
    with job.clock("predict"):
        rows, forces = job.runner.finish(work, between)
    writing.put((chunk, rows, forces, time.perf_counter() - since), job.comm.drive_progress)
    first, end = job.chunks.span(chunk)
    job.comm.count_done(end - first, int(np.count_nonzero(rows["status"] != Status.OK)))


def _stages(job: Job, reading: Reading, writing: Writing) -> dict[str, float]:
    """Return the seconds of every stage so far; those of reading, reducing and writing go on beside the others."""
    held = {"read": reading.seconds, "wait for input": reading.waited, "wait for output": writing.waited}
    return {**job.clock.seconds, **writing.clock.seconds, **held}


def _vitals(job: Job, reading: Reading, writing: Writing) -> dict[str, Any]:
    """Return what a watcher wants to know of this rank."""
    stages = {stage: round(seconds, 3) for stage, seconds in _stages(job, reading, writing).items()}
    lengths = {"chunks_read_ahead": reading.ready, "chunks_to_write": writing.waiting}
    return {"seconds_per_stage": stages, **lengths, **job.vitals.now()}


def _structures(job: Job, chunks: list[int]) -> int:
    return int(np.diff(job.chunks.starts())[np.array(chunks, np.int64)].sum())


def _leave_if_stopped(job: Job, stop: StopRequest, remaining: int) -> None:
    """Leave on every rank alike if any was asked to stop while work remains."""
    stopped = any(job.comm.all_gather(stop.closing))
    done, _ = job.comm.read_counts()
    if not stopped or done >= remaining:
        return
    if job.log is not None:
        job.log("interrupted", done=done)

    def leave() -> None:
        raise _interrupted(job, done)

    job.comm.run_on_all(leave)


def _interrupted(job: Job, done: int) -> Interrupted:
    return Interrupted(
        f"screened now and safe in {job.folder.path}: {pluralize(done, 'structure')}; "
        "run the same command again to continue"
    )
