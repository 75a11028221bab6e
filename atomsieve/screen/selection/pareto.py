"""The Pareto front of two to four columns, exactly: the rows that no other row dominates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.predict.status import Status
from atomsieve.screen.results.columns import ROW, rankable
from atomsieve.screen.results.table import Columns, Ranking, name_ranking, read_ranking, resolve_ranking
from atomsieve.screen.selection.row_filter import Where

BLOCK = 256  # points compared with each other at once
ROOM = 1 << 22  # comparisons held in memory at once
FIRST = 32  # points of the front that are compared first, because they dominate most others
LARGEST = 5_000_000
"""Most rows that a front, or another choice, may hold in memory (about 0.5 GB)."""


def parse_objectives(text: str, columns: Columns | None = None) -> list[tuple[Ranking, float]]:
    """Return the columns of `energy_per_atom,max_force:max` with their signs: 1 for small, -1 (`:max`) for large.

    columns : those that exist, by name; None allows those of `rows.npy`.

    Raises
    ------
    UsageError
        for an unknown column or ending, one named twice, or fewer than two or more than four.
    """
    found: list[tuple[Ranking, float]] = []
    taken: set[str] = set()
    for word in text.split(","):
        name, colon, way = word.strip().partition(":")
        if colon and way not in ("min", "max"):
            raise UsageError(f"--pareto: {word.strip()!r} ends in {way!r}; allowed are :min (as without) and :max")
        ranking = rankable(name).name if columns is None else resolve_ranking(name, columns)
        if name in taken:
            raise UsageError(f"--pareto names {name!r} twice")
        taken.add(name)
        found.append((ranking, -1.0 if way == "max" else 1.0))
    if not 2 <= len(found) <= 4:
        raise UsageError(f"--pareto takes 2 to 4 columns, e.g. energy_per_atom,energy_std; got {len(found)}")
    return found


def is_dominated(points: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each of `points [n,d]` whether one of `by [m,d]` is nowhere larger and somewhere smaller."""
    found = np.zeros(len(points), bool)
    step = max(ROOM // max(len(by), 1), 1)
    for start in range(0, len(points), step):
        some = points[start : start + step]
        nowhere = np.ones((len(some), len(by)), bool)
        somewhere = np.zeros_like(nowhere)
        for k in range(points.shape[1]):
            nowhere &= by[None, :, k] <= some[:, None, k]
            somewhere |= by[None, :, k] < some[:, None, k]
        found[start : start + step] = (nowhere & somewhere).any(axis=1)
    return found


def is_non_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each of `points [n,d]` whether no other dominates it; equal points do not dominate each other."""
    order = np.lexsort(points.T[::-1])  # in this order a point comes after all that dominate it
    front = np.zeros((0, points.shape[1]))
    keep = np.zeros(len(points), bool)
    for start in range(0, len(points), BLOCK):
        some = order[start : start + BLOCK]
        some = some[~is_dominated(points[some], front)]
        some = some[~is_dominated(points[some], points[some])]
        keep[some] = True
        front = np.unique(np.concatenate([front, points[some]]), axis=0)
    return keep


class Front:
    """Keeps the rows that no other dominates, among those that are OK, finite in all columns, and fulfil `where`.

    The answer does not depend on the order in which rows come. Equal rows stay together.
    """

    def __init__(self, columns: list[tuple[Ranking, float]], *, where: Where | None = None) -> None:
        self.columns, self.where = columns, where
        self._kept = np.zeros(0, ROW)

    def points(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return the compared values [n,d]; smaller is better."""
        return np.stack([sign * read_ranking(by, rows) for by, sign in self.columns], axis=1)

    def add(self, rows: NDArray[Any]) -> None:
        """Take rows [n] (dtype `ROW`) into account; they are copied where kept."""
        points = self.points(rows)
        wanted = np.flatnonzero((rows["status"] == Status.OK) & np.isfinite(points).all(axis=1))
        front = np.unique(self.points(self._kept), axis=0)
        for rivals in (front[self._strongest(front)], front):
            wanted = wanted[~is_dominated(points[wanted], rivals)]
        if self.where is not None and len(wanted):
            wanted = wanted[self.where(rows[wanted])]
        if not len(wanted):
            return
        rows = np.concatenate([self._kept, rows[wanted[is_non_dominated(points[wanted])]]])
        self._kept = rows[is_non_dominated(self.points(rows))]
        if len(self._kept) > LARGEST:
            names = ", ".join(name_ranking(by) for by, _ in self.columns)
            raise UsageError(
                f"more than {LARGEST:,} rows are not dominated in {names}; name fewer columns, or keep fewer rows by "
                "--where"
            )

    @staticmethod
    def _strongest(front: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the points of the front that are good in all columns at once: they dominate most others."""
        ranks = np.argsort(np.argsort(front, axis=0), axis=0)
        return np.argsort(ranks.max(axis=1, initial=0), kind="stable")[:FIRST]

    def rows(self) -> NDArray[Any]:
        """Return the front, sorted by the columns as named, then by position and head."""
        keys = (self._kept["head"], self._kept["position"], *self.points(self._kept).T[::-1])
        return self._kept[np.lexsort(keys)]
