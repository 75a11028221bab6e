"""Which structures of a chunk were not computed because they ended their process: rows with the status POISONED."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.status import Status


@dataclass(frozen=True, order=True)
class PoisonedSpan:
    """Structures of one chunk with the status POISONED: first position, last position, and their number."""

    first: int
    last: int
    structures: int


def find_poisoned(rows: NDArray[Any]) -> PoisonedSpan | None:
    """Return the POISONED structures among the rows of one chunk, None if there are none."""
    positions = np.unique(rows["position"][rows["status"] == Status.POISONED])
    return PoisonedSpan(int(positions[0]), int(positions[-1]), len(positions)) if len(positions) else None
