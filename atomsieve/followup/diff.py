"""Comparison of two screenings row by row: the same structures by two heads, two ensembles, or before and after.

Rows are matched by place where both screened the same input, else by id. Ranks are those among all rows of a screening
that have a result and fulfil the filter, 1 the best.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError
from atomsieve.predict.status import Status
from atomsieve.runs.output_files import atomic_draft, output_errors
from atomsieve.screen.results.columns import AUTOMATIC
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.stability import choose_ranking
from atomsieve.screen.results.table import (
    ResultColumn,
    format_column,
    freeze_column,
    list_columns,
    read_ranking,
    resolve_ranking,
)
from atomsieve.screen.results.tables import protect_text
from atomsieve.screen.results.targets import check_target
from atomsieve.screen.selection.row_filter import compile_filter
from atomsieve.screen.selection.select import resolve_head
from atomsieve.structures.carried import ID, hash_texts

STAYED, LEFT, ENTERED = "stayed", "left", "entered"
AT_ONCE = 20_000  # rows of the table that are written at once


@dataclass(frozen=True)
class Side:
    """One of the two screenings: n rows of one head.

    Attributes
    ----------
    results, head : whose they are.
    place : [n] of the rows in the row store. keys : [n] by which rows are matched.
    value : [n], NaN without a result, or where the filter drops the row. rank : [n] from 1; 0 where there is no value.
    """

    results: Results
    head: str
    place: NDArray[np.int64]
    keys: NDArray[np.int64]
    value: NDArray[np.float64]
    rank: NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """Two screenings, compared.

    Attributes
    ----------
    by, top : the column that ranks, and the number of best rows that are compared.
    first, second : the two. pairs : [m,2] rows of them that match.
    only_first, only_second : rows without a partner. repeated : rows left out because their id stands more than once.
    """

    by: str
    top: int
    first: Side
    second: Side
    pairs: NDArray[np.int64]
    only_first: int
    only_second: int
    repeated: int

    def values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the values of both sides of the pairs in which both have one."""
        a, b = self.first.value[self.pairs[:, 0]], self.second.value[self.pairs[:, 1]]
        both = np.isfinite(a) & np.isfinite(b)
        return a[both], b[both]

    def changes(self) -> NDArray[Any]:
        """Return for each pair whether it stayed among the best `top`, left them or entered them; else empty."""
        inside = [(rank > 0) & (rank <= self.top) for rank in self.ranks()]
        out = np.full(len(self.pairs), "", object)
        out[inside[0] & inside[1]], out[inside[0] & ~inside[1]], out[~inside[0] & inside[1]] = STAYED, LEFT, ENTERED
        return out

    def ranks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ranks of the pairs on both sides; 0 without one."""
        return self.first.rank[self.pairs[:, 0]], self.second.rank[self.pairs[:, 1]]


_CHOICES = ("energy_per_atom", "formation_energy", "energy_above_hull")  # of `choose_ranking`; both must have it


def compare(
    first: Results,
    second: Results,
    *,
    by: str = "energy_per_atom",
    descending: bool = False,
    where: str | None = None,
    heads: tuple[str | None, str | None] = (None, None),
    top: int = 1000,
) -> Comparison:
    """Compare two screenings; `heads` are needed where one had several. By "auto" both rank as `choose_ranking` says.

    Raises
    ------
    UsageError
        for a name that is not allowed, or a folder compared with itself by one head; DataError if no row matches.
    """
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    names = resolve_head(first, heads[0]), resolve_head(second, heads[1])
    if first.folder.path.resolve() == second.folder.path.resolve() and names[0] == names[1]:
        raise UsageError(
            f"{first.folder.path} and head {names[0]} are compared with themselves; --head and --other-head name two "
            "heads"
        )
    by = (
        min((choose_ranking(results, by) for results in (first, second)), key=_CHOICES.index) if by == AUTOMATIC else by
    )
    by_place = first.manifest["input"]["identity"] == second.manifest["input"]["identity"]
    sides = [
        _read_side(results, head, by, where, descending=descending, by_place=by_place)
        for results, head in zip((first, second), names, strict=True)
    ]
    pairs, repeated = _match(sides[0].keys, sides[1].keys)
    if not len(pairs):
        raise DataError(
            f"no id of {first.folder.path} is one of {second.folder.path}; compare screenings of the same structures, "
            "or convert both inputs with the same --id-key"
        )
    lone = [len(side.keys) - len(pairs) for side in sides]
    return Comparison(by, top, sides[0], sides[1], pairs, lone[0], lone[1], repeated)


def _read_side(results: Results, head: str, by: str, where: str | None, *, descending: bool, by_place: bool) -> Side:
    columns, keep = list_columns(results), compile_filter(results, where)
    ranking, number = resolve_ranking(by, columns), results.labels.heads.index(head)
    places, keys, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    done = 0
    for rows in results.iter_rows():
        rows = np.asarray(rows)
        own = np.flatnonzero(rows["head"] == number)
        mine = rows[own]
        value = np.where(mine["status"] == Status.OK, read_ranking(ranking, mine), np.nan)
        if keep is not None:
            value[~keep(mine)] = np.nan
        places.append(own + done)
        values.append(value)
        keys.append(mine["position"] if by_place else _make_keys(columns[ID], mine))
        done += len(rows)
    value = np.concatenate(values)
    order = np.argsort(-value if descending else value, kind="stable")  # NaN comes last
    rank = np.zeros(len(value), np.int64)
    known = order[: int(np.isfinite(value).sum())]
    rank[known] = np.arange(1, len(known) + 1)
    return Side(results, head, np.concatenate(places), np.concatenate(keys), value, rank)


def _make_keys(ids: ResultColumn, rows: NDArray[Any]) -> NDArray[np.int64]:
    """Return a number for each id: integers are themselves, texts are hashed; a missing text is -1 - its place."""
    if ids.kind != "text":
        return rows["id"].astype(np.int64)
    import pyarrow as arrow

    texts = ids.values(rows)
    keys = hash_texts(arrow.array(texts, arrow.string())).view(np.int64)
    missing = texts == ""
    keys[missing] = -1 - rows["position"][missing]
    return keys


def _match(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return pairs [m,2] of places with equal keys, in the order of `a`, and the number of rows whose key repeats."""
    repeated = 0
    kept = []
    for keys in (a, b):
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        repeated += int(counts[counts > 1].sum())
        kept.append(np.sort(first[counts == 1]))
    common, at_a, at_b = np.intersect1d(a[kept[0]], b[kept[1]], assume_unique=True, return_indices=True)
    pairs = np.stack([kept[0][at_a], kept[1][at_b]], axis=1) if len(common) else np.zeros((0, 2), np.int64)
    return pairs[np.argsort(pairs[:, 0])], repeated


