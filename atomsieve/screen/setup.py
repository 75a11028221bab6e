"""Before the loop: open and load, settle what the results folder is for, find what earlier runs left."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.devices import choose_device, device_kind
from atomsieve.errors import AtomSieveError, DataError, UsageError, unknown
from atomsieve.predict.packing import Limit
from atomsieve.predict.status import Status
from atomsieve.runs.lock import PathLock
from atomsieve.runs.mpi import Communicator
from atomsieve.runs.output_files import beside
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.cascade import driver as cascade
from atomsieve.screen.cascade.predictors import cascaded
from atomsieve.screen.engine.batch_budget import resolve_batch_budget
from atomsieve.screen.engine.cpu_fallback import CpuFallback
from atomsieve.screen.engine.cuda_streams import Lanes
from atomsieve.screen.engine.force_spread import resolve_force_spread
from atomsieve.screen.engine.in_flight import Journal
from atomsieve.screen.engine.placement import gpus_beside, places, sharing
from atomsieve.screen.engine.poisoned import PoisonedSpan, find_poisoned
from atomsieve.screen.engine.progress import Clock, EventLog
from atomsieve.screen.engine.runner import PredictorLike, Runner, wanted_properties
from atomsieve.screen.engine.servers import Served, connect, same_for_all
from atomsieve.screen.engine.startup_scan import atom_bounds, known_chunks
from atomsieve.screen.node_local.collect import Collected, resume
from atomsieve.screen.node_local.writer import Carrier, LocalStore, LocalWriter
from atomsieve.screen.options import ALL_HEADS, ScreenOptions
from atomsieve.screen.results import run_record as manifest
from atomsieve.screen.results.chunks import Chunks, chunk_size
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.disk_errors import disk_errors
from atomsieve.screen.results.files import ResultsFolder, partial_path
from atomsieve.screen.results.npy_file import ResultFile, forces_file, row_file
from atomsieve.screen.results.run_record import recorded_backend
from atomsieve.screen.results.writer import ResultWriter
from atomsieve.screen.selection.row_filter import compile_row_filter
from atomsieve.screen.selection.top_k import TopK
from atomsieve.screen.telemetry.monitor import Vitals, vitals_of

if TYPE_CHECKING:
    from rich.console import Console

MOST_HEADS = 255
"""The column `head` is one byte."""


@dataclass(frozen=True)
class Job:
    """What one rank needs for its part of a run.

    Attributes
    ----------
    known : what the ledgers told of each chunk when this run began (dtype `ledger.KNOWN`), sorted by chunk.
    lock, log, console : on rank 0 only.
    local : where results are kept on this node first, and what brings them to the results folder; None without.
    top, status, clock : what this rank has seen so far: best rows, rows per status code, time per stage.
    begun : when the run began (`time.perf_counter`).
    journal : where this rank says what it has at hand.
    poisoned : what was set aside, as far as this rank has seen. retried : chunks of which some was, and which are
        computed once more.
    vitals : what the run tells of itself. batches : where the budget of a batch comes from, in words.
    """

    comm: Communicator
    reader: Any
    runner: Runner
    chunks: Chunks
    manifest: dict[str, Any]
    folder: ResultsFolder
    rows: ResultFile
    forces: ResultFile | None
    known: NDArray[Any]
    options: ScreenOptions
    top: TopK
    status: Counter[int]
    clock: Clock
    begun: float
    lock: PathLock | None
    log: EventLog | None
    console: Console | None
    local: tuple[LocalStore, Carrier] | None = None
    journal: Journal = field(default_factory=Journal)
    poisoned: list[PoisonedSpan] = field(default_factory=list)
    retried: set[int] = field(default_factory=set)
    vitals: Vitals = field(default_factory=Vitals)
    batches: str = ""

    def writer(self) -> ResultWriter:
        """Return what makes chunks of this rank durable."""
        options = self.options
        if self.local is None:
            return ResultWriter(self.folder, self.rows, self.forces, self.comm.rank, options.commit_seconds)
        return LocalWriter(*self.local, self.files, self.comm.rank, options.commit_seconds, options.collect_seconds)

    @property
    def files(self) -> list[ResultFile]:
        """The files that hold a place for every chunk."""
        return [file for file in (self.rows, self.forces) if file is not None]

    def look(self, *, finished: bool = False) -> None:
        """Look at the vitals, between batches of a phase that has no queues."""
        stages = {"seconds_per_stage": dict(self.clock.seconds)}
        self.vitals.look(lambda: stages, self.comm.read_counts, finished=finished)

    def take(self, rows: NDArray[Any]) -> None:
        """Count the rows of a chunk, and let them compete for the table of best rows."""
        self.top.add(rows)
        codes, counts = np.unique(rows["status"], return_counts=True)
        if (poisoned := find_poisoned(rows)) is not None:
            self.poisoned.append(poisoned)
        self.status.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))


def default_out(candidates: Path) -> Path:
    """Return the results folder beside the input."""
    return beside(candidates, ".results")


def prepare(
    source: Path,
    ensemble: str | Path | None,
    options: ScreenOptions,
    *,
    served: Served | None,
    out: str | Path | None,
    overwrite: bool,
    console: Console | None,
    predictor: PredictorLike | None,
    reader: Any,
    comm: Communicator,
    stack: ExitStack,
) -> Job:
    """Return the job of this rank; parameters and errors as in `run_screen`. `stack` holds the lock and the reader."""
    begun, clock, lead = time.perf_counter(), Clock(), comm.rank == 0
    loaded = predictor is None and served is None
    with clock("load"):
        if reader is None:
            reader = stack.enter_context(comm.run_on_all(lambda: _open(source, options.copies)))
        folder = ResultsFolder(Path(out) if out is not None else default_out(source))
        if predictor is None and served is not None:
            predictor = comm.run_on_all(lambda: connect(served, ensemble, options, stack, comm.size))
            same_for_all(comm, predictor)
        elif predictor is None:
            gfm = comm.run_on_all(lambda: _given(ensemble))
            backend, why = comm.run_on_first(lambda: _backend(folder, gfm, options, overwrite))
            predictor = comm.run_on_all(lambda: load_predictor(gfm, options, backend, comm.local_rank))
            if predictor.device.type == "cuda":
                predictor = stack.enter_context(Lanes(predictor))
            if lead and console is not None and options.backend != "native":
                console.print(f"backend: {backend} ({why})", highlight=False, soft_wrap=True)
        model = predictor
        statuses, reasons = _statuses(), _reasons()
    heads = comm.run_on_all(lambda: _heads(model, options.head))
    names, flags = ({code: name for code, (name, _) in known.items()} for known in (statuses, reasons))
    comm.run_on_all(lambda: cascade.check(options, heads, names, flags))
    where = comm.run_on_all(lambda: compile_row_filter(options.where, heads, names, flags, [model.precision]))
    chunks = comm.run_on_all(lambda: _chunks(reader, options, source))
    if lead and console is not None:
        if served is not None:
            console.print(
                f"computed by {served.endpoints}: {model.precision}, backend {model.backend}, {model.device}",
                highlight=False,
                soft_wrap=True,
            )
        given = "" if options.head else " (the ensemble's default)"
        console.print(f"head: {', '.join(heads)}{given}\nresults: {folder.path}", highlight=False, soft_wrap=True)
        if hasattr(model, "note") and (note := model.note(heads[0])):
            console.print(note, highlight=False, soft_wrap=True)
    device = device_kind(model.device)
    server = getattr(model, "server", None)
    spread = comm.run_on_all(lambda: resolve_force_spread(options, model))
    threads = options.threads if device == "cpu" and server is None else None
    where_computed = places(comm, model)
    budget = comm.run_on_first(
        lambda: resolve_batch_budget(
            model,
            reader,
            options,
            folder,
            head=heads[0],
            want=wanted_properties(spread),
            overwrite=overwrite,
            share=sharing(where_computed),
            loaded=loaded,
        )
    )
    if lead and console is not None and not budget.why.startswith(("as asked", "usual")):
        console.print(f"batches: up to {budget.max_atoms:,} atoms ({budget.why})", highlight=False, soft_wrap=True)
    runner = Runner(
        model,
        heads,
        options.forces,
        budget.max_atoms,
        budget.max_edges,
        threads,
        options.max_structure_atoms,
        spread,
        Limit(budget.max_atoms, budget.max_edges),
        CpuFallback(Path(ensemble)) if loaded and ensemble is not None and options.oversized == "cpu" else None,
    )
    if lead and console is not None and threads is not None:
        _advise(console, comm.size * threads)
    wanted = comm.run_on_first(
        lambda: manifest.build_record(
            _facts(source, reader, ensemble, runner, chunks, statuses, reasons, budget.automatic)
        )
    )
    gpus = gpus_beside(where_computed, comm.rank)
    vitals = comm.run_on_all(lambda: vitals_of(runner, chunks.n, comm, options.metrics, gpus))
    bounds = atom_bounds(comm, reader, chunks) if options.forces else None
    rows = row_file(folder, chunks, len(heads))
    forces = None if bounds is None else forces_file(folder, bounds, len(heads))
    lock = PathLock(folder.lock) if lead else None
    files = [file for file in (rows, forces) if file is not None]
    comm.run_on_first(lambda: _occupy(folder, wanted, files, lock, overwrite, stack))
    known = known_chunks(comm, folder)
    local = None
    if options.local is not None:
        entered = set(known["chunk"].tolist())
        store, carrier, brought = resume(comm, Path(options.local), folder, files, entered, chunks.count)
        local = store, carrier
        if brought.chunks:
            known = known_chunks(comm, folder)
        if lead and console is not None:
            _tell(console, brought)
    elif lead and console is not None and folder.local.exists():
        console.print(
            "an earlier part of this run kept results on nodes (--local): what was not brought here by `screen "
            "collect` is computed again",
            highlight=False,
            soft_wrap=True,
        )
    return Job(
        comm=comm,
        reader=reader,
        runner=runner,
        chunks=chunks,
        manifest=wanted,
        folder=folder,
        rows=rows,
        forces=forces,
        known=known,
        options=options,
        status=Counter(),
        top=TopK(options.top, options.by, descending=options.descending, where=where),
        clock=clock,
        begun=begun,
        lock=lock,
        log=EventLog(folder.log) if lead else None,
        console=console if lead else None,
        local=local,
        vitals=vitals,
        batches=budget.why,
        journal=Journal(None if runner.served else folder.at_hand, comm.rank, 1 + runner.elsewhere),
    )


def _facts(
    source: Path,
    reader: Any,
    ensemble: str | Path | None,
    runner: Runner,
    chunks: Chunks,
    statuses: dict[int, tuple[str, str]],
    reasons: dict[int, tuple[str, str]],
    automatic: tuple[str, ...],
) -> manifest.RunFacts:
    """Return what run.json records about this run."""
    predictor: Any = runner.predictor
    device = device_kind(predictor.device)
    return manifest.RunFacts(
        input_path=source.absolute(),
        input_identity=reader.identity(),
        structures=len(reader),
        ensemble_path=ensemble,
        ensemble_id=predictor.ensemble_id,
        heads=runner.heads,
        precision=predictor.precision,
        backend=predictor.backend,
        device=device,
        artefact=getattr(predictor, "artefact", None),
        precisions=getattr(predictor, "precisions", [predictor.precision]),
        uncalibrated=runner.uncalibrated,
        cutoff=predictor.cutoff,
        forces=runner.forces,
        max_structure_atoms=runner.max_structure_atoms,
        force_spread=runner.force_spread,
        oversized_marked=device == "cuda" and runner.oversized is None,
        chunks=chunks,
        max_atoms=runner.max_atoms,
        max_edges=runner.max_edges,
        threads=runner.threads,
        automatic=automatic,
        statuses=statuses,
        reasons=reasons,
        cascade=getattr(predictor, "cascade", None),
        server=getattr(predictor, "server", None),
        endpoints=getattr(predictor, "endpoints", None),
    )


def _tell(console: Console, brought: Collected) -> None:
    """Say what lay on the nodes."""
    if brought.chunks:
        console.print(f"collected: {brought.chunks:,} chunks, nodes: {brought.places:,}", highlight=False)
    if brought.damaged:
        console.print(
            f"{brought.damaged:,} chunks on nodes do not fit their checksums and are computed again", highlight=False
        )


def _advise(console: Console, used: int) -> None:
    """Say how to use the cores that would stay idle."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if used == 1 < cores:
        console.print(
            f"using 1 of {cores} cores; start it as `mpirun -n {cores} screen run ...` to use all",
            highlight=False,
            soft_wrap=True,
        )


