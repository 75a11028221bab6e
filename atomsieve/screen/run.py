"""Screening: reader -> packer -> runner -> reducer -> writer, on one process or on the ranks of an MPI job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.errors import UsageError
from atomsieve.predict.interface import AnyPredictor
from atomsieve.runs.events import EventLog
from atomsieve.runs.mpi import Communicator, connect_ranks, guard_ranks
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.cascade.driver import refine, use_better
from atomsieve.screen.engine.context import RankContext, StopNow, Watch
from atomsieve.screen.engine.in_flight import InFlightMarkers
from atomsieve.screen.engine.locality import assign_queues
from atomsieve.screen.engine.progress import ProgressView
from atomsieve.screen.engine.reader_process import ChunkSource
from atomsieve.screen.engine.reporter import Reporter
from atomsieve.screen.engine.runner import ChunkInProgress
from atomsieve.screen.engine.servers import RemoteOptions, ServerWatch, add_resume_hint
from atomsieve.screen.engine.tally import Tally
from atomsieve.screen.engine.writer_thread import ChunkWriter
from atomsieve.screen.failures import translate_loss
from atomsieve.screen.finish import ScreenResult, finish
from atomsieve.screen.greeting import greet, greet_again
from atomsieve.screen.load import check_call, convert_candidates, open_input, open_model, require_ensemble
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.quarantine.retry import clear_retry_state, retry_suspects
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.run_record import recorded_chunks
from atomsieve.screen.setup import Claim, Plan, claim_folder, default_out, make_plan, recover
from atomsieve.screen.telemetry.clock import Clock
from atomsieve.structures import StructureReader
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import STDIN, remove_copy

if TYPE_CHECKING:
    from rich.console import Console


def run_screen(
    candidates: str | Path,
    ensemble: str | Path | None,
    options: ScreenOptions | None = None,
    *,
    served: RemoteOptions | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    reading: ReadOptions | None = None,
    predictor: AnyPredictor | None = None,
    reader: StructureReader | None = None,
    comm: Communicator | None = None,
) -> ScreenResult:
    """Screen every structure of `candidates` with the ensemble folder `ensemble`, or continue an interrupted run.

    Parameters
    ----------
    candidates
        input: a dataset, or a file or folder of any readable format, which is converted once into a dataset beside the
        results; `-` for extended XYZ from standard input.
    ensemble
        the `gfm/` folder; with `served` it may be None, or the ensemble that the servers must hold.
    options
        how to screen; the defaults suit a first run.
    served
        endpoints that compute instead of this process.
    out
        results folder; None takes `<candidates>.results` next to the input.
    overwrite
        discard results of other settings that are in `out`.
    console
        where rank 0 prints the choices made and the progress; None prints nothing.
    reading
        how a file that is no dataset is read.
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
    begun, clock = time.perf_counter(), Clock()
    comm, options = comm or connect_ranks(), options or ScreenOptions()
    path, reading = Path(candidates), ReadOptions() if reading is None else reading
    if out is None and str(path) == STDIN:
        raise UsageError("standard input has no name to call the results by; name their folder with --out")
    folder = ResultsFolder(Path(out) if out is not None else default_out(path))
    with guard_ranks(comm, translate_loss), ExitStack() as stack:
        copy = None
        if reader is None:
            gfm = None if predictor is not None or served is not None else require_ensemble(ensemble)
            inside = comm.run_on_first(check_call, path, gfm, options, folder)
            if inside is not None and inside != ensemble:
                Reporter(console if comm.rank == 0 else None).show(f"ensemble: {inside}")
                ensemble = inside
            with clock("convert"):  # a signal ends it at once: the same command goes on
                copy = convert_candidates(comm, path, folder, options, reading, console)
        stop = stack.enter_context(StopRequest(options.grace))
        with clock("load"):
            recorded = None if overwrite else comm.run_on_first(recorded_chunks, folder)
            source = open_input(comm, path, options, reader, stack, copy, reading, recorded)
            model = open_model(
                comm, ensemble, options, folder, served=served, predictor=predictor, overwrite=overwrite, stack=stack
            )
        plan = make_plan(comm, source, model, options, folder, overwrite=overwrite)
        greet(Reporter(console if comm.rank == 0 else None), plan)
        claim = claim_folder(comm, plan, overwrite=overwrite, stack=stack)
        context = make_context(comm, plan, claim, stop, clock, console)
        comm.save_traceback = lambda text: EventLog(folder.log)("failed", rank=comm.rank, error=text)
        found = recover(context, plan, claim)
        greet_again(context.reporter, claim, found)
        context.leave_if_stopped(found.count - len(found.done))
        started, chunks = time.perf_counter(), [*found.todo, *found.suspects]
        computed, seen = context.count_structures(chunks), found.tally
        context.watch.monitor.expect(computed)
        with context.watch.in_flight as in_flight:
            stop.on_signal = in_flight.forgive
            if found.todo:
                seen = seen.merge(screen_chunks(context, found.todo))
            if found.suspects:
                seen = seen.merge(retry_suspects(context, found.suspects, model.reload))
                context.leave_if_stopped(computed)
        if model.pair is not None:
            context = use_better(context, model.pair)
            seen = refine(context, chunks, seen, model.pair)
        unreadable = None if copy is None else copy.unreadable
        seconds = time.perf_counter() - started
        result = finish(context, plan.record, seen, computed, begun=begun, seconds=seconds, unreadable=unreadable)
        if copy is not None and not options.keep_converted:
            comm.run_on_first(remove_copy, copy.path)
        if comm.rank == 0 and not context.runner.served:
            clear_retry_state(folder)
        context.update_monitor(finished=True)
        return result


