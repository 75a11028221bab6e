"""Relaxation of the best rows of a screening: groups of structures, in one process or on the ranks of an MPI job."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.minimiser import check_relaxation
from atomsieve.calculators.relax_result import Stop
from atomsieve.devices import device_kind
from atomsieve.errors import AtomSieveError, Interrupted, UsageError
from atomsieve.followup.ensemble import find_ensemble
from atomsieve.followup.relax.budget import resolve_budget
from atomsieve.followup.relax.files import FORMAT, RelaxFolder, digest_rows, publish, read_group
from atomsieve.followup.relax.group import begin_group, collect_arrays, make_guard, rattle, read_arrays, write_arrays
from atomsieve.followup.relax.options import RelaxOptions
from atomsieve.followup.relax.stability import find_references, measure_stability
from atomsieve.followup.relax.trajectories import Frames
from atomsieve.predict import AnyPredictor
from atomsieve.predict.dispersion import add_dispersion
from atomsieve.runs.events import EventLog
from atomsieve.runs.lock import PathLock
from atomsieve.runs.mpi import Communicator, connect_ranks, guard_ranks
from atomsieve.runs.output_files import disk_errors, sibling_path
from atomsieve.runs.output_folder import write_output
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.engine.placement import gather_places, ranks_per_device
from atomsieve.screen.failures import translate_loss
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.caveats import describe_mixed_precisions
from atomsieve.screen.results.record import Results, open_results
from atomsieve.screen.results.screened_input import open_screened_input, read_at
from atomsieve.screen.results.stability import choose_ranking
from atomsieve.screen.results.table import read_ids
from atomsieve.screen.results.targets import check_apart
from atomsieve.screen.selection.select import Selection, select_one_head
from atomsieve.stability.phases import ReferenceSet
from atomsieve.structures import StructureBatch
from atomsieve.text import format_duration, pluralize

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 5.0
SAMPLE = 256  # structures that suffice to measure the memory of a batch


@dataclass(frozen=True)
class RelaxSummary:
    """Result of a relaxation.

    Attributes
    ----------
    folder : of the files. structures : number of structures. reasons : their number by the name of a `Stop`.
    computed : structures that became done in this run. seconds : its duration. rank : of this process.
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
    """The work of a rank: rows [K] of the selection in its order, divided into groups by `bounds` [G+1]."""

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
    references: ReferenceSet | None