def _statuses() -> dict[int, tuple[str, str]]:
    """Return the name and the meaning of each status code."""
    return {int(status): (status.name, status.meaning) for status in Status}


def _reasons() -> dict[int, tuple[str, str]]:
    """Return the name and the meaning of each reason in the column `outside`, by its bit."""
    from atomsieve.predict.domain_flags import Outside

    return {int(reason): (reason.name or "", reason.meaning) for reason in Outside}


def _given(ensemble: str | Path | None) -> str | Path:
    if ensemble is None:
        raise UsageError("no ensemble given; name its folder with --ensemble, or a server with --endpoint")
    return ensemble


def _open(source: Path, copies: str | None) -> Any:
    from atomsieve.structures import open_structures

    return open_structures(source, copies=copies)


def _backend(folder: ResultsFolder, ensemble: str | Path, options: ScreenOptions, overwrite: bool) -> tuple[str, str]:
    """Return the backend and why: `auto` keeps to what an earlier part of the run used, since last bits differ."""
    if options.backend != "auto":
        return options.backend, "as asked"
    recorded = None if overwrite else recorded_backend(folder)
    if recorded is not None:
        return recorded, "as in the earlier part of this run"
    from atomsieve.gfm import read_manifest
    from atomsieve.predict.backends.select import fastest

    return fastest(ensemble, read_manifest(ensemble), options.precision, choose_device(options.device))