def make_context(
    comm: Communicator, plan: Plan, claim: Claim, stop: StopRequest, clock: Clock, console: Console | None
) -> RankContext:
    """Return the context of this rank; rank 0 alone prints and logs."""
    folder, runner = plan.files.folder, plan.runner
    lead = comm.rank == 0
    markers = InFlightMarkers(None if runner.served else folder.at_hand, comm.rank, 1 + runner.asynchronous)
    return RankContext(
        comm=comm,
        reader=plan.source.reader,
        runner=runner,
        chunks=plan.source.chunks,
        files=claim.files,
        options=plan.options,
        results=plan.results,
        ranking=plan.ranking,
        where=plan.where,
        clock=clock,
        reporter=Reporter(console, EventLog(folder.log)) if lead else Reporter(),
        watch=Watch(stop, markers, plan.monitor, claim.lock),
    )


def screen_chunks(context: RankContext, chunks: list[int]) -> Tally:
    """Compute chunks together with the other ranks; afterwards all of them are durable. Return this rank's tally.

    A separate process reads chunks ahead, this thread packs and computes them, another thread counts and writes them.
    """
    comm, clock, runner, watch = context.comm, context.clock, context.runner, context.watch
    tally, structures = context.new_tally(), context.count_structures(chunks)
    claims = comm.claim(chunks, *assign_queues(comm, context.reader, context.chunks, chunks))
    reading = ChunkSource(context.reader, claims, context.chunks.span, watch.in_flight.begin, lambda: between_batches())
    writing = ChunkWriter(context.files.open_writer(comm.rank, context.options), tally.add)
    n = context.chunks.n
    view = ProgressView(context.reporter, n, n - watch.monitor.expected, lambda: _measure(context, reading, writing))
    servers = ServerWatch(runner.predictor, context.reporter)

    def between_batches() -> None:
        servers()
        writing.check()
        context.between(lambda: _measure(context, reading, writing))
        if view.due:
            view.update(*comm.read_counts())

    begun: deque[tuple[int, float, ChunkInProgress]] = deque()
    with add_resume_hint(context.files.folder), view:
        try:
            with reading, writing:
                for chunk, batch in reading:
                    if watch.stop.closing:
                        comm.stop_claims()
                        break
                    watch.in_flight.begin(chunk)
                    with clock("pack"):
                        begun.append((chunk, time.perf_counter(), runner.begin(batch, context.chunks.start(chunk))))
                    if len(begun) > runner.asynchronous:  # the next chunk is submitted while this one is computed
                        _finish_chunk(context, *begun[0], writing, between_batches)
                        begun.popleft()
                while begun:
                    _finish_chunk(context, *begun[0], writing, between_batches)
                    begun.popleft()
        except StopNow:
            comm.stop_claims()
        finally:
            for *_, work in begun:
                work.cancel()
            clock.seconds |= _stages(context, reading, writing)
        writing.check()
        with clock("wait for ranks"):
            context.leave_if_stopped(structures)
        servers()
        view.update(*comm.read_counts(), last=True)
    return tally


def _finish_chunk(
    context: RankContext,
    chunk: int,
    since: float,
    work: ChunkInProgress,
    writing: ChunkWriter,
    between: Callable[[], None],
) -> None:
    """Compute the rest of a chunk, and hand it over to be written."""
    with context.clock("predict"):
        arrays = context.runner.finish(work, between)
    writing.put((chunk, arrays, time.perf_counter() - since), context.comm.drive_progress)
    context.report_chunk(chunk, arrays.rows)


def _stages(context: RankContext, reading: ChunkSource, writing: ChunkWriter) -> dict[str, float]:
    """Return the seconds of every stage so far; reading, reducing and writing run at the same time as the others."""
    held = {"read": reading.seconds, "wait for input": reading.waited, "wait for output": writing.waited}
    return {**context.clock.seconds, **writing.clock.seconds, **held}


def _measure(context: RankContext, reading: ChunkSource, writing: ChunkWriter) -> dict[str, Any]:
    """Return the state of this rank for the log and the metrics."""
    stages = {stage: round(seconds, 3) for stage, seconds in _stages(context, reading, writing).items()}
    lengths = {"chunks_read_ahead": reading.ready, "chunks_to_write": writing.waiting}
    return {"seconds_per_stage": stages, **lengths, **context.watch.monitor.read()}
