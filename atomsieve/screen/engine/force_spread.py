"""The spread of forces in a screening with a shallow ensemble, where it costs more than all the rest together.

Every member needs its own backward pass, so by default only the rows of `top.csv` get theirs, when the run is
finished. In `rows.npy` the columns of it are NaN, and `run.json` records that under `options`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.predict.interface import AnyPredictor
from atomsieve.predict.packing import Limit, pack, run_halving_on_oom
from atomsieve.predict.status import Status
from atomsieve.screen.engine.context import RankContext
from atomsieve.screen.engine.rows import Rows, fill_rows
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.screened_input import read_batches_at
from atomsieve.structures import StructureBatch

log = logging.getLogger(__name__)

COLUMNS = ("max_force_std", "sigma_force")
"""Columns of a row that need the spread of forces."""


def resolve_force_spread(options: ScreenOptions, predictor: AnyPredictor) -> str:
    """Return which rows get the spread of forces: `all`, `top` or `none`.

    A deep ensemble gives it for nothing; `auto` means `top` of a shallow one, `none` where its backend has no forces
    of members.

    Raises
    ------
    UsageError
        if it is asked for and the backend gives none, or rows are to be ranked or filtered by a column they will lack.
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


def fill_force_spread(context: RankContext, rows: Rows, between: Callable[[], None] = lambda: None) -> Rows:
    """Return `rows` with the columns of the spread of forces filled in, and all else left as it is.

    between : is called before each batch, and every moment of a wait for a server; it may raise.
    """
    rows = rows.copy()
    able = np.flatnonzero(rows["status"] == Status.OK)
    for head in np.unique(rows["head"][able]):
        own = able[rows["head"][able] == head]
        own = own[np.argsort(rows["position"][own], kind="stable")]
        name = context.runner.heads[int(head)]
        for inside, batch in read_batches_at(context.reader, rows["position"][own]):
            _fill(context.runner, batch, rows, own[inside], name, between)
    return rows


def _fill(
    runner: Runner,
    batch: StructureBatch,
    rows: Rows,
    here: NDArray[np.int64],
    head: str,
    between: Callable[[], None],
) -> None:
    """Fill in the rows `here`, of the structures of `batch`; NaN where memory does not suffice."""
    from atomsieve.graphs.estimate import edge_budget_estimate

    want = {"energy", "forces", "spread", "force_spread"}
    edges = edge_budget_estimate(batch, runner.predictor.cutoff)

    def compute(some: NDArray[np.int64]) -> None:
        part = batch.take(some)
        found = fill_rows(rows[here[some]], part, runner.predict(part, want, head, between))
        for name in COLUMNS:
            rows[name][here[some]] = found[name]

    limit = Limit(runner.max_atoms, runner.max_edges)  # of its own: this takes far more memory than the run did
    for group in pack(edges, batch.counts, runner.max_atoms, runner.max_edges):
        for large in run_halving_on_oom(compute, group, batch.counts, edges, limit):
            log.warning("structure %d: too little memory for its spread of forces", rows["position"][here[large]])
            for name in COLUMNS:
                rows[name][here[large]] = np.nan
