"""Selection of rows of a results folder, exactly: the best by a column, the best of each group, or the Pareto front.

Every selection reads the rows once and holds only the rows selected so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError, unknown
from atomsieve.predict.status import Status
from atomsieve.screen.results.columns import AUTOMATIC, PLAIN, ROW
from atomsieve.screen.results.record import Results, require_complete
from atomsieve.screen.results.screened_input import open_screened_input
from atomsieve.screen.results.stability import choose_ranking
from atomsieve.screen.results.table import Ranking, list_columns, name_ranking, read_ranking, resolve_ranking
from atomsieve.screen.selection.groups import GROUPS, SYMPREC, ColumnGrouping, Grouping, Keys
from atomsieve.screen.selection.pareto import LARGEST, Front, parse_objectives
from atomsieve.screen.selection.row_filter import Where, compile_filter, require_columns
from atomsieve.screen.selection.top_k import TopK

AT_ONCE = 64  # structures whose space groups are found between two checks whether enough rows are selected


@dataclass(frozen=True)
class Selection:
    """A selection of rows of a results folder.

    Attributes
    ----------
    top : at most so many rows, the best ones; None for all rows that the other fields allow.
    by, descending : the column that ranks, smallest first unless descending: any number of `results.table`; "auto"
        chooses, see `results.stability.choose_ranking`.
    where : an expression over the columns that a row must fulfil. Only rows with a result are selected.
    head : rows of this head only; needed for `per` and `pareto` where the run had several.
    per, each : at most `each` rows of one group, a name of `groups.GROUPS` or of a column.
    symprec : tolerance of space groups, Angstrom.
    pareto : columns of a front, e.g. `energy_per_atom,energy_std`; then `by`, `top` and `per` must not be given.
    """

    top: int | None = None
    by: str = AUTOMATIC
    descending: bool = False
    where: str | None = None
    head: str | None = None
    per: str | None = None
    each: int = 1
    symprec: float = SYMPREC
    pareto: str | None = None

    def __post_init__(self) -> None:
        for name in ("top", "each"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if self.each != 1 and self.per is None:
            raise UsageError(f"--each {self.each} goes with --per; name a group: {', '.join(GROUPS)}")
        if self.symprec != SYMPREC and self.per != "space-group":
            raise UsageError(f"--symprec {self.symprec:g} goes with --per space-group; leave it out")
        if self.pareto is not None:
            if self.by not in (AUTOMATIC, PLAIN) or self.descending:
                raise UsageError(
                    "--pareto ranks by its own columns, large ones first where `:max` follows; leave out --by and "
                    "--descending"
                )
            if self.per is not None:
                raise UsageError("--pareto and --per exclude each other; choose one, and the other from its export")


@dataclass(frozen=True)
class SelectedRows:
    """The selected rows.

    Attributes
    ----------
    rows : [n] of dtype `ROW`, best first; a front is sorted by its columns as named.
    groups : name of the group of each row; None without `per`.
    """

    rows: NDArray[Any]
    groups: list[str] | None = None


def select(results: Results, selection: Selection) -> SelectedRows:
    """Return the rows that `selection` asks for, over all durable rows.

    Raises
    ------
    UsageError
        if a name is not allowed, or more rows would be held than fit in memory.
    AtomSieveError
        if structures are needed and the input is gone; DataError if it changed.
    """
    columns = list_columns(results)
    if selection.per is not None and selection.per not in {*GROUPS, *columns}:
        raise unknown("group", selection.per, dict.fromkeys([*GROUPS, *columns]))
    where = _compile_where(results, selection)
    if selection.pareto is not None:
        objectives = parse_objectives(selection.pareto, columns)
        require_columns(results, [name_ranking(by) for by, _ in objectives], selection.where)
        return SelectedRows(_reduce_all(results, Front(objectives, where=where)))
    name = choose_ranking(results, selection.by)
    by = resolve_ranking(name, columns)
    require_columns(results, [name], selection.where)
    if selection.per is None:
        most = min(selection.top or LARGEST + 1, LARGEST + 1)  # one more than allowed shows that there are too many
        best = TopK(most, by, descending=selection.descending, where=where)
        return SelectedRows(_require_fewer(_reduce_all(results, best), "rows would be chosen"))
    if selection.per in GROUPS:
        with open_screened_input(results) as reader:
            grouping = Grouping(selection.per, reader, selection.symprec)
            choose = _select_best_first if selection.per == "space-group" else _select_in_one_pass
            rows = choose(results, selection, by, where, lambda rows: grouping.keys(rows["position"]))
            return SelectedRows(rows, grouping.labels(rows["position"]))
    of_column = ColumnGrouping(columns[selection.per])
    rows = _select_in_one_pass(results, selection, by, where, of_column.keys)
    return SelectedRows(rows, of_column.labels(rows))


def select_one_head(results: Results, selection: Selection) -> tuple[str, NDArray[Any]]:
    """Return the head that `selection` means and the rows that it asks for, of that head alone, best first.

    Raises
    ------
    AtomSieveError
        if the run is not complete; UsageError if it had several heads and none is named; else as `select`.
    """
    require_complete(results)
    head = resolve_head(results, selection.head)
    return head, select(results, replace(selection, head=head)).rows


def resolve_head(results: Results, head: str | None) -> str:
    """Return the head `head`, or the only one; refuse to guess among several."""
    names = results.labels.heads
    if head is None:
        if len(names) > 1:
            raise UsageError(f"{results.folder.path} has several heads; name one with --head: {', '.join(names)}")
        return names[0]
    if head not in names:
        raise unknown("head", head, names)
    return head


def _compile_where(results: Results, selection: Selection) -> Where | None:
    """Return the filter of `--where` and `--head` together."""
    expression = compile_filter(results, selection.where)
    if selection.head is None and selection.per is None and selection.pareto is None:
        return expression
    number = results.labels.heads.index(resolve_head(results, selection.head))
    if len(results.labels.heads) == 1:
        return expression

    def where(rows: NDArray[Any]) -> NDArray[np.bool_]:
        mine = rows["head"] == number
        return mine if expression is None else mine & expression(rows)

    return where


def _reduce_all(results: Results, reducer: TopK | Front | BestOfGroups) -> NDArray[Any]:
    for rows in results.iter_rows():
        reducer.add(np.asarray(rows))
    return reducer.rows()


def _require_fewer(rows: NDArray[Any], what: str) -> NDArray[Any]:
    if len(rows) > LARGEST:
        raise UsageError(f"more than {LARGEST:,} {what}; give a smaller --top, or keep fewer rows by --where")
    return rows


# -- groups --------------------------------------------------------------------------------------------------------


def rank_in_groups(keys: Keys) -> NDArray[np.int64]:
    """Return how many rows of the same group come before each row [n]."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: within a group the rows keep their order
    first = np.ones(len(keys), bool)
    first[1:] = (keys[order][1:] != keys[order][:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(starts, np.diff(starts, append=len(keys)))
    return ranks


KeysOf = Callable[[NDArray[Any]], Keys]
"""Returns the keys [n,2] of the groups of rows [n]."""


class BestOfGroups:
    """Keeps the best `n` rows of which at most `each` are of one group, among those that are OK and fulfil `where`.

    Exact with bounded memory: a row is dropped once `each` better rows of its group, or `n` better rows that may all be
    chosen, were seen; further rows can only add to either. Ties as in `TopK`.
    """

    def __init__(
        self,
        n: int | None,
        each: int,
        by: Ranking,
        keys: KeysOf,
        *,
        descending: bool = False,
        where: Where | None = None,
    ) -> None:
        self.n, self.each, self.by, self.descending, self.where = n, each, by, descending, where
        self._keys_of = keys
        self._kept, self._keys = np.zeros(0, ROW), np.zeros((0, 2), np.uint64)
        self._values = np.zeros(0)
        self._fresh: list[tuple[NDArray[Any], NDArray[np.float64]]] = []
        self._n_fresh = 0
        self._worst = np.inf

    def _value(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        value = read_ranking(self.by, rows)
        return -value if self.descending else value

    def add(self, rows: NDArray[Any]) -> None:
        """Add rows [n] (dtype `ROW`); look up the groups of those that may be kept."""
        value = self._value(rows)
        wanted = np.isfinite(value) & (rows["status"] == Status.OK) & (value <= self._worst)
        if self.where is not None and wanted.any():
            wanted &= self.where(rows)
        if wanted.any():
            self._fresh.append((rows[wanted], value[wanted]))
            self._n_fresh += int(wanted.sum())
            if self._n_fresh > max(len(self._kept), 4096):
                self._settle()

    def _settle(self) -> None:
        fresh = np.concatenate([rows for rows, _ in self._fresh])
        rows = np.concatenate([self._kept, fresh])
        values = np.concatenate([self._values, *(value for _, value in self._fresh)])
        keys = np.concatenate([self._keys, self._keys_of(fresh)])
        order = np.lexsort((rows["head"], rows["position"], values))
        order = order[rank_in_groups(keys[order]) < self.each][: self.n]
        self._kept, self._keys, self._values = rows[order], keys[order], values[order]
        self._fresh, self._n_fresh = [], 0
        _require_fewer(self._kept, "rows would be chosen")
        if len(self._kept) == self.n:
            self._worst = float(self._values[-1])

    def rows(self) -> NDArray[Any]:
        """Return the chosen rows, best first."""
        if self._fresh:
            self._settle()
        return self._kept


def _select_in_one_pass(
    results: Results, selection: Selection, by: Ranking, where: Where | None, keys: KeysOf
) -> NDArray[Any]:
    best = BestOfGroups(selection.top, selection.each, by, keys, descending=selection.descending, where=where)
    return _reduce_all(results, best)


def _select_best_first(
    results: Results, selection: Selection, by: Ranking, where: Where | None, keys: KeysOf
) -> NDArray[Any]:
    """Return the best rows of each group where groups are costly: they are found for the best rows first."""
    n = LARGEST + 1 if selection.top is None else min(max(4 * selection.top, AT_ONCE), LARGEST + 1)
    while True:
        best = TopK(n, by, descending=selection.descending, where=where)
        rows = _require_fewer(_reduce_all(results, best), "space groups would have to be found")
        chosen: list[int] = []
        taken: Counter[int] = Counter()
        for start in range(0, len(rows), AT_ONCE):
            for k, key in enumerate(keys(rows[start : start + AT_ONCE])[:, 0].tolist(), start):
                if taken[key] < selection.each and (selection.top is None or len(chosen) < selection.top):
                    taken[key] += 1
                    chosen.append(k)
            if len(chosen) == selection.top:
                return rows[chosen]
        if len(rows) < n:
            return rows[chosen]
        n = min(4 * n, LARGEST + 1)
