"""After the loop: the ranks' parts come together, and the artefacts get their final names."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from atomsieve.errors import EXIT_DONE, EXIT_SOME_FAILED, AtomSieveError
from atomsieve.screen.engine.force_spread import with_spread
from atomsieve.screen.engine.servers import kept
from atomsieve.screen.options import MIXED
from atomsieve.screen.quarantine.retry import DEATHS
from atomsieve.screen.quarantine.rows import format_poisoned_lines
from atomsieve.screen.results.caveats import describe_mixed_heads
from atomsieve.screen.results.code_names import CodeNames
from atomsieve.screen.results.files import write_whole
from atomsieve.screen.results.formulas import read_formulas_at
from atomsieve.screen.results.software import versions
from atomsieve.screen.results.tables import csv_of_top, status_table, top_table
from atomsieve.screen.selection.top_k import TopK
from atomsieve.screen.setup import Job
from atomsieve.screen.telemetry.monitor import lines_of
from atomsieve.text import format_duration, pluralize

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ScreenResult:
    """What a finished run gives.

    Attributes
    ----------
    folder : the results folder.
    labels : names of heads and statuses.
    structures : structures screened.
    status : rows per status name.
    top : the best rows, best first (dtype `atomsieve.screen.results.columns.ROW`); other ranks than 0 may have none.
    formulas : chemical formula by position, of the best rows.
    rank : of this process; rank 0 has the table of best rows and speaks.
    seconds : wall time of this run, loading included.
    uncalibrated : heads that were screened without calibrated energies.
    choices : heads that the ensemble has, without their mixture.
    computed, rate : structures that this run computed (earlier runs did the others), and how many per second.
    poisoned : a line for each chunk of which structures were set aside.
    measured : `energy` and `memory` of this run, on rank 0.
    """

    folder: Path
    labels: CodeNames
    structures: int
    status: dict[str, int]
    top: NDArray[Any]
    formulas: dict[int, str]
    rank: int
    seconds: float
    computed: int
    rate: float
    uncalibrated: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    poisoned: tuple[str, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if every row is OK, else 3."""
        return EXIT_DONE if set(self.status) <= {"OK"} else EXIT_SOME_FAILED


