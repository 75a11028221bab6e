"""The end of a run: the ranks' tallies are merged, and the files get their final names."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import EXIT_DONE, EXIT_SOME_FAILED, AtomSieveError
from atomsieve.predict.status import Status
from atomsieve.runs.output_folder import write_output
from atomsieve.screen.engine.context import RankContext
from atomsieve.screen.engine.force_spread import fill_force_spread
from atomsieve.screen.engine.rows import Rows
from atomsieve.screen.engine.servers import add_resume_hint
from atomsieve.screen.engine.tally import Tally
from atomsieve.screen.options import MIXED
from atomsieve.screen.quarantine.retry import DEATHS
from atomsieve.screen.quarantine.rows import format_poisoned_lines
from atomsieve.screen.results import run_record
from atomsieve.screen.results.carried import copy_carried, list_carried
from atomsieve.screen.results.caveats import describe_bare_hulls, describe_mixed_heads
from atomsieve.screen.results.code_names import CodeNames
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.formulas import read_formulas_at
from atomsieve.screen.results.software import versions
from atomsieve.screen.results.stability import list_companions
from atomsieve.screen.results.table import ResultColumn, freeze_column, list_shown_columns, name_ranking, read_ranking
from atomsieve.screen.results.tables import csv_of_top, status_table, top_table
from atomsieve.screen.selection.row_filter import find_names
from atomsieve.screen.selection.top_k import TopK
from atomsieve.screen.telemetry.monitor import format_measurements
from atomsieve.stability.phases import name_elements
from atomsieve.structures.carried import ID
from atomsieve.structures.conversion.copy_record import Unreadable
from atomsieve.text import format_duration, pluralize

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ScreenResult:
    """The outcome of a finished run.

    Attributes
    ----------
    folder : the results folder.
    labels : names of heads and statuses.
    structures : structures screened.
    status : rows per status name.
    top : the best rows, best first (dtype `atomsieve.screen.results.columns.ROW`); other ranks than 0 may have none.
    formulas : chemical formula by position, of the best rows.
    beside : columns beside `rows.npy`, which know the values of the best rows.
    by : the column that ranked. unranked : a line on rows that have no value in it, None without any.
    rank : of this process; rank 0 has the table of best rows and prints.
    seconds : wall time of this run, loading included.
    uncalibrated : heads that were screened without calibrated energies.
    choices : heads that the ensemble has, without their mixture.
    computed, rate : structures that this run computed (earlier runs did the others), and how many per second.
    poisoned : a line for each chunk with POISONED structures.
    measured : `energy` and `memory` of this run, on rank 0.
    unreadable : structures of the input that could not be read, and have no row.
    """

    folder: Path
    labels: CodeNames
    structures: int
    status: dict[str, int]
    top: NDArray[Any]
    formulas: dict[int, str]
    beside: tuple[ResultColumn, ...]
    rank: int
    seconds: float
    computed: int
    rate: float
    uncalibrated: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    poisoned: tuple[str, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)
    unreadable: Unreadable = field(default_factory=Unreadable)
    by: str = ""
    unranked: str | None = None

    @property
    def exit_code(self) -> int:
        """0 if all structures could be read and every row is OK, else 3."""
        return EXIT_DONE if set(self.status) <= {"OK"} and not self.unreadable.count else EXIT_SOME_FAILED


def finish(
    context: RankContext,
    record: Mapping[str, Any],
    seen: Tally,
    computed: int,
    *,
    begun: float,
    seconds: float,
    unreadable: Unreadable | None = None,
) -> ScreenResult:
    """Merge the tallies of all ranks; rank 0 writes the table and the summary, and gives the files their final names.

    record : content of run.json. seen : all rows of this rank's share. computed : structures that
        this run computed, within `seconds`.
    begun : when the run began (`time.perf_counter`). unreadable : structures of the input that have no row.

    Raises
    ------
    Interrupted
        after a signal, as long as rank 0 computes the spread of forces of the best rows.
    """
    comm, options = context.comm, context.options
    counts: Counter[int] = sum(comm.all_gather(seen.status), Counter())
    n_rows = context.files.arrays.rows.shape[0]
    if counts.total() != n_rows:
        raise AtomSieveError(
            f"{counts.total():,} of {n_rows:,} rows are accounted for; run the same command again to continue"
        )
    labels = CodeNames.of(record)

    def merge_best(some: Rows, more: Rows) -> Rows:
        best = TopK(options.top, context.ranking, descending=options.descending)
        for rows in (some, more):
            best.add(rows)
        return best.rows()

    own, unranked = seen.best.rows(), 0
    if context.ranks_at_end:
        with context.clock("rank"):
            own, missed = comm.run_on_all(_rank_at_end, context)
        unranked = sum(comm.all_gather(missed))
    merged = comm.reduce_on_first(own, merge_best)
    top = own[:0] if merged is None else merged
    names = comm.run_on_all(read_formulas_at, top["position"], context.reader)
    if context.runner.force_spread == "top":
        with context.clock("spread"):
            top = comm.run_on_first(_fill_spread, context, top)
    stages = summarize_stages(comm.gather_on_first(dict(context.clock.seconds)) or [])
    result = ScreenResult(
        folder=context.files.folder.path,
        labels=labels,
        structures=context.chunks.n,
        status={labels.status(code): n for code, n in sorted(counts.items())},
        top=top,
        formulas=names,
        beside=comm.run_on_first(_read_beside, context, top),
        by=options.by,
        unranked=describe_unranked(context, unranked),
        rank=comm.rank,
        seconds=time.perf_counter() - begun,
        computed=computed,
        rate=computed / max(seconds, 1e-9),
        uncalibrated=tuple(context.runner.uncalibrated),
        choices=tuple(head for head in context.runner.predictor.heads if head != MIXED),
        poisoned=tuple(format_poisoned_lines(chain.from_iterable(comm.all_gather(seen.poisoned)), context.chunks)),
        measured=context.watch.monitor.sum_over_ranks(comm, computed),
        unreadable=unreadable or Unreadable(),
    )
    comm.run_on_first(_publish, context, record, result, stages)
    if context.files.local is not None:
        comm.run_on_all(context.files.local[0].remove)
    comm.run_on_first(_remove_key, context.files.folder)
    return result


def _rank_at_end(context: RankContext) -> tuple[Rows, int]:
    """Return the best of this rank's share of the rows, which are durable, and how many have no value to rank by."""
    options, ranking = context.options, context.ranking
    best = TopK(options.top, ranking, descending=options.descending, where=context.where)
    missed = 0
    with context.files.open_chunks() as stored, add_resume_hint(context.files.folder):
        for chunk in range(context.comm.rank, context.chunks.count, context.comm.size):
            if context.watch.stop.requested:
                raise context.interrupted_error(context.comm.read_counts()[0])
            rows = stored.read_rows(chunk)
            best.add(rows)
            missed += int(np.count_nonzero((rows["status"] == Status.OK) & ~np.isfinite(read_ranking(ranking, rows))))
    return best.rows(), missed


