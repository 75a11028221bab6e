"""Properties of the best rows of a screening, or of structures of a file; resumable, structure by structure."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.minimiser import check_relaxation
from atomsieve.devices import device_kind
from atomsieve.errors import Interrupted
from atomsieve.predict.dispersion import add_dispersion
from atomsieve.predict.interface import AnyPredictor
from atomsieve.predict.packing import Limit, usual_budget
from atomsieve.properties.columns import describe_columns
from atomsieve.properties.evaluation import Evaluator
from atomsieve.properties.files import FORMAT, PropertiesFolder, keep, publish, read_kept
from atomsieve.properties.group import compute_group
from atomsieve.properties.options import GROUP_ATOMS, PropertyOptions
from atomsieve.properties.outcome import Outcome
from atomsieve.properties.phonons import require_phonopy
from atomsieve.properties.source import (
    BEST,
    Source,
    choose_first,
    choose_rows,
    digest_positions,
    is_results,
)
from atomsieve.runs.lock import PathLock
from atomsieve.runs.output_files import sibling_path
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.results.formulas import hill_formula
from atomsieve.screen.selection.select import Selection
from atomsieve.structures import StructureBatch
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import check_input
from atomsieve.text import format_duration, pluralize

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 5.0


@dataclass(frozen=True)
class PropertySummary:
    """Result of a calculation.

    Attributes
    ----------
    folder : of the files. found : for each structure `values`, `details`, `problems`, `structure`.
    statuses : number of structures by the text of their status. computed : structures done in this run.
    seconds : its duration.
    """

    folder: PropertiesFolder
    found: list[dict[str, Any]]
    statuses: dict[str, int]
    computed: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or 3 if a structure lacks a property."""
        return 3 if set(self.statuses) - {"OK"} else 0


def run_properties(
    source: str | Path,
    options: PropertyOptions | None = None,
    *,
    selection: Selection | None = None,
    ensemble: str | Path | None = None,
    head: str | None = None,
    reading: ReadOptions | None = None,
    moved_input: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    predictor: AnyPredictor | None = None,
) -> PropertySummary:
    """Compute properties of the best rows of a results folder or of the first structures of a file, or continue.

    source : results folder of a complete screening, or structures of any readable format.
    selection : which rows of a screening; of a file its `top` alone counts, and None takes all.
    ensemble : folder; needed for a file. head : of a file's structures; None takes the default head.
    reading : how a file is read. moved_input : where the screened structures lie now. out : folder to write; None takes
        `<source>.properties`. overwrite : discard what is in it. console : where progress is printed.
    predictor : taken instead of loading the ensemble.

    Raises
    ------
    AtomSieveError
        among others if `out` holds properties of other settings, the ensemble gives no forces or stress, or phonopy is
        missing; Interrupted after Ctrl-C or SIGTERM. A structure that has no properties raises nothing.
    """
    options = options or PropertyOptions()
    path = Path(source)
    folder = PropertiesFolder(Path(out) if out is not None else sibling_path(path, ".properties"))
    given = None if ensemble is None else Path(ensemble)
    if "phonons" in options.what:
        require_phonopy()
    with StopRequest() as stop, ExitStack() as stack:
        if is_results(path):
            moved = None if moved_input is None else Path(moved_input)
            chosen = choose_rows(path, selection or BEST, given, moved, folder.path, loaded=predictor is not None)
        else:
            check_input(path, None if reading is None else reading.format)
            folder.occupy(PathLock(folder.lock), stack)
            top = None if selection is None else selection.top
            chosen = choose_first(
                path,
                top,
                reading or ReadOptions(),
                given,
                head,
                folder.path,
                loaded=predictor is not None,
                console=console,
            )
        model = predictor or _load(chosen, options)
        used = chosen.head or model.head
        model = add_dispersion(model, options.dispersion, used)
        check_relaxation(model, options.fmax, options.max_steps, cell=True, guard=None, head=used)
        atoms, edges = usual_budget(model)
        limit = Limit(options.max_atoms or atoms, options.max_edges or edges)
        settings = _describe(chosen, model, used, options, limit)
        if chosen.results is not None:
            folder.occupy(PathLock(folder.lock), stack)
        folder.settle(settings, overwrite=overwrite)
        work = _Work(folder, chosen, Evaluator(model, used, limit, _checker(stop, folder)), options, used, console)
        return _compute(work, settings)


@dataclass(frozen=True)
class _Work:
    folder: PropertiesFolder
    source: Source
    evaluator: Evaluator
    options: PropertyOptions
    head: str
    console: Console | None


def _load(source: Source, options: PropertyOptions) -> AnyPredictor:
    from atomsieve.screen.load import load_predictor
    from atomsieve.screen.options import ScreenOptions

    assert source.ensemble is not None
    loading = ScreenOptions(
        head=source.head, precision=options.precision, device=options.device, threads=options.threads
    )
    return load_predictor(source.ensemble, loading, "native")


