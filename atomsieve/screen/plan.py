"""How work is cut: an input into chunks, a chunk into batches. Both rules are fixed by the input and the options.

Nothing here knows of ranks, so the bytes of a chunk do not depend on who computes it.
"""

from __future__ import annotations

from dataclasses import dataclass

ALIGN = 512  # rows; a chunk of a multiple of 512 rows of 72 bytes begins on a page of 4096 bytes of its own
LARGEST_CHUNK = 16384
CHUNK_ATOMS = 500_000
CHUNKS_AIM = 64  # an input that is small still has this many chunks where it can, to share among ranks


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