def finish(job: Job, computed: int, seconds: float, between: Callable[[], None] = lambda: None) -> ScreenResult:
    """Merge what the ranks saw; rank 0 puts the artefacts in place.

    `computed` structures were computed in this run, within `seconds`. `between` is called every moment while rank 0
    computes what the best rows lack; it may raise to leave.
    """
    comm, options = job.comm, job.options
    counts: Counter[int] = sum(comm.all_gather(job.status), Counter())
    n_rows = job.rows.shape[0]
    if counts.total() != n_rows:
        raise AtomSieveError(
            f"{counts.total():,} of {n_rows:,} rows are accounted for; run the same command again to continue"
        )
    labels = CodeNames.of(job.manifest)

    def better(some: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
        best = TopK(options.top, options.by, descending=options.descending)
        for rows in (some, more):
            best.add(rows)
        return best.rows()

    merged = comm.reduce_on_first(job.top.rows(), better)
    top = job.top.rows()[:0] if merged is None else merged
    names = comm.run_on_all(lambda: read_formulas_at(top["position"], job.reader))
    if job.runner.force_spread == "top":
        with job.clock("spread"):
            top = comm.run_on_first(lambda: _spread(job, top, between))
    clocks = per_stage(comm.gather_on_first(dict(job.clock.seconds)) or [])
    result = ScreenResult(
        folder=job.folder.path,
        labels=labels,
        structures=job.chunks.n,
        status={labels.status(code): n for code, n in sorted(counts.items())},
        top=top,
        formulas=names,
        rank=comm.rank,
        seconds=time.perf_counter() - job.begun,
        computed=computed,
        rate=computed / max(seconds, 1e-9),
        uncalibrated=tuple(job.runner.uncalibrated),
        choices=tuple(head for head in job.runner.predictor.heads if head != MIXED),
        poisoned=tuple(format_poisoned_lines(chain.from_iterable(comm.all_gather(job.poisoned)), job.chunks)),
        measured=job.vitals.measured(comm, computed),
    )
    comm.run_on_first(lambda: _publish(job, result, clocks))
    if job.local is not None:
        comm.run_on_all(job.local[0].remove)
    comm.run_on_first(
        lambda: job.folder.local.unlink(missing_ok=True)
    )  # the last: without it nobody finds what is on nodes
    return result


def _spread(job: Job, top: NDArray[Any], between: Callable[[], None]) -> NDArray[Any]:
    with kept(job.folder):
        return with_spread(job, top, between)


def print_result(console: Console, result: ScreenResult, by: str, shown: int, where: str | None = None) -> None:
    """Show the best rows, the counts by status where any failed, and where everything lies.

    by, where : what the rows were ranked and filtered by.
    """
    if len(result.top):
        title = f"best {min(shown, len(result.top))} of {len(result.top):,} rows in top.csv, by {by}"
        console.print(top_table(result.top[:shown], result.labels, result.formulas, title, by))
        if line := describe_mixed_heads(result.labels, by, where):
            console.print(line, highlight=False, soft_wrap=True)
    else:
        console.print("no row is OK and fulfils --where: top.csv is empty", highlight=False)
    if result.exit_code:
        console.print(status_table(result.status, result.labels, "some structures have no result"))
    for line in result.poisoned:
        console.print(
            f"set aside, because computing them ended their process {DEATHS} times: {line}",
            highlight=False,
            soft_wrap=True,
        )
    if result.uncalibrated:
        console.print(
            f"uncalibrated: {', '.join(result.uncalibrated)}; sigma and interval are empty, and the spread is no "
            f"standard error; {_remedy(result)}",
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
    for line in lines_of(result.measured) if result.computed else ():
        console.print(line, highlight=False, soft_wrap=True)


def _remedy(result: ScreenResult) -> str:
    """Return what to do about heads without calibration."""
    if result.uncalibrated != (MIXED,):
        return "see atomsieve calibrate"
    return f"a mixture of heads cannot be calibrated, a head can: --head names one of {', '.join(result.choices)}"


def per_stage(clocks: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean and the largest time of each stage over the ranks, s."""
    names = list(dict.fromkeys(name for clock in clocks for name in clock))
    spent = {name: [clock.get(name, 0.0) for clock in clocks] for name in names}
    return {name: {"mean": round(sum(s) / len(s), 3), "max": round(max(s), 3)} for name, s in spent.items()}


def _publish(job: Job, result: ScreenResult, clocks: dict[str, dict[str, float]]) -> None:
    """Name the files as complete; write the table of best rows and the summary."""
    for file in job.files:
        file.complete()
    write_whole(job.folder.top, csv_of_top(result.top, result.labels, result.formulas).encode())
    summary = {
        "structures": result.structures,
        "status": result.status,
        "computed_in_this_run": result.computed,
        "seconds": round(result.seconds, 3),
        "structures_per_second": round(result.rate, 1),
        "ranks": job.comm.size,
        "seconds_per_stage": clocks,
        "selection": {name: getattr(job.options, name) for name in ("top", "by", "descending", "where")},
        **({"cascade": made} if (made := job.manifest.get("cascade")) else {}),
        "force_spread": job.runner.force_spread,
        "uncalibrated": list(result.uncalibrated),
        "poisoned": list(result.poisoned),
        **result.measured,
        "predictor": job.runner.predictor.describe(),
        "versions": versions(),
    }
    write_whole(job.folder.summary, (json.dumps(summary, indent=1) + "\n").encode())
    if job.log is not None:
        job.log("finished", structures=result.structures, status=result.status, seconds=summary["seconds"])
