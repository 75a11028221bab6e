"""Rows of structures that are not computed, because computing them ended the process again and again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.status import Status
from atomsieve.screen.engine.poisoned import PoisonedSpan
from atomsieve.screen.engine.runner import clear_numbers
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.columns import blank_rows
from atomsieve.screen.results.npy_file import ResultFile
from atomsieve.text import pluralize

NO_ID = -1


def mark_poisoned(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows without numbers and with the status POISONED; a row with another bad status keeps it."""
    rows = clear_numbers(rows)
    rows["status"][rows["status"] == Status.OK] = Status.POISONED
    return rows


def poisoned_chunk_rows(
    first: int, end: int, heads: int, ids: NDArray[np.int64] | None, natoms: NDArray[np.int64] | None
) -> NDArray[Any]:
    """Return the rows [S*H] of a chunk of which nothing is computed; `ids` and `natoms` [S] are None where unknown."""
    rows = blank_rows((end - first) * heads).reshape(end - first, heads)
    rows["position"] = np.arange(first, end)[:, None]
    rows["id"] = NO_ID if ids is None else ids[:, None]
    rows["natoms"] = 0 if natoms is None else natoms[:, None]
    rows["head"] = np.arange(heads)
    return mark_poisoned(rows.reshape(-1))


def blank_chunk_values(file: ResultFile | None, chunk: int) -> NDArray[np.float32] | None:
    """Return NaN for all values of a chunk in a file of forces or members, None where they are not kept."""
    if file is None:
        return None
    size = (file.bounds(chunk + 1) - file.bounds(chunk)) // file.dtype.itemsize
    return np.full(size, np.nan, "<f4").reshape(-1, *file.shape[1:])


def format_poisoned_lines(spans: Iterable[PoisonedSpan], chunks: Chunks) -> list[str]:
    """Return a line for each chunk that holds POISONED structures."""
    lines = []
    for span in sorted(set(spans)):
        chunk = int(np.searchsorted(chunks.starts(), span.first, side="right")) - 1
        one = span.structures == 1
        between = f"position {span.first:,}" if one else f"positions {span.first:,} to {span.last:,}"
        lines.append(f"{pluralize(span.structures, 'structure')} of chunk {chunk:,} ({between})")
    return lines
