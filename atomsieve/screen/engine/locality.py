"""Chunks are offered first to the ranks of the nodes that hold a copy of their part of the input."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atomsieve.runs.mpi import QUEUES, SLOTS, Communicator
from atomsieve.screen.results.chunks import Chunks
from atomsieve.structures import StructureReader
from atomsieve.text import pluralize

MOST_QUEUES = SLOTS - QUEUES


def format_copies(comm: Communicator, reader: StructureReader, copies: str | None) -> str | None:
    """Return a line on how many parts are read from copies, on any node; None where no folder of copies was named.

    Every rank must call it.
    """
    if copies is None or not reader.parts:  # an input of the caller may have no parts
        return None
    held = _gather_copied(comm, reader)
    found, parts = len({part for own in held for part in own}), len(reader.parts)
    if found:
        return f"copies: {found:,} of {pluralize(parts, 'part')} are read from {copies}"
    return (
        f"warning: --copies {copies} holds no part of the candidates whole, under its name (the first is "
        f"{reader.parts[0].name}): all parts are read from the candidates themselves"
    )


def _gather_copied(comm: Communicator, reader: StructureReader) -> list[tuple[int, ...]]:
    """Return the parts that each rank reads from copies."""
    return comm.all_gather(tuple(sorted(reader.copied)))


def assign_queues(
    comm: Communicator, reader: StructureReader, chunks: Chunks, todo: list[int]
) -> tuple[NDArray[np.int64] | None, int]:
    """Return the queue of each chunk of `todo`, and this rank's own; None where no rank has copies of parts.

    Ranks that hold the same parts share a queue. A chunk goes to those that hold the part of its first structure, in
    turn if several do; queue 0 has the chunks of which no rank has a copy.
    """
    held = _gather_copied(comm, reader)
    groups = sorted({parts for parts in held if parts})[: MOST_QUEUES - 1]
    if not groups:
        return None, 0
    holders: dict[int, list[int]] = {}
    for number, parts in enumerate(groups, start=1):
        for part in parts:
            holders.setdefault(part, []).append(number)
    ends = np.cumsum([part.structures for part in reader.parts])
    part_of_chunk = np.searchsorted(ends, chunks.starts()[:-1], side="right")
    queue = np.zeros(len(todo), np.int64)
    ends = np.cumsum([part.structures for part in reader.parts])
    for place, chunk in enumerate(todo):
        of_part = holders.get(int(part_of_chunk[chunk]), [0])
        queue[place] = of_part[place % len(of_part)]
    own = held[comm.rank]
    return queue, groups.index(own) + 1 if own in groups else 0
