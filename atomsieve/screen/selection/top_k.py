"""The best rows, exactly: a bounded reducer whose answer does not depend on the order in which rows come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.status import Status
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.table import Ranking, read_ranking
from atomsieve.screen.selection.row_filter import Where


class TopK:
    """Keeps the `k` rows with the smallest (or largest) `by` among those that are OK and fulfil `where`.

    by : the name of a column of `rows.npy`, for which nothing but the rows is read, or another column of numbers.

    Ties are broken by position, then head, so any split of the rows over ranks and chunks gives the same table.
    """

    def __init__(self, k: int, by: Ranking, *, descending: bool = False, where: Where | None = None) -> None:
        self.k, self.by, self.descending, self.where = k, by, descending, where
        self._kept, self._keys = np.zeros(0, ROW), np.zeros(0)
        self._fresh: list[tuple[NDArray[Any], NDArray[np.float64]]] = []
        self._n_fresh = 0
        self._worst = np.inf

    def _key(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        key = read_ranking(self.by, rows)
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
            self._fresh.append((rows[wanted], key[wanted]))
            self._n_fresh += int(wanted.sum())
            if self._n_fresh > max(self.k, 4096):
                self._settle()

    def _settle(self) -> None:
        rows = np.concatenate([self._kept, *(rows for rows, _ in self._fresh)])
        keys = np.concatenate([self._keys, *(key for _, key in self._fresh)])
        order = np.lexsort((rows["head"], rows["position"], keys))[: self.k]
        self._kept, self._keys, self._fresh, self._n_fresh = rows[order], keys[order], [], 0
        if len(self._kept) == self.k:
            self._worst = float(self._keys[-1])

    def rows(self) -> NDArray[Any]:
        """Return the best rows, best first."""
        if self._fresh:
            self._settle()
        return self._kept