def describe_unranked(context: RankContext, rows: int) -> str | None:
    """Return a line on rows with a result that have no value to rank by, None without any."""
    if not rows:
        return None
    sets, predictor = context.results.references or {}, context.runner.predictor
    absent = {z for head, own in sets.items() for z in predictor.elements(head) if z not in own.elements}
    why = f": there is no reference of {name_elements(sorted(absent))}" if absent else ""
    return f"{pluralize(rows, 'row')} with a result cannot be ranked by {context.options.by}{why}"


def _read_beside(context: RankContext, top: Rows) -> tuple[ResultColumn, ...]:
    """Return the columns beside `rows.npy` that tables of the best rows show, with their values."""
    by = name_ranking(context.ranking)
    shown = list_shown_columns(context.results, by)
    if "elements" not in run_record.read(
        context.files.folder
    ):  # begun by an earlier version: its table stays as it was
        shown = [
            column for column in shown if column.name in (by, *(name for name, _ in list_carried(context.results)))
        ]
    return tuple(freeze_column(column, top) for column in shown)


def _remove_key(folder: ResultsFolder) -> None:
    """Remove local.json, the last step: without it no later command finds the results on nodes."""
    folder.local.unlink(missing_ok=True)


def _fill_spread(context: RankContext, top: Rows) -> Rows:
    """Return the best rows with the spread of forces; a signal leaves."""

    def between() -> None:
        if context.watch.stop.requested:
            raise context.interrupted_error(context.comm.read_counts()[0])
        context.update_monitor()

    with add_resume_hint(context.files.folder):
        return fill_force_spread(context, top, between)