def load_predictor(ensemble: str | Path, options: ScreenOptions, backend: str, local_rank: int = 0) -> PredictorLike:
    """Load the ensemble folder as the options say; `local_rank` chooses among the GPUs of a machine."""
    from atomsieve.predict import Predictor

    head = None if options.head in (None, ALL_HEADS) else options.head
    device = str(choose_device(options.device, local_rank))
    if device == "cpu":
        import torch

        torch.set_num_threads(options.threads)
    found = Predictor.load(ensemble, head=head, precision=options.precision, device=device, backend=backend)
    return found if options.cascade is None else cascaded(ensemble, found, options)


def _heads(model: PredictorLike, wanted: str | None) -> list[str]:
    if wanted == ALL_HEADS:
        if len(model.heads) > MOST_HEADS:
            raise UsageError(f"head all: {len(model.heads)} heads, a run takes {MOST_HEADS}; screen by one head")
        return list(model.heads)
    head = wanted or model.default_head
    choices = getattr(model, "choices", model.heads)  # with the mixture of heads, where there is one
    if head not in choices:
        raise unknown("head", head, [*choices, ALL_HEADS])
    return [head]


def _chunks(reader: Any, options: ScreenOptions, source: Path) -> Chunks:
    n = min(len(reader), options.limit or len(reader))
    if n == 0:
        raise DataError(f"{source} holds no structures")
    if options.chunk_size is not None:
        return Chunks(n, options.chunk_size)
    return Chunks(n, chunk_size(n, reader.n_atoms / len(reader)), taper=True)


