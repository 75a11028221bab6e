"""The spread of forces in a screening with a shallow ensemble, where it costs more than all the rest together.

Every member needs a backward pass of its own, so by default only the rows of `top.csv` get theirs, when the run is
finished; in `rows.npy` the columns of it are NaN, and `run.json` says so under `options`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.predict.packing import Limit, pack, run_halving_on_oom
from atomsieve.predict.status import Status
from atomsieve.screen.engine.runner import PredictorLike, fill_rows
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.screened_input import merge_into_ranges
from atomsieve.structures import StructureBatch
from atomsieve.structures.fields import CONDITIONS

if TYPE_CHECKING:
    from atomsieve.screen.setup import Job

log = logging.getLogger(__name__)

COLUMNS = ("max_force_std", "sigma_force")
"""Columns of a row that need the spread of forces."""


def resolve_force_spread(options: ScreenOptions, predictor: PredictorLike) -> str:
    """Return which rows get the spread of forces: `all`, `top` or `none`.

    A deep ensemble gives it for nothing; `auto` means `top` of a shallow one, `none` where its backend has no forces
    of members.

    Raises
    ------
    UsageError
        if it is asked for and the backend gives none, or rows are to be ranked or filtered by what they will not have.
    """
    if predictor.kind == "deep":
        return "all"
    native = predictor.backend == "native"
    wanted = options.force_spread
    if wanted == "auto":
        wanted = "top" if native else "none"
    if wanted != "none" and not native:
        raise UsageError(
            f"force-spread {wanted}: an exported shallow ensemble gives no forces of members; use --backend native, or "
            "--force-spread none"
        )
    used = [name for name in COLUMNS if name == options.by or name in (options.where or "")]
    if used and wanted != "all":
        raise UsageError(
            f"no row has {used[0]} while the best are chosen: a shallow ensemble gives the spread of forces to "
            f"{'the rows of top.csv alone' if wanted == 'top' else 'no row'}; use --force-spread all"
        )
    return wanted


def with_spread(job: Job, rows: NDArray[Any], between: Callable[[], None] = lambda: None) -> NDArray[Any]:
    """Return `rows` with the columns of the spread of forces filled in, whatever else they hold left as it is.

    between : is called before each batch, and every moment while a server is waited for; it may raise.
    """
    rows = rows.copy()
    able = np.flatnonzero(rows["status"] == Status.OK)
    for head in np.unique(rows["head"][able]):
        own = able[rows["head"][able] == head]
        own = own[np.argsort(rows["position"][own], kind="stable")]
        for start, stop in merge_into_ranges(rows["position"][own]):
            here = own[(rows["position"][own] >= start) & (rows["position"][own] < stop)]
            batch = job.reader.read(start, stop, CONDITIONS).take(rows["position"][here] - start)
            _fill(job, batch, rows, here, job.runner.heads[int(head)], between)
    return rows


def _fill(
    job: Job,
    batch: StructureBatch,
    rows: NDArray[Any],
    here: NDArray[np.int64],
    head: str,
    between: Callable[[], None],
) -> None:
    """Fill in the rows `here`, of the structures of `batch`; NaN where memory does not suffice."""
    from atomsieve.graphs.estimate import edge_budget_estimate

    runner, want = job.runner, {"energy", "forces", "spread", "force_spread"}
    edges = edge_budget_estimate(batch, runner.predictor.cutoff)

    def compute(some: NDArray[np.int64]) -> None:
        part = batch.take(some)
        found = fill_rows(rows[here[some]], part, runner.ask(part, want, head, between))
        for name in COLUMNS:
            rows[name][here[some]] = found[name]

    limit = Limit(runner.max_atoms, runner.max_edges)  # of its own: this takes far more memory than the run did
    for group in pack(edges, batch.counts, runner.max_atoms, runner.max_edges):
        for large in run_halving_on_oom(compute, group, batch.counts, edges, limit):
            log.warning("structure %d: too little memory for its spread of forces", rows["position"][here[large]])
            for name in COLUMNS:
                rows[name][here[large]] = np.nan
