"""The best rows, exactly: a bounded reducer whose answer does not depend on the order in which rows come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.status import Status
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.selection.row_filter import Where


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
        wanted = np.isfinite(key) & (rows["status"] == Status.OK) & (key <= self._worst)
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
