"""The best rows, exactly: a bounded reducer whose answer does not depend on the order in which rows come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError, unknown
from atomsieve.screen.results.columns import COLUMNS, ROW, reasons_text

OK = 0
NO_REASON = "none"
"""Stands for no reason in the column `outside`, where its text cannot be empty."""

Where = Callable[[NDArray[Any]], NDArray[np.bool_]]
"""Tells for each row whether it fulfils an expression."""


def row_filter(
    text: str | None,
    heads: list[str],
    statuses: Mapping[int, str],
    reasons: Mapping[int, str] | None = None,
    precisions: Sequence[str] = (),
) -> Where | None:
    """Compile `--where` over the columns; `head`, `precision`, `status` and `outside` are compared by name.

    E.g. `status == "TOO_LARGE"`. Each reason is also a flag of its own, in lower case: `not unseen_pair`. Where there
    is no reason, `outside` is "none", as in the files that cannot leave it empty, and "" as in the others.
    """
    if text is None:
        return None
    from atomsieve.structures.expression import compile_where

    bits = {name.lower(): bit for bit, name in (reasons or {}).items()}
    compiled = compile_where(text, [*COLUMNS, *bits]).with_text("outside", NO_REASON, "")
    status_names = np.array([statuses.get(code, str(code)) for code in range(256)])
    names = {"head": np.array(heads, str), "precision": np.array(precisions, str), "status": status_names}
    for name, allowed in (("head", heads), ("precision", precisions), ("status", list(statuses.values()))):
        for value in sorted(compiled.texts(name) - set(allowed)):
            raise unknown(f"{name} in the row filter", value, allowed)
    for value in sorted(compiled.texts("outside")):
        _check_reasons(value, reasons or {})

    def values(name: str, rows: NDArray[Any]) -> NDArray[Any]:
        if name in bits:
            return (rows["outside"] & np.uint32(bits[name])) != 0
        if name == "outside":
            codes, which = np.unique(rows["outside"], return_inverse=True)
            return np.array([reasons_text(code, reasons or {}) for code in codes], str)[which]
        return names[name][rows[name]] if name in names else rows[name]

    def where(rows: NDArray[Any]) -> NDArray[np.bool_]:
        needed = compiled.names or {"position"}  # one column tells how many rows there are
        return compiled({n: values(n, rows) for n in needed})

    where(np.zeros(0, ROW))  # text compared with a number, say, is found by columns alone: before any work, not after
    return where


def _check_reasons(value: str, reasons: Mapping[int, str]) -> None:
    """Refuse a text that `outside` never is: unknown names, or names in another order than theirs."""
    order = [name for _, name in sorted(reasons.items())]
    given = value.split("+") if value else []
    for name in given:
        if name not in order:
            raise unknown("reason in the row filter", name, [*order, NO_REASON] if len(given) == 1 else order)
    proper = "+".join(name for name in order if name in given)
    if proper != value:
        raise UsageError(f"outside is never {value!r} in the row filter; write {proper!r}, or the flags in lower case")


class TopK:
    """Keeps the `k` rows with the smallest (or largest) `by` among those that are OK and fulfil `where`.

    Ties are broken by position, then head, so any split of the rows over ranks and chunks gives the same table.
    """

    def __init__(self, k: int, by: str, *, descending: bool = False, where: Where | None = None) -> None:
        self.k, self.by, self.descending, self.where = k, by, descending, where
        self._kept = np.zeros(0, ROW)
        self._fresh: list[NDArray[Any]] = []
        self._n_fresh = 0
        self._worst = np.inf

    def _key(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        key = rows[self.by].astype(np.float64)
        return -key if self.descending else key

    def add(self, rows: NDArray[Any]) -> None:
        """Take rows [n] (dtype `ROW`) into account; they are copied where kept."""
        if self.k == 0:
            return
        key = self._key(rows)
        # `<=` the worst: a tie may still win by its position
        wanted = np.isfinite(key) & (rows["status"] == OK) & (key <= self._worst)
        if self.where is not None and wanted.any():
            wanted &= self.where(rows)
        if wanted.any():
            self._fresh.append(rows[wanted])
            self._n_fresh += int(wanted.sum())
            if self._n_fresh > max(self.k, 4096):
                self._settle()

    def _settle(self) -> None:
        rows = np.concatenate([self._kept, *self._fresh])
        order = np.lexsort((rows["head"], rows["position"], self._key(rows)))[: self.k]
        self._kept, self._fresh, self._n_fresh = rows[order], [], 0
        if len(self._kept) == self.k:
            self._worst = float(self._key(self._kept[-1:])[0])

    def rows(self) -> NDArray[Any]:
        """Return the best rows, best first."""
        if self._fresh:
            self._settle()
        return self._kept
