"""Division of an input into chunks. The rule depends on the input and the options alone.

Ranks do not enter it, so the bytes of a chunk do not depend on the rank that computes it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGN = 512  # rows; a chunk of a multiple of 512 rows of 72 bytes begins on a page of 4096 bytes of its own
LARGEST_CHUNK = 16384
CHUNK_ATOMS = 500_000
LEAST_ATOMS = 8192  # atoms; a smaller chunk fills too few batches
CHUNKS_AIM = 64  # chunks that a small input is divided into where possible, so that ranks can share it
HALVINGS = 3
HEAD_SHARE = 4  # one in so many structures lies in the smaller chunks at the end


@dataclass(frozen=True)
class Chunks:
    """Input positions `0..n` divided into ranges, which ranks claim in this order.

    Attributes
    ----------
    n : number of structures.
    size : structures of a chunk; the last may have fewer.
    taper : chunks become smaller towards the end, so that ranks finish together: three quarters of the input lie in
        chunks of `size`, then each half of the rest in chunks of half the previous size, down to an eighth.
    """

    n: int
    size: int
    taper: bool = False
    _first: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _runs: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find where chunks of one size begin: (first position, size) by first chunk."""
        first, runs, chunk, position, size = [], [], 0, 0, self.size
        steps = HALVINGS if self.taper else 0
        for step in range(steps + 1):
            left = self.n - position
            share = left - left // HEAD_SHARE if step == 0 and steps else left if step == steps else left // 2
            count = -(-share // size) if step == steps else share // size
            first.append(chunk)
            runs.append((position, size))
            chunk, position = chunk + count, min(position + count * size, self.n)
            size = _half(size)
        object.__setattr__(self, "_first", (*first, chunk))
        object.__setattr__(self, "_runs", tuple(runs))

    @property
    def count(self) -> int:
        """Number of chunks."""
        return self._first[-1]

    def start(self, chunk: int) -> int:
        """Return the first position of a chunk, or `n` for the number of chunks."""
        if not 0 <= chunk <= self.count:
            raise IndexError(f"chunk {chunk} of {self.count}")
        run = min(bisect_right(self._first, chunk) - 1, len(self._runs) - 1)
        position, size = self._runs[run]
        return min(self.n, position + (chunk - self._first[run]) * size)

    def span(self, chunk: int) -> tuple[int, int]:
        """Return the first position of a chunk and the one after its last."""
        if not 0 <= chunk < self.count:
            raise IndexError(f"chunk {chunk} of {self.count}")
        return self.start(chunk), self.start(chunk + 1)

    def starts(self) -> NDArray[np.int64]:
        """Return the first position of each chunk, and `n`, [count + 1]."""
        pieces = [
            np.minimum(position + np.arange(stop - first, dtype=np.int64) * size, self.n)
            for first, stop, (position, size) in zip(self._first[:-1], self._first[1:], self._runs, strict=True)
        ]
        return np.concatenate([*pieces, np.array([self.n], np.int64)])

    def describe(self) -> dict[str, Any]:
        """Return the rule as plain data."""
        return {"size": self.size, "taper": self.taper, "count": self.count}

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> Chunks:
        """Return the chunks of a run.json."""
        rule = manifest["chunks"]
        return Chunks(int(manifest["options"]["screened"]), int(rule["size"]), bool(rule["taper"]))


def _half(size: int) -> int:
    """Return half a chunk size, a multiple of `ALIGN` where the size is above it."""
    half = max(size // 2, 1)
    return half - half % ALIGN if half > ALIGN else half


def chunk_size(n: int, mean_atoms: float) -> int:
    """Return the largest chunk size for an input of `n` structures of `mean_atoms` atoms on average.

    About 64 chunks for a small input if they fill a few batches, at most 16384 structures or 500,000 atoms for a large
    one; a multiple of 512 unless it is below.
    """
    atoms = max(mean_atoms, 1.0)
    most = max(min(LARGEST_CHUNK, int(CHUNK_ATOMS / atoms)), 1)
    size = min(most, max(n // CHUNKS_AIM, int(LEAST_ATOMS / atoms), 1))
    return size - size % ALIGN if size > ALIGN else size