def print_result(console: Console, result: ScreenResult, by: str, shown: int, where: str | None = None) -> None:
    """Print the best rows, the counts by status where any failed, and the results folder.

    by, where : column that the rows were ranked by, and the filter. shown : rows to print.
    """
    if len(result.top):
        title = f"best {min(shown, len(result.top))} of {len(result.top):,} rows in top.csv, by {by}"
        named = {ID, by, *find_names(where), *list_companions(by)}
        beside = [column for column in result.beside if column.name in named]
        table = top_table(result.top[:shown], result.labels, result.formulas, title, by, beside=beside)
        console.print(table)
        for line in (
            describe_bare_hulls(result.top[:shown], beside),
            describe_mixed_heads(result.labels, by, where),
        ):
            if line is not None:
                console.print(line, highlight=False, soft_wrap=True)
    else:
        console.print("no row is OK and fulfils --where: top.csv is empty", highlight=False)
    if result.unranked is not None:
        console.print(result.unranked, highlight=False, soft_wrap=True)
    if set(result.status) - {"OK"}:
        console.print(status_table(result.status, result.labels, "some structures have no result"))
    for line in result.unreadable.format_lines():
        console.print(line, highlight=False, soft_wrap=True)
    for line in result.poisoned:
        console.print(
            f"set aside, because computing them ended their process {DEATHS} times: {line}",
            highlight=False,
            soft_wrap=True,
        )
    if result.uncalibrated:
        console.print(
            f"uncalibrated: {', '.join(result.uncalibrated)}; sigma and interval are empty, and the spread is no "
            f"standard error; {_calibration_hint(result)}",
            highlight=False,
            soft_wrap=True,
        )
    rate = f" at {result.rate:,.0f} structures/s" if result.computed else ""
    console.print(
        f"{pluralize(result.structures, 'structure')} screened, {result.computed:,} of them now{rate} "
        f"({format_duration(result.seconds)} with loading)\n"
        f"results: {result.folder}",
        highlight=False,
        soft_wrap=True,
    )
    for line in format_measurements(result.measured) if result.computed else ():
        console.print(line, highlight=False, soft_wrap=True)


def _calibration_hint(result: ScreenResult) -> str:
    """Return the advice on heads without calibration."""
    if result.uncalibrated != (MIXED,):
        return "see atomsieve calibrate"
    return f"a mixture of heads cannot be calibrated, a head can: --head names one of {', '.join(result.choices)}"


def summarize_stages(clocks: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean and the largest time of each stage over the ranks, s."""
    names = list(dict.fromkeys(name for clock in clocks for name in clock))
    spent = {name: [clock.get(name, 0.0) for clock in clocks] for name in names}
    return {name: {"mean": round(sum(s) / len(s), 3), "max": round(max(s), 3)} for name, s in spent.items()}


def _publish(
    context: RankContext, record: Mapping[str, Any], result: ScreenResult, stages: dict[str, dict[str, float]]
) -> None:
    """Name the files as complete; write the table of best rows and the summary."""
    folder, options = context.files.folder, context.options
    for file in context.files.arrays.kept.values():
        file.complete()
    copy_carried(context.reader, context.chunks.n, folder)
    write_output(folder.top, csv_of_top(result.top, result.labels, result.formulas, result.beside).encode())
    summary = {
        "structures": result.structures,
        "status": result.status,
        "computed_in_this_run": result.computed,
        "seconds": round(result.seconds, 3),
        "structures_per_second": round(result.rate, 1),
        "ranks": context.comm.size,
        "seconds_per_stage": stages,
        "selection": {
            "top": options.top,
            "by": options.by,
            **({"references": record["references"]} if record.get("references") else {}),
            "descending": options.descending,
            "where": options.where,
        },
        **({"cascade": record["cascade"]} if record.get("cascade") else {}),
        "force_spread": context.runner.force_spread,
        "uncalibrated": list(result.uncalibrated),
        "poisoned": list(result.poisoned),
        **({"unreadable": result.unreadable.describe()} if result.unreadable.read else {}),
        **result.measured,
        "predictor": context.runner.predictor.describe(),
        "versions": versions(),
    }
    write_output(folder.summary, (json.dumps(summary, indent=1) + "\n").encode())
    context.reporter.record("finished", structures=result.structures, status=result.status, seconds=summary["seconds"])
