"""Relaxing the best rows of a screening: groups of structures, on one process or on the ranks of an MPI job."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.fire import check_relaxation
from atomsieve.calculators.relax_result import Stop
from atomsieve.devices import device_kind
from atomsieve.errors import AtomSieveError, DataError, Interrupted, UsageError, unknown
from atomsieve.followup.relax.budget import settle_budget
from atomsieve.followup.relax.files import FORMAT, RelaxFolder, arrays_of, digest, publish
from atomsieve.followup.relax.group import begin, finished, guard_of, rattled, read_arrays, write_arrays
from atomsieve.followup.relax.options import RelaxOptions
from atomsieve.followup.relax.trajectories import Frames
from atomsieve.predict import AnyPredictor
from atomsieve.runs.events import EventLog
from atomsieve.runs.lock import PathLock
from atomsieve.runs.mpi import Communicator, connect_ranks, guard_ranks
from atomsieve.runs.output_files import disk_errors, sibling_path
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.engine.placement import gather_places, ranks_per_device
from atomsieve.screen.failures import translate_loss
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.caveats import describe_mixed_precisions
from atomsieve.screen.results.files import write_whole
from atomsieve.screen.results.record import Results, open_results
from atomsieve.screen.results.screened_input import open_screened_input, read_at
from atomsieve.screen.results.targets import check_apart
from atomsieve.screen.selection.best import best_rows
from atomsieve.screen.selection.row_filter import restrict_to_head
from atomsieve.structures import StructureBatch, open_structures
from atomsieve.text import format_duration, pluralize

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 5.0
SAMPLE = 256  # structures that are enough to learn how much memory their like takes


@dataclass(frozen=True)
class Relaxed:
    """What a relaxation leaves.

    Attributes
    ----------
    folder : of the files. structures : how many. reasons : how many by the name of a `Stop`.
    computed : structures that became done now; seconds : it took. rank : of this process.
    """

    folder: RelaxFolder
    structures: int
    reasons: dict[str, int]
    computed: int
    seconds: float
    rank: int

    @property
    def exit_code(self) -> int:
        """0, or 3 if some structures failed."""
        return 3 if self.reasons.get(Stop.FAILED.name) else 0


@dataclass(frozen=True)
class _Work:
    """What a rank needs: rows [K] of the selection in its order, cut into groups `bounds` [G+1]."""

    comm: Communicator
    predictor: AnyPredictor
    head: str
    results: Results
    rows: NDArray[Any]
    bounds: NDArray[np.int64]
    folder: RelaxFolder
    options: RelaxOptions
    budget: tuple[int, int]
    log: EventLog | None
    lock: PathLock | None
    console: Console | None


def run_relax(
    results: str | Path,
    options: RelaxOptions | None = None,
    *,
    ensemble: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    predictor: AnyPredictor | None = None,
    comm: Communicator | None = None,
) -> Relaxed:
    """Relax the best rows of a results folder, or continue a relaxation that was broken off.

    results : folder of a complete screening. ensemble : the folder of the ensemble that screened; None takes the path
        in run.json. out : folder to write; None takes `<results>.relaxed`. overwrite : discard what is in it.
    console : where rank 0 says what it does; None shows nothing. predictor : taken instead of loading the ensemble.
    comm : the processes; None finds out. Closed at the end.

    Raises
    ------
    AtomSieveError
        among others if the input changed, the ensemble is another one, or `out` holds a relaxation with other
        settings; Interrupted after Ctrl-C or SIGTERM.
    """
    comm = comm or connect_ranks()
    with guard_ranks(comm, translate_loss), StopRequest() as stop, ExitStack() as stack:
        work = _prepare(
            Path(results), options or RelaxOptions(), ensemble, out, overwrite, console, predictor, comm, stack
        )
        begun = time.perf_counter()
        todo = comm.run_on_first(lambda: _unfinished(work))
        _relax(work, todo, stop)
        return _finish(work, todo, time.perf_counter() - begun)


# -- before --------------------------------------------------------------------------------------------------------


def _prepare(
    path: Path,
    options: RelaxOptions,
    ensemble: str | Path | None,
    out: str | Path | None,
    overwrite: bool,
    console: Console | None,
    predictor: AnyPredictor | None,
    comm: Communicator,
    stack: ExitStack,
) -> _Work:
    lead = comm.rank == 0
    results = comm.run_on_all(lambda: open_results(path))
    folder = RelaxFolder(Path(out) if out is not None else sibling_path(path, ".relaxed"))
    comm.run_on_all(lambda: check_apart(folder.path, results))
    head, rows = comm.run_on_first(lambda: select(results, options))
    if predictor is None:
        predictor = comm.run_on_all(lambda: _load(results, ensemble, options, head, comm.local_rank))
    model = predictor
    comm.run_on_all(lambda: _check(model, options, head))
    comm.run_on_all(lambda: _unchanged(results))
    kind = device_kind(model.device)
    share = ranks_per_device(gather_places(comm, model))
    max_atoms, max_edges, group_atoms = comm.run_on_first(
        lambda: settle_budget(
            model,
            options,
            folder,
            lambda: read_rows(results, rows[:: max(len(rows) // SAMPLE, 1)]),
            head=head,
            overwrite=overwrite,
            share=share,
        )
    )
    bounds = group_bounds(rows["natoms"].astype(np.int64), group_atoms)
    lock = PathLock(folder.lock) if lead else None
    wanted = {
        "format": FORMAT,
        "input": {"identity": results.manifest["input"]["identity"], "screened": int(results.chunks.n)},
        "ensemble": {"id": model.ensemble_id, "head": head, "backend": model.backend, "device": kind},
        "options": options.deciding(),
        "batches": {"max_atoms": max_atoms, "max_edges": max_edges, "group_atoms": group_atoms},
        "selection": {"rows": len(rows), "digest": digest(rows)},
        "results_path": str(path.absolute()),
    }

    def occupy() -> None:
        folder.occupy()
        if lock is not None:
            stack.enter_context(lock)
        folder.settle(wanted, overwrite=overwrite)

    comm.run_on_first(occupy)
    if lead and console is not None:
        console.print(
            f"head: {head}\n{pluralize(len(rows), 'structure')}, {pluralize(int(rows['natoms'].sum()), 'atom')}, in "
            f"{pluralize(len(bounds) - 1, 'group')}; batches of {max_atoms:,} atoms, {model.precision} on "
            f"{model.device}\nrelaxed: {folder.path}",
            highlight=False,
            soft_wrap=True,
        )
        if line := describe_mixed_precisions(results, [rows]):
            console.print(f"{line}; all are relaxed in {model.precision}", highlight=False, soft_wrap=True)
    return _Work(
        comm,
        model,
        head,
        results,
        rows,
        bounds,
        folder,
        options,
        (max_atoms, max_edges),
        EventLog(folder.log) if lead else None,
        lock,
        console if lead else None,
    )


def select(results: Results, options: RelaxOptions) -> tuple[str, NDArray[Any]]:
    """Return the head and the best rows of it, best first."""
    if not results.complete:
        raise AtomSieveError(f"{results.folder.path} is not complete; run the screening again first")
    names = results.labels.heads
    head = options.head or names[0]
    if options.head is None and len(names) > 1:
        raise UsageError(f"{results.folder.path} has several heads; name one with --head: {', '.join(names)}")
    if head not in names:
        raise unknown("head", head, names)
    where = restrict_to_head(results, options.where, head) if len(names) > 1 else options.where
    rows = best_rows(results, options.top, options.by, descending=options.descending, where=where)
    if not len(rows):
        raise UsageError(f"{results.folder.path} has no row to relax: none is OK and fulfils --where; give another one")
    return head, rows


def group_bounds(natoms: NDArray[np.int64], group_atoms: int) -> NDArray[np.int64]:
    """Return where groups of about `group_atoms` atoms begin among structures of `natoms` [K] atoms, and K: [G+1]."""
    before = np.cumsum(natoms) - natoms
    first = np.flatnonzero(np.diff(before // group_atoms, prepend=-1))
    return np.append(first, len(natoms)).astype(np.int64)


def _load(results: Results, ensemble: str | Path | None, options: RelaxOptions, head: str, local_rank: int) -> Any:
    """Return the predictor of the ensemble that screened."""
    from atomsieve.gfm import ensemble_id
    from atomsieve.screen.load import load_predictor

    known = ensemble or results.manifest.get("ensemble_path")
    if known is None or not (Path(known) / "manifest.json").is_file():
        where = f"is not at {known}" if known else "is not named in run.json"
        raise AtomSieveError(f"the ensemble that screened {where}; say where it is with --ensemble")
    found, screened = ensemble_id(known), results.manifest["ensemble"]["id"]
    if found != screened:
        raise DataError(
            f"{known} is not the ensemble that screened (id {found[:12]}, screened with {screened[:12]}); name that "
            "one with --ensemble, or screen again"
        )
    loading = ScreenOptions(head=head, precision=options.precision, device=options.device, threads=options.threads)
    return load_predictor(known, loading, "native", local_rank)


def _check(predictor: AnyPredictor, options: RelaxOptions, head: str) -> None:
    """Refuse before any work what the ensemble cannot do."""
    guard = guard_of(predictor, options, head)
    check_relaxation(predictor, options.fmax, options.max_steps, cell=options.cell, guard=guard, head=head)


def _unchanged(results: Results) -> None:
    with open_screened_input(results):
        pass


# -- the work ------------------------------------------------------------------------------------------------------


def _unfinished(work: _Work) -> list[int]:
    """Return the groups without a result that can be read; what is damaged is removed, so that it counts as none."""
    todo = [g for g in range(len(work.bounds) - 1) if read_arrays(work.folder.group(g)) is None]
    damaged = [g for g in todo if work.folder.group(g).exists()]
    with disk_errors(work.folder.path):
        for number in damaged:
            work.folder.group(number).unlink()
    if damaged and work.console is not None:
        work.console.print(f"groups {damaged[:5]} are damaged and relaxed again", highlight=False)
    return todo


def _relax(work: _Work, todo: list[int], stop: StopRequest) -> None:
    """Relax the groups `todo` together with the other ranks."""
    comm, shown = work.comm, time.monotonic()
    begun, total = shown, int(np.diff(work.bounds)[todo].sum())

    def left(count: int) -> None:
        nonlocal shown
        comm.count_done(count, 0)
        now = time.monotonic()
        if work.console is not None and now - shown > LINE_SECONDS:
            shown, done = now, min(comm.read_counts()[0], total)
            ahead = f", {format_duration((total - done) * (now - begun) / done)} left" if done else ""
            work.console.print(f"relaxing: {done:,} of {total:,}{ahead}", highlight=False)

    def stopping() -> bool:
        comm.drive_progress()
        if work.lock is not None:
            work.lock.check()
        return stop.requested

    if work.log is not None:
        work.log("start", groups=len(work.bounds) - 1, todo=len(todo), ranks=comm.size)
    if todo:
        for group in comm.claim(todo):
            if not _one(work, group, stopping, left):
                comm.stop_claims()
                break
    stopped = any(comm.all_gather(stop.requested))
    missing = comm.run_on_first(lambda: [g for g in todo if not work.folder.group(g).exists()])
    if missing:
        comm.run_on_all(lambda: _leave(work, stopped, missing))


def _one(work: _Work, number: int, stop: Any, left: Any) -> bool:
    """Relax one group; False where it was broken off."""
    began = time.perf_counter()
    rows = work.rows[work.bounds[number] : work.bounds[number + 1]]
    start = read_rows(work.results, rows)
    options, folder = work.options, work.folder
    frames = None
    if options.trajectory:
        frames = Frames(folder.trajectories, rows["position"], options.trajectory)
    given = rattled(start, rows["position"], options.rattle)
    with disk_errors(folder.path):
        group = begin(work.predictor, given, options, work.head, work.budget, folder.state(number), frames)
        if not group.run(stop, left):
            return False
        write_arrays(folder.group(number), finished(group, start))
        folder.state(number).unlink(missing_ok=True)
    done = group.batching
    EventLog(folder.log)(
        "group",
        group=number,
        rank=work.comm.rank,
        structures=len(rows),
        evaluations=done.evaluations,
        atom_steps=done.atom_steps,
        shrunk=done.shrunk,
        seconds=round(time.perf_counter() - began, 3),
    )
    return True


def read_rows(results: Results, rows: NDArray[Any]) -> StructureBatch:
    """Return the structures of rows, in their order."""
    with open_structures(Path(results.manifest["input_path"])) as reader:
        return read_at(reader, rows["position"])


def _leave(work: _Work, stopped: bool, missing: list[int]) -> None:
    if not stopped:
        raise AtomSieveError(f"groups {missing[:5]} have no result in {work.folder.groups}; run the same command again")
    raise Interrupted(
        f"what was relaxed is safe in {work.folder.path}, {len(missing):,} of {len(work.bounds) - 1:,} groups are not "
        "finished; run the same command again to continue"
    )


def _finish(work: _Work, todo: list[int], seconds: float) -> Relaxed:
    comm, folder = work.comm, work.folder
    labels, model = work.results.labels, work.predictor

    def write() -> dict[str, int]:
        if todo or not folder.table.is_file():
            about = f"relaxed with ensemble {model.ensemble_id[:16]}, {model.precision}; predicted, not computed"
            publish(folder, work.bounds, work.rows, labels, about)
        codes: Counter[int] = Counter()
        for number in range(len(work.bounds) - 1):
            codes.update(arrays_of(folder, number)["reason"].tolist())
        return {Stop(code).name: n for code, n in sorted(codes.items())}

    reasons = comm.run_on_first(write)
    computed = comm.read_counts()[0]
    result = Relaxed(folder, len(work.rows), reasons, computed, seconds, comm.rank)
    if comm.rank == 0 and todo:
        summary = {
            "structures": result.structures,
            "reasons": reasons,
            "computed": computed,
            "ranks": comm.size,
            "seconds": round(seconds, 3),
            "structures_per_second": round(computed / max(seconds, 1e-9), 3),
        }
        write_whole(folder.summary, (json.dumps(summary, indent=1) + "\n").encode())
    return result
