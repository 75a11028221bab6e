"""The tally of a rank: rows by status, the best rows and the poisoned structures, of the chunks it has seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from atomsieve.screen.engine.poisoned import PoisonedSpan, find_poisoned
from atomsieve.screen.engine.rows import Rows
from atomsieve.screen.selection.top_k import TopK


@dataclass(frozen=True)
class Tally:
    """Rows taken into account; the order in which they were added makes no difference.

    Attributes
    ----------
    best : the best rows. status : rows per status code. poisoned : a span for each chunk with POISONED structures.
    """

    best: TopK
    status: Counter[int] = field(default_factory=Counter)
    poisoned: list[PoisonedSpan] = field(default_factory=list)

    def add(self, rows: Rows) -> None:
        """Count the rows of one chunk, and let them compete for the table of best rows."""
        self.best.add(rows)
        codes, counts = np.unique(rows["status"], return_counts=True)
        if (span := find_poisoned(rows)) is not None:
            self.poisoned.append(span)
        self.status.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: Tally) -> Tally:
        """Return the tally of both; `other` ranks and filters rows as this one does."""
        best = TopK(self.best.k, self.best.by, descending=self.best.descending, where=self.best.where)
        for rows in (self.best.rows(), other.best.rows()):
            best.add(rows)
        return Tally(best, self.status + other.status, [*self.poisoned, *other.poisoned])