def run_relax(
    results: str | Path,
    options: RelaxOptions | None = None,
    *,
    ensemble: str | Path | None = None,
    moved_input: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    predictor: AnyPredictor | None = None,
    comm: Communicator | None = None,
) -> RelaxSummary:
    """Relax the best rows of a results folder, or continue an interrupted relaxation.

    results : folder of a complete screening. ensemble : the folder of the ensemble that screened; None takes the path
        in run.json. moved_input : where the screened structures lie now, if they were moved. out : folder to write;
        None takes `<results>.relaxed`. overwrite : discard what is in it.
    console : where rank 0 prints its progress; None prints nothing. predictor : taken instead of loading the ensemble.
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
            Path(results),
            options or RelaxOptions(),
            ensemble,
            moved_input,
            out,
            overwrite,
            console,
            predictor,
            comm,
            stack,
        )
        begun = time.perf_counter()
        todo = comm.run_on_first(_find_unfinished, work)
        _relax(work, todo, stop)
        return _finish(work, todo, time.perf_counter() - begun)


# -- before --------------------------------------------------------------------------------------------------------


def _prepare(
    path: Path,
    options: RelaxOptions,
    ensemble: str | Path | None,
    moved_input: str | Path | None,
    out: str | Path | None,
    overwrite: bool,
    console: Console | None,
    predictor: AnyPredictor | None,
    comm: Communicator,
    stack: ExitStack,
) -> _Work:
    lead = comm.rank == 0
    results = comm.run_on_all(open_results, path, moved_input)
    folder = RelaxFolder(Path(out) if out is not None else sibling_path(path, ".relaxed"))
    comm.run_on_all(check_apart, folder.path, results)
    by = comm.run_on_first(choose_ranking, results, options.selection.by)
    options = replace(options, selection=replace(options.selection, by=by))
    head, rows = comm.run_on_first(select_rows, results, options.selection)
    comm.run_on_first(_require_same_input, results)  # a removed copy of a file is converted again, once
    comm.run_on_all(_require_same_input, results)
    references = None
    if predictor is None:
        place = find_ensemble(results, ensemble, "relaxing")
        references = comm.run_on_all(find_references, place, head)
        predictor = comm.run_on_all(_load, results, ensemble, options, head, comm.local_rank)
    model = predictor
    comm.run_on_all(_check_predictor, model, options, head)
    kind = device_kind(model.device)
    share = ranks_per_device(gather_places(comm, model))
    max_atoms, max_edges, group_atoms = comm.run_on_first(
        resolve_budget,
        model,
        options,
        folder,
        lambda: read_rows(results, rows[:: max(len(rows) // SAMPLE, 1)]),
        head=head,
        overwrite=overwrite,
        share=share,
    )
    bounds = find_group_bounds(rows["natoms"].astype(np.int64), group_atoms)
    lock = PathLock(folder.lock) if lead else None
    wanted = {
        "format": FORMAT,
        "input": {"identity": results.manifest["input"]["identity"], "screened": int(results.chunks.n)},
        "ensemble": {"id": model.ensemble_id, "head": head, "backend": model.backend, "device": kind},
        "options": options.deciding(),
        "batches": {"max_atoms": max_atoms, "max_edges": max_edges, "group_atoms": group_atoms},
        "selection": {"rows": len(rows), "digest": digest_rows(rows)},
        "results_path": str(path.absolute()),
    }
    if references is not None:
        wanted["references"] = references.digest

    def occupy() -> None:
        if lock is not None:
            folder.occupy(lock, stack)
        folder.settle(wanted, overwrite=overwrite)

    comm.run_on_first(occupy)
    log = EventLog(folder.log) if lead else None
    batches, shown = (max_atoms, max_edges), console if lead else None
    work = _Work(comm, model, head, results, rows, bounds, folder, options, batches, log, lock, shown, references)
    _greet(work)
    return work


def _greet(work: _Work) -> None:
    """Print what is relaxed, how, and where the results go."""
    if work.console is None:
        return
    rows, model = work.rows, work.predictor
    work.console.print(
        f"head: {work.head}\n{pluralize(len(rows), 'structure')}, {pluralize(int(rows['natoms'].sum()), 'atom')}, in "
        f"{pluralize(len(work.bounds) - 1, 'group')}; batches of {work.budget[0]:,} atoms, {model.precision} on "
        f"{model.device}\nrelaxed: {work.folder.path}",
        highlight=False,
        soft_wrap=True,
    )
    if work.options.dispersion is not None and (note := model.note(work.head)) is not None:
        work.console.print(note, highlight=False, soft_wrap=True)
    if line := describe_mixed_precisions(work.results, [rows]):
        work.console.print(f"{line}; all are relaxed in {model.precision}", highlight=False, soft_wrap=True)


def select_rows(results: Results, selection: Selection) -> tuple[str, NDArray[Any]]:
    """Return the head of the selected rows, and the rows, best first; refuse a selection without rows."""
    head, rows = select_one_head(results, selection)
    if not len(rows):
        raise UsageError(f"{results.folder.path} has no row to relax: none is OK and fulfils --where; give another one")
    return head, rows


def find_group_bounds(natoms: NDArray[np.int64], group_atoms: int) -> NDArray[np.int64]:
    """Return where groups of about `group_atoms` atoms begin among structures of `natoms` [K] atoms, and K: [G+1]."""
    before = np.cumsum(natoms) - natoms
    first = np.flatnonzero(np.diff(before // group_atoms, prepend=-1))
    return np.append(first, len(natoms)).astype(np.int64)


def _load(
    results: Results, ensemble: str | Path | None, options: RelaxOptions, head: str, local_rank: int
) -> AnyPredictor:
    """Return the predictor of the ensemble that screened."""
    from atomsieve.screen.load import load_predictor

    folder = find_ensemble(results, ensemble, "relaxing")
    loading = ScreenOptions(head=head, precision=options.precision, device=options.device, threads=options.threads)
    return add_dispersion(load_predictor(folder, loading, "native", local_rank), options.dispersion, head)


def _check_predictor(predictor: AnyPredictor, options: RelaxOptions, head: str) -> None:
    """Refuse before any work options that the ensemble cannot fulfil."""
    guard = make_guard(predictor, options, head)
    check_relaxation(predictor, options.fmax, options.max_steps, cell=options.cell, guard=guard, head=head)


def _require_same_input(results: Results) -> None:
    with open_screened_input(results):
        pass


# -- the work ------------------------------------------------------------------------------------------------------


def _find_unfinished(work: _Work) -> list[int]:
    """Return the groups without a readable result; damaged files are removed."""
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
            if not _relax_group(work, group, stopping, left):
                comm.stop_claims()
                break
    stopped = any(comm.all_gather(stop.requested))
    missing = comm.run_on_first(lambda: [g for g in todo if not work.folder.group(g).exists()])
    if missing:
        comm.run_on_all(_raise_unfinished, work, stopped, missing)


def _relax_group(work: _Work, number: int, stop: Any, left: Any) -> bool:
    """Relax one group; return False if it was interrupted."""
    began = time.perf_counter()
    rows = work.rows[work.bounds[number] : work.bounds[number + 1]]
    start = read_rows(work.results, rows)
    options, folder = work.options, work.folder
    frames = None
    if options.trajectory:
        frames = Frames(folder.trajectories, rows["position"], options.trajectory)
    given = rattle(start, rows["position"], options.rattle)
    with disk_errors(folder.path):
        group = begin_group(work.predictor, given, options, work.head, work.budget, folder.state(number), frames)
        if not group.run(stop, left):
            return False
        arrays = collect_arrays(group, start)
        if work.references is not None:
            after = group.fire.result.batch
            arrays |= measure_stability(work.references, work.predictor, after, arrays, work.head, work.budget[0])
        write_arrays(folder.group(number), arrays)
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
    with open_screened_input(results) as reader:
        return read_at(reader, rows["position"])


def _raise_unfinished(work: _Work, stopped: bool, missing: list[int]) -> None:
    if not stopped:
        raise AtomSieveError(f"groups {missing[:5]} have no result in {work.folder.groups}; run the same command again")
    raise Interrupted(
        f"what was relaxed is safe in {work.folder.path}, {len(missing):,} of {len(work.bounds) - 1:,} groups are not "
        "finished; run the same command again to continue"
    )


def _finish(work: _Work, todo: list[int], seconds: float) -> RelaxSummary:
    comm, folder = work.comm, work.folder
    labels, model = work.results.labels, work.predictor

    def write() -> dict[str, int]:
        if todo or not folder.table.is_file():
            about = f"relaxed with ensemble {model.ensemble_id[:16]}, {model.precision}; predicted, not computed"
            ids = read_ids(work.results, work.rows)
            publish(folder, work.bounds, work.rows, labels, about, partial(read_rows, work.results), ids)
        codes: Counter[int] = Counter()
        for number in range(len(work.bounds) - 1):
            codes.update(read_group(folder, number)["reason"].tolist())
        return {Stop(code).name: n for code, n in sorted(codes.items())}

    reasons = comm.run_on_first(write)
    computed = comm.read_counts()[0]
    result = RelaxSummary(folder, len(work.rows), reasons, computed, seconds, comm.rank)
    if comm.rank == 0 and todo:
        summary = {
            "structures": result.structures,
            "reasons": reasons,
            "computed": computed,
            "ranks": comm.size,
            "seconds": round(seconds, 3),
            "structures_per_second": round(computed / max(seconds, 1e-9), 3),
        }
        write_output(folder.summary, (json.dumps(summary, indent=1) + "\n").encode())
    return result