def _occupy(
    folder: ResultsFolder,
    wanted: dict[str, Any],
    files: list[ResultFile],
    lock: PathLock | None,
    overwrite: bool,
    stack: ExitStack,
) -> None:
    """Lock the folder, agree with what is in it, and have room for every row."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise AtomSieveError(f"{folder.path} is a file, no folder for results; choose another --out") from error
    except OSError as error:
        message = f"cannot make the results folder {folder.path} ({error.strerror}); choose another place with --out"
        raise AtomSieveError(message) from error
    drafts = (folder.lock.name, f".{folder.run.name}.")  # of a first start that was killed
    if not folder.is_ours() and not all(name.startswith(drafts) for name in os.listdir(folder.path)):
        raise AtomSieveError(f"{folder.path} holds other files than screening results; choose another --out")
    with disk_errors(folder.path):
        if lock is not None:
            stack.enter_context(lock)
            folder.sweep()
        manifest.settle(folder, wanted, overwrite=overwrite)
        needed = sum(file.missing_bytes() for file in files)
        usage = os.statvfs(folder.path)
        free = usage.f_bavail * usage.f_frsize
        if needed > free:
            raise AtomSieveError(
                f"no space left for results in {folder.path}: {needed / 1e6:.3f} MB are needed, {free / 1e6:.3f} MB "
                "are free; make room and run the same command again, or choose another --out"
            )
        for file in files:
            file.prepare()


def durable_chunks(job: Job, stop: StopRequest) -> set[int]:
    """Compare the bytes of every chunk in the ledger with its checksums; return the chunks that hold.

    The ranks share the reading, and take the rows into account as if they had computed them.
    """
    good: list[int] = []
    again: list[int] = []
    chunks = np.unique(job.known["chunk"])
    handles = [os.open(partial_path(file.path), os.O_RDONLY) for file in job.files]
    try:
        with job.clock("check"):
            for chunk in chunks[job.comm.rank :: job.comm.size].tolist():
                if stop.closing:
                    break
                job.look()
                data: list[bytes] = []
                found = [job.rows.crc(handles[0], chunk, data.append)]
                found += [file.crc(h, chunk) for file, h in zip(job.files[1:], handles[1:], strict=True)]
                entries = job.known[slice(*np.searchsorted(job.known["chunk"], [chunk, chunk + 1]))]
                if any([e["rows"], e["forces"]][: len(found)] == found for e in entries):
                    rows = np.frombuffer(data[0], ROW)
                    if job.options.retry_poisoned and (rows["status"] == Status.POISONED).any():
                        again.append(chunk)
                        continue
                    good.append(chunk)
                    job.take(rows)
    finally:
        for handle in handles:
            os.close(handle)
    done, retried = (
        set(np.concatenate(job.comm.all_gather(np.array(found, np.int64))).tolist()) for found in (good, again)
    )
    job.retried.update(retried)
    if job.log is not None:
        job.log(
            "start",
            chunks=job.chunks.count,
            done=len(done),
            known=len(chunks),
            ranks=job.comm.size,
            batches=job.batches,
        )
    damaged = 0 if any(job.comm.all_gather(stop.closing)) else len(chunks) - len(done) - len(retried)
    if job.console is not None and done:
        job.console.print(f"continuing: {len(done):,} of {job.chunks.count:,} chunks are done", highlight=False)
    if job.console is not None and damaged:
        job.console.print(f"{damaged:,} chunks do not fit their checksums and are computed again", highlight=False)
    return done