def _describe(source: Source, model: AnyPredictor, head: str, options: PropertyOptions, limit: Limit) -> dict[str, Any]:
    """Return the settings of a calculation."""
    levels = model.describe().get("levels_of_theory", {})
    return {
        "format": FORMAT,
        "input": source.identity,
        "ensemble": {
            "id": model.ensemble_id,
            "head": head,
            "level_of_theory": levels.get(head, ""),
            "members": model.members,
            "backend": model.backend,
            "device": device_kind(model.device),
        },
        "options": options.deciding(),
        "batches": {
            "max_atoms": limit.max_atoms,
            "max_edges": limit.max_edges,
            "group_atoms": options.group_atoms or GROUP_ATOMS.get(device_kind(model.device), GROUP_ATOMS["cpu"]),
        },
        "selection": {"structures": len(source.positions), "digest": digest_positions(source.positions)},
        "columns": describe_columns(options.what),
        "results_path": None if source.results is None else str(source.results.absolute()),
    }


def _checker(stop: StopRequest, folder: PropertiesFolder) -> Any:
    def check() -> None:
        if stop.requested:
            raise Interrupted(f"what was found is safe in {folder.path}; run the same command again to continue")

    return check


def find_groups(counts: NDArray[np.int64], group_atoms: int) -> list[NDArray[np.int64]]:
    """Return the ranks (from 0) of groups of consecutive structures of about `group_atoms` atoms."""
    before = np.cumsum(counts) - counts
    starts = np.flatnonzero(np.diff(before // group_atoms, prepend=-1))
    return np.split(np.arange(len(counts)), starts[1:])


def _compute(work: _Work, settings: dict[str, Any]) -> PropertySummary:
    """Compute what is missing, group by group, and publish all."""
    begun = shown = time.perf_counter()
    folder, many = work.folder, len(work.source.positions)
    groups = find_groups(work.source.counts, settings["batches"]["group_atoms"])
    todo = [g for g in groups if any(read_kept(folder, int(k) + 1) is None for k in g)]
    total = sum(len(g) for g in todo)
    _greet(work, total, many)
    done = 0
    for ranks in todo:
        _compute_ranks(work, ranks)
        done += len(ranks)
        now = time.perf_counter()
        if work.console is not None and now - shown > LINE_SECONDS:
            shown = now
            ahead = format_duration((total - done) * (now - begun) / done)
            work.console.print(f"computing: {done:,} of {total:,}, {ahead} left", highlight=False)
    found = [read_kept(folder, rank) or {} for rank in range(1, many + 1)]
    publish(folder, settings, found)
    statuses = Counter(one["values"]["status"] for one in found)
    return PropertySummary(folder, found, dict(statuses), total, time.perf_counter() - begun)


def _greet(work: _Work, total: int, many: int) -> None:
    if work.console is None:
        return
    model = work.evaluator.predictor
    kept = f", {many - total:,} of them found before" if total < many else ""
    lines = [
        f"head: {work.head}",
        f"{', '.join(work.options.what)} of {pluralize(many, 'structure')}{kept}; {model.precision} on {model.device}",
        f"properties: {work.folder.path}",
    ]
    if (note := model.note(work.head)) is not None:
        lines.append(note)
    if model.members < 2:
        lines.append("one member: nothing has a spread")
    elif "forces_members" not in model.capabilities.outputs and set(work.options.what) - {"eos"}:
        lines.append(f"backend {model.backend} gives no forces of members: elastic moduli and phonons have no spread")
    for line in lines:
        work.console.print(line, highlight=False, soft_wrap=True)


def _compute_ranks(work: _Work, ranks: NDArray[np.int64]) -> None:
    """Compute one group and keep what was found for each of its structures."""
    positions = work.source.positions[ranks]
    batch = work.source.read(positions)
    present, outcomes = compute_group(work.evaluator, batch, work.options)
    for k, (rank, outcome) in enumerate(zip(ranks.tolist(), outcomes, strict=True)):
        name = work.source.ids[rank]
        found = _collect(work, rank + 1, int(positions[k]), name, present.slice(k, k + 1), outcome)
        keep(work.folder, rank + 1, found)


def _collect(
    work: _Work, rank: int, position: int, name: str, structure: StructureBatch, outcome: Outcome
) -> dict[str, Any]:
    """Return all that is kept of one structure, as plain data."""
    names = list(dict.fromkeys(str(name) for name, _ in outcome.problems))
    values = {
        "rank": rank,
        "position": position,
        "id": name,
        "formula": hill_formula(structure.numbers),
        "natoms": structure.n_atoms,
        "head": work.head,
        "status": "+".join(names) or "OK",
        "reason": "; ".join(text for _, text in outcome.problems),
        **outcome.values,
    }
    geometry = {
        "numbers": structure.numbers.tolist(),
        "positions": np.asarray(structure.positions, np.float64).tolist(),
        "cell": structure.cell[0].tolist(),
        "pbc": structure.pbc[0].tolist(),
    }
    problems = [[str(name), text] for name, text in outcome.problems]
    return {"values": values, "problems": problems, "details": outcome.details, "structure": geometry}