# -- as a table and as lines -----------------------------------------------------------------------------------------


def order_pairs(found: Comparison, *, every: bool = False) -> NDArray[np.int64]:
    """Return the pairs of the table: those among the best of either side, or all; by their ranks."""
    ranks = [np.where(rank > 0, rank, np.iinfo(np.int64).max) for rank in found.ranks()]
    order = np.lexsort((ranks[1], ranks[0]))
    return order if every else order[(np.minimum(ranks[0], ranks[1]) <= found.top)[order]]


def write_table(found: Comparison, out: Path, *, every: bool = False, overwrite: bool = False) -> int:
    """Write the pairs as CSV, the best of either side or all; return their number.

    Raises
    ------
    UsageError
        for another ending; AtomSieveError if the file is there already.
    """
    if out.suffix.lower() != ".csv":
        raise UsageError(f"the table of a comparison is written as .csv, got {out.name}")
    for side in (found.first, found.second):
        check_target(out, overwrite, side.results)
    order = order_pairs(found, every=every)
    with output_errors(out), atomic_draft(out, durable=False) as draft, open(draft, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for k, part in enumerate(np.split(order, range(AT_ONCE, len(order), AT_ONCE))):
            lines = iter(list_lines(found, part))
            heading = next(lines)
            if k == 0:
                table.writerow(heading)
            table.writerows(lines)
    return len(order)


def list_lines(found: Comparison, chosen: NDArray[np.int64]) -> Iterator[list[str]]:
    """Yield the heading of the table, then a line for each of the chosen pairs."""
    by, unit = found.by, list_columns(found.first.results)[found.by].unit
    shown = f"{by}{{}}{f' [{unit}]' if unit else ''}"
    names = ["position", "position_other", "head", "head_other", shown.format(""), shown.format("_other")]
    more = [shown.format("_difference"), "rank", "rank_other", "rank_change", "change", "status", "status_other"]
    yield [ID, "formula", "reduced_formula", *names, *more]
    pairs = found.pairs[chosen]
    rows = [
        np.asarray(side.results.rows()[side.place[pairs[:, k]]]) for k, side in enumerate((found.first, found.second))
    ]
    columns = list_columns(found.first.results)
    texts = [
        [protect_text(t) for t in format_column(columns[name], freeze_column(columns[name], rows[0]).values(rows[0]))]
        for name in (ID, "formula", "reduced_formula")
    ]
    values = [side.value[pairs[:, k]] for k, side in enumerate((found.first, found.second))]
    ranks, changes = [rank[chosen] for rank in found.ranks()], found.changes()[chosen]
    for k in range(len(chosen)):
        a, b = int(ranks[0][k]), int(ranks[1][k])
        yield [
            *(column[k] for column in texts),
            str(int(rows[0]["position"][k])),
            str(int(rows[1]["position"][k])),
            found.first.head,
            found.second.head,
            _number(values[0][k]),
            _number(values[1][k]),
            _number(values[1][k] - values[0][k]),
            str(a or ""),
            str(b or ""),
            str(a - b) if a and b else "",
            str(changes[k]),
            found.first.results.labels.status(rows[0]["status"][k]),
            found.second.results.labels.status(rows[1]["status"][k]),
        ]


def _number(value: float) -> str:
    return "" if not np.isfinite(value) else repr(float(value))


def format_comparison(found: Comparison) -> list[str]:
    """Return lines for people: what matched, how values and ranks differ, and how many of the best stayed."""
    from scipy.stats import spearmanr

    a, b = found.values()
    first, second = (f"{side.results.folder.path} ({side.head})" for side in (found.first, found.second))
    lines = [
        f"{len(found.pairs):,} structures in both; only in {first}: {found.only_first:,}; only in {second}: "
        f"{found.only_second:,}"
    ]
    if found.repeated:
        lines.append(f"{found.repeated:,} rows left out, because their id stands more than once")
    unit = list_columns(found.first.results)[found.by].unit
    if len(a):
        difference = b - a
        lines.append(
            f"{found.by}, second minus first, of {len(a):,}: mean {difference.mean():+.4g}, mean absolute "
            f"{np.abs(difference).mean():.4g}, largest {np.abs(difference).max():.4g} {unit}".rstrip()
        )
    if len(a) > 2:
        lines.append(f"rank correlation (Spearman): {float(spearmanr(a, b).statistic):.3f}")
    changes = found.changes()
    stayed, left, entered = (int((changes == word).sum()) for word in (STAYED, LEFT, ENTERED))
    lines.append(f"of the best {found.top:,}: {stayed:,} stayed, {left:,} left, {entered:,} entered")
    known = [np.isfinite(side.value[found.pairs[:, k]]) for k, side in enumerate((found.first, found.second))]
    failed = [int((known[0] & ~known[1]).sum()), int((known[1] & ~known[0]).sum())]
    if any(failed):
        lines.append(f"with a value in the first alone: {failed[0]:,}; in the second alone: {failed[1]:,}")
    if found.first.head != found.second.head and found.by in ("energy", "energy_per_atom"):
        lines.append(
            "energies of different heads have different zeros: compare ranks, not differences, or rank by a column "
            "that is relative to the elements"
        )
    return lines
