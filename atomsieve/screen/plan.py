"""How work is cut: an input into chunks, a chunk into batches. Both rules are fixed by the input and the options.

Nothing here knows of ranks, so the bytes of a chunk do not depend on who computes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIGN = 512  # rows; a chunk of a multiple of 512 rows of 72 bytes begins on a page of 4096 bytes of its own
LARGEST_CHUNK = 16384
CHUNK_ATOMS = 500_000
CHUNKS_AIM = 64  # an input that is small still has this many chunks where it can, to share among ranks

PACKING_RULE = "sorted by estimated edges, atoms, position; filled to max_atoms and max_edges"


@dataclass(frozen=True)
class Chunks:
    """Input positions `0..n` cut into ranges of `size`; the last may be shorter."""

    n: int
    size: int

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-self.n // self.size)

    def span(self, chunk: int) -> tuple[int, int]:
        """Return the first position of a chunk and the one after its last."""
        if not 0 <= chunk < self.count:
            raise IndexError(f"chunk {chunk} of {self.count}")
        return chunk * self.size, min(self.n, (chunk + 1) * self.size)


def chunk_size(n: int, mean_atoms: float) -> int:
    """Return the chunk size for an input of `n` structures of `mean_atoms` atoms on average.

    About 64 chunks for a small input, at most 16384 structures or 500,000 atoms for a large one; a multiple of 512
    unless the structures are so large that fewer fill a chunk.
    """
    most = max(min(LARGEST_CHUNK, int(CHUNK_ATOMS / max(mean_atoms, 1.0))), 1)
    return min(most, max(min(n // CHUNKS_AIM, most) // ALIGN, 1) * ALIGN)


def pack(
    edges: NDArray[np.float64], counts: NDArray[np.int64], max_atoms: int, max_edges: int
) -> list[NDArray[np.int64]]:
    """Group structures of `counts` atoms and about `edges` edges [S] into batches within both budgets.

    A structure above a budget is a batch by itself.

    Returns
    -------
    list of int64 arrays: the structures of each batch. Structures of like size come together, which keeps the padding
    of neighbour tables low. Every structure is in exactly one batch.
    """
    order = np.lexsort((np.arange(len(counts)), counts, edges)).astype(np.int64)
    atom_ends = np.cumsum(counts[order])
    edge_ends = np.cumsum(edges[order])
    batches = []
    start = 0
    while start < len(order):
        atoms_before = atom_ends[start - 1] if start else 0
        edges_before = edge_ends[start - 1] if start else 0.0
        stop = min(
            int(np.searchsorted(atom_ends, atoms_before + max_atoms, side="right")),
            int(np.searchsorted(edge_ends, edges_before + max_edges, side="right")),
        )
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches
