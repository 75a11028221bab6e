"""The best rows of a results folder by one column, and the rows that fulfil a filter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.status import Status
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.stability import choose_ranking
from atomsieve.screen.results.table import list_columns, resolve_ranking
from atomsieve.screen.selection.row_filter import compile_filter, require_columns
from atomsieve.screen.selection.top_k import TopK


def best_rows(results: Results, k: int, by: str, *, descending: bool = False, where: str | None = None) -> NDArray[Any]:
    """Return the exact best `k` rows among those that are OK and fulfil `where`, best first."""
    by = choose_ranking(results, by)
    ranking = resolve_ranking(by, list_columns(results))
    keep = compile_filter(results, where)  # first: a text that cannot be read is refused with its own message
    require_columns(results, [by], where)
    best = TopK(k, ranking, descending=descending, where=keep)
    for rows in results.iter_rows():
        best.add(np.asarray(rows))
    return best.rows()


def iter_matching_rows(results: Results, where: str | None) -> Iterator[NDArray[Any]]:
    """Yield the rows that fulfil `where`, with a result or without, in input order."""
    keep = compile_filter(results, where)
    for rows in results.iter_rows():
        yield rows if keep is None else rows[keep(rows)]


def count_without_result(results: Results, where: str) -> int:
    """Return how many rows fulfil `where` and have no result, so that none of them can be among the best."""
    return sum(int((rows["status"] != Status.OK).sum()) for rows in iter_matching_rows(results, where))


def find_failed_rows(results: Results, where: str | None, most: int) -> NDArray[Any]:
    """Return the first `most` rows without result that fulfil `where`, in input order."""
    found, count = [np.zeros(0, ROW)], 0
    for rows in iter_matching_rows(results, where):
        found.append(np.asarray(rows[rows["status"] != Status.OK]))
        count += len(found[-1])
        if count >= most:
            break
    return np.concatenate(found)[:most]
