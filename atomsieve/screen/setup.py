"""Setting up a screening: plan the work, claim the results folder, recover the results of earlier runs.

`load` opens the input and the model before. Each step returns one frozen value and prints nothing; `greeting` prints.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.devices import device_kind
from atomsieve.errors import AtomSieveError
from atomsieve.gfm.manifest import same_weights
from atomsieve.predict.packing import Limit
from atomsieve.predict.status import Status
from atomsieve.runs.lock import PathLock
from atomsieve.runs.mpi import Communicator
from atomsieve.runs.output_files import disk_errors, get_free_bytes, sibling_path
from atomsieve.screen.cascade.driver import check_choice
from atomsieve.screen.cascade.error_bounds import Tables
from atomsieve.screen.engine.batch_budget import BatchBudget, resolve_batch_budget
from atomsieve.screen.engine.context import RankContext
from atomsieve.screen.engine.cpu_fallback import CpuFallback
from atomsieve.screen.engine.force_spread import resolve_force_spread
from atomsieve.screen.engine.in_flight import DeathRecord
from atomsieve.screen.engine.locality import format_copies
from atomsieve.screen.engine.placement import gather_places, gpus_of_machine, ranks_per_device
from atomsieve.screen.engine.result_files import RunFiles
from atomsieve.screen.engine.runner import Runner, wanted_properties
from atomsieve.screen.engine.startup_scan import count_atoms_before, read_ledgers
from atomsieve.screen.engine.tally import Tally
from atomsieve.screen.load import ScreenInput, ScreenModel
from atomsieve.screen.node_local.collect import Collected, open_stores
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.quarantine.retry import find_suspects
from atomsieve.screen.results import run_record
from atomsieve.screen.results.carried import describe_carried
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.npy_file import ArrayFiles, forces_file, members_file, row_file
from atomsieve.screen.results.record import Results, make_results
from atomsieve.screen.results.screened_input import describe_copy
from atomsieve.screen.results.stability import choose_ranking, load_references
from atomsieve.screen.results.table import Ranking, is_of_rows, list_columns, resolve_ranking
from atomsieve.screen.selection.row_filter import Where, compile_row_filter
from atomsieve.screen.telemetry.monitor import RunMonitor, Watched, open_monitor
from atomsieve.stability.phases import ReferenceSet, read_references, write_references
from atomsieve.structures.conversion.ready import STDIN


def default_out(candidates: Path) -> Path:
    """Return the results folder next to the input."""
    return sibling_path(candidates, ".results")


@dataclass(frozen=True)
class Plan:
    """How a run computes, and which files it writes; made before anything is written.

    Attributes
    ----------
    source, model : the input and the predictor. options : of the run.
    runner : computes chunks. budget : of its batches.
    results : the folder to be, for columns beside the rows.
    ranking : the column that ranks the rows. where : the compiled row filter, None without one.
    files : the results folder and the places of all chunks in it.
    record : the content of run.json.
    monitor : energy, memory and metrics.
    ranks : number of processes. copies : a line on copies of parts of the input, None without them.
    lacking : a line where the energies of the members cannot be kept, None where they can be or are not asked for.
    references : lines on reference sets of the ensemble that do not count.
    """

    source: ScreenInput
    model: ScreenModel
    options: ScreenOptions
    runner: Runner
    budget: BatchBudget
    results: Results
    ranking: Ranking
    where: Where | None
    files: RunFiles
    record: dict[str, Any]
    monitor: RunMonitor
    ranks: int
    copies: str | None
    lacking: str | None
    references: list[str]


def make_plan(
    comm: Communicator,
    source: ScreenInput,
    model: ScreenModel,
    options: ScreenOptions,
    folder: ResultsFolder,
    *,
    overwrite: bool,
) -> Plan:
    """Return the plan of a run; every rank must call it.

    Raises
    ------
    UsageError
        for a row filter or a choice of rows that is not possible. AtomSieveError if the metrics cannot be written.
    """
    comm.run_on_all(_check_choice, model, options)
    spread = comm.run_on_all(resolve_force_spread, options, model.predictor)
    places = gather_places(comm, model.predictor)
    budget = comm.run_on_first(
        resolve_batch_budget,
        model.predictor,
        source.reader,
        options,
        folder,
        head=model.heads[0],
        want=wanted_properties(spread),
        overwrite=overwrite,
        share=ranks_per_device(places),
        loaded=model.loaded,
    )
    members, lacking = comm.run_on_first(resolve_members, folder, options, model, overwrite)
    runner = _make_runner(model, options, spread, budget, members)
    references, notes = comm.run_on_all(_find_references, model, folder)
    record = comm.run_on_first(_build_record, source, model, runner, budget, references)
    results = make_results(folder, record, source.chunks, source.reader, references)
    options = replace(options, by=comm.run_on_first(choose_ranking, results, options.by))
    ranking, where = comm.run_on_all(resolve_choice, results, options)
    monitor = comm.run_on_all(_open_monitor, comm, runner, source, options, gpus_of_machine(places, comm.rank))
    rows = row_file(folder, source.chunks, len(model.heads))
    forces = None
    if options.forces:
        forces = forces_file(folder, count_atoms_before(comm, source.reader, source.chunks), len(model.heads))
    every = members_file(folder, source.chunks, len(model.heads), members) if members else None
    return Plan(
        source=source,
        model=model,
        options=options,
        runner=runner,
        budget=budget,
        results=results,
        ranking=ranking,
        where=where,
        files=RunFiles(folder, ArrayFiles(rows, forces, every)),
        record=record,
        monitor=monitor,
        ranks=comm.size,
        copies=format_copies(comm, source.reader, options.copies),
        lacking=lacking,
        references=notes,
    )


def _check_choice(model: ScreenModel, options: ScreenOptions) -> None:
    """Check that a cascade can choose rows by the options."""
    statuses = {code: name for code, (name, _) in list_statuses().items()}
    reasons = {bit: name for bit, (name, _) in list_reasons().items()}
    check_choice(options, Tables(model.heads, statuses, reasons))


def resolve_choice(results: Results, options: ScreenOptions) -> tuple[Ranking, Where | None]:
    """Return the column that ranks the rows and the compiled filter of a run, among all columns of its results.

    Raises
    ------
    UsageError
        for a column that does not exist or cannot rank, or a filter that cannot be read.
    """
    columns, names = list_columns(results), results.labels
    beside = {name: column for name, column in columns.items() if not is_of_rows(column)}
    # In a cascade rows of the first precision are filtered, too; its better one has no name yet.
    where = compile_row_filter(options.where, names.heads, names.statuses, names.reasons, names.precisions, beside)
    return resolve_ranking(options.by, columns), where


def _make_runner(model: ScreenModel, options: ScreenOptions, spread: str, budget: BatchBudget, members: int) -> Runner:
    served = bool(model.predictor.capabilities.endpoints)
    on_cpu = device_kind(model.predictor.device) == "cpu" and not served
    fallback = None
    if model.loaded and model.ensemble is not None and options.oversized == "cpu":
        fallback = CpuFallback(Path(model.ensemble))
    return Runner(
        predictor=model.predictor,
        heads=model.heads,
        forces=options.forces,
        max_atoms=budget.max_atoms,
        max_edges=budget.max_edges,
        threads=options.threads if on_cpu else None,
        max_structure_atoms=options.max_structure_atoms,
        force_spread=spread,
        limit=Limit(budget.max_atoms, budget.max_edges),
        oversized=fallback,
        members=members,
    )


def resolve_members(
    folder: ResultsFolder, options: ScreenOptions, model: ScreenModel, overwrite: bool
) -> tuple[int, str | None]:
    """Return how many members' energies are kept, 0 for none, and a line where they should be and cannot be.

    A run that is continued keeps them if, and only if, its earlier part did.
    """
    predictor = model.predictor if model.pair is None else model.pair.better
    count = predictor.members if options.members and predictor.members > 1 else 0
    if not count or (not overwrite and run_record.lacks_members(folder)):
        return 0, None
    if "energy_members" not in predictor.capabilities.outputs:
        giver = "the servers give" if predictor.capabilities.endpoints else "the predictor gives"
        return (
            0,
            f"members: {giver} no energies of single members, so none are stored: energies above a hull lack errors",
        )
    return count, None


def _find_references(model: ScreenModel, folder: ResultsFolder) -> tuple[dict[str, ReferenceSet], list[str]]:
    """Return the reference sets of the heads of a run, and lines on those that do not count.

    Where the ensemble folder has none, those that an earlier part of the run left in the results folder are taken.
    """
    found, notes = load_references(model.ensemble, model.heads)
    for head in model.heads:
        earlier = read_references(folder.path, head)
        if earlier is None:
            continue
        if head not in found and (model.ensemble is None or same_weights(model.ensemble, earlier.weights)):
            found[head] = earlier
        elif head in found and found[head].digest != earlier.digest:
            notes.append(
                f"the references of head {head} changed since the run began (set {earlier.digest[:12]}, now "
                f"{found[head].digest[:12]}): rows are ranked by the new ones"
            )
    return found, notes


def _build_record(
    source: ScreenInput,
    model: ScreenModel,
    runner: Runner,
    budget: BatchBudget,
    references: dict[str, ReferenceSet],
) -> dict[str, Any]:
    predictor, can = model.predictor, model.predictor.capabilities
    device = device_kind(predictor.device)
    copy = source.copy
    facts = run_record.RunFacts(
        input_path=STDIN if str(source.path) == STDIN else source.path.absolute(),
        converted=None if copy is None else describe_copy(copy, source.reading),
        input_identity=source.reader.identity(),
        carried=describe_carried(source.reader),
        references={head: found.describe() for head, found in references.items()},
        elements={head: predictor.elements(head) for head in model.heads},
        structures=len(source.reader),
        ensemble_path=model.ensemble,
        ensemble_id=predictor.ensemble_id,
        heads=model.heads,
        precision=predictor.precision,
        backend=predictor.backend,
        device=device,
        artefact=can.artefact,
        precisions=list(can.precisions),
        uncalibrated=runner.uncalibrated,
        cutoff=predictor.cutoff,
        forces=runner.forces,
        members=runner.members,
        max_structure_atoms=runner.max_structure_atoms,
        force_spread=runner.force_spread,
        oversized_marked=device == "cuda" and runner.oversized is None,
        chunks=source.chunks,
        max_atoms=runner.max_atoms,
        max_edges=runner.max_edges,
        threads=runner.threads,
        automatic=budget.automatic,
        statuses=list_statuses(),
        reasons=list_reasons(),
        cascade=can.cascade,
        server=can.server,
        endpoints=list(can.endpoints) or None,
    )
    return run_record.build_record(facts)


def _open_monitor(
    comm: Communicator, runner: Runner, source: ScreenInput, options: ScreenOptions, gpus: list[str]
) -> RunMonitor:
    predictor, fallback = runner.predictor, runner.oversized
    labels = {
        "ensemble": predictor.ensemble_id[:12],
        "heads": ",".join(runner.heads),
        "precision": predictor.precision,
        "backend": predictor.backend,
        "device": str(predictor.device),
        "ranks": str(comm.size),
    }
    watched = Watched(predictor.device, runner.limit, int if fallback is None else lambda: fallback.computed)
    return open_monitor(
        comm, watched, source.chunks.n, metrics=options.metrics, labels=labels, gpus=gpus, served=runner.served
    )


def list_statuses() -> dict[int, tuple[str, str]]:
    """Return the name and the meaning of each status code."""
    return {int(status): (status.name, status.meaning) for status in Status}


def list_reasons() -> dict[int, tuple[str, str]]:
    """Return the name and the meaning of each reason in the column `outside`, by its bit."""
    from atomsieve.predict.domain_flags import Outside

    return {int(reason): (reason.name or "", reason.meaning) for reason in Outside}


@dataclass(frozen=True)
class Claim:
    """A results folder that this run has locked, and the entries of its ledgers.

    Attributes
    ----------
    files : where results go. lock : of the folder, on rank 0 only.
    entries : of all ledgers (dtype `ledger.KNOWN`), sorted by chunk.
    collected : results that an earlier part of the run left on nodes, None without `--local`.
    left_on_nodes : an earlier part of the run kept results on nodes, and this one has no `--local`.
    """

    files: RunFiles
    lock: PathLock | None
    entries: NDArray[Any]
    collected: Collected | None = None
    left_on_nodes: bool = False


def claim_folder(comm: Communicator, plan: Plan, *, overwrite: bool, stack: ExitStack) -> Claim:
    """Lock the results folder until `stack` is left, check that it fits the plan, and make room for every row.

    Raises
    ------
    AtomSieveError
        if it is in use, holds other files or results of other settings, or the disk has no room.
    """
    files, folder, local = plan.files, plan.files.folder, plan.options.local
    lock = PathLock(folder.lock) if comm.rank == 0 else None
    comm.run_on_first(_occupy, plan, lock, overwrite, stack)
    entries = read_ledgers(comm, folder)
    if local is None:
        left = comm.run_on_first(folder.local.exists)
        return Claim(files, lock, entries, left_on_nodes=left)
    entered = set(entries["chunk"].tolist())
    store, carrier, collected = open_stores(comm, Path(local), folder, files.arrays, entered, plan.source.chunks.count)
    if collected.chunks:
        entries = read_ledgers(comm, folder)
    return Claim(RunFiles(folder, files.arrays, (store, carrier)), lock, entries, collected)


def _occupy(plan: Plan, lock: PathLock | None, overwrite: bool, stack: ExitStack) -> None:
    """Lock the folder, compare the plan with its record, and make room for every row."""
    folder = plan.files.folder
    if lock is not None:
        folder.occupy(lock, stack)
    with disk_errors(folder.path):
        run_record.settle(folder, plan.record, overwrite=overwrite)
        for found in (plan.results.references or {}).values():
            write_references(folder.path, found)
        needed = sum(file.missing_bytes() for file in plan.files.arrays.kept.values())
        free = get_free_bytes(folder.path)
        if needed > free:
            raise AtomSieveError(
                f"no space left for results in {folder.path}: {needed / 1e6:.3f} MB are needed, {free / 1e6:.3f} MB "
                "are free; make room and run the same command again, or choose another --out"
            )
        for file in plan.files.arrays.kept.values():
            file.prepare()


@dataclass(frozen=True)
class Recovered:
    """The chunks that earlier parts of the run left, and those that are to be computed.

    Attributes
    ----------
    count : chunks of the run. done : those that are durable. damaged : chunks that do not fit their checksums.
    retried : chunks with POISONED rows that are computed again, as the options ask.
    suspects : chunks that may have killed a rank, by their deaths.
    todo : all other chunks that are not durable.
    tally : of this rank's share of the durable rows.
    """

    count: int
    done: frozenset[int]
    damaged: int
    retried: frozenset[int]
    suspects: dict[int, DeathRecord]
    todo: list[int]
    tally: Tally


def recover(context: RankContext, plan: Plan, claim: Claim) -> Recovered:
    """Compare every chunk in the ledgers with its checksums, and find the suspects; every rank must call it.

    After a signal to any rank chunks are left unchecked, and there are no suspects: the run is to leave.
    """
    comm = context.comm
    known = np.unique(claim.entries["chunk"])
    tally, own_good, own_again = _check_chunks(context, claim.entries, known)
    done, retried = (
        frozenset(np.concatenate(comm.all_gather(np.array(found, np.int64))).tolist())
        for found in (own_good, own_again)
    )
    count, why = context.chunks.count, plan.budget.why
    context.reporter.record("start", chunks=count, done=len(done), known=len(known), ranks=comm.size, batches=why)
    stopped = any(comm.all_gather(context.watch.stop.closing))
    damaged = 0 if stopped else len(known) - len(done) - len(retried)
    suspects = {} if stopped else find_suspects(context, set(done), set(retried))
    if suspects:
        context.reporter.record("suspects", chunks={chunk: record.deaths for chunk, record in suspects.items()})
    todo = [chunk for chunk in range(count) if chunk not in done and chunk not in suspects]
    return Recovered(count, done, damaged, retried, suspects, todo, tally)


def _check_chunks(
    context: RankContext, entries: NDArray[Any], known: NDArray[np.int64]
) -> tuple[Tally, list[int], list[int]]:
    """Check this rank's share of the chunks; return the tally of those that hold, and those to keep and to retry."""
    tally, good, again = context.new_tally(), list[int](), list[int]()
    with context.files.open_chunks() as stored, context.clock("check"):
        for chunk in known[context.comm.rank :: context.comm.size].tolist():
            if context.watch.stop.closing:
                break
            context.update_monitor()
            span = slice(*np.searchsorted(entries["chunk"], [chunk, chunk + 1]))
            rows = stored.read_valid_rows(chunk, entries[span])
            if rows is None:
                continue
            if context.options.retry_poisoned and (rows["status"] == Status.POISONED).any():
                again.append(chunk)
            else:
                good.append(chunk)
                tally.add(rows)
    return tally, good, again
