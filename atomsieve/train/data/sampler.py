"""The order of training: a pure function of (seed, epoch), so runs resume exactly and ranks agree without messages.

A source with a part p of all training atoms is drawn in proportion to p**balance (times its weight). Each source runs
through a shuffled pass of its structures, then the next; an epoch takes a piece of each of these streams, mixes the
pieces, and cuts the mixture into global batches by the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.batch import ragged_index
from atomsieve.train.config import BatchSection


@dataclass(frozen=True)
class Sizes:
    """Cost of each structure [S]: atoms, and directed edges where an edge budget is set."""

    atoms: NDArray[np.int64]
    edges: NDArray[np.int64] | None = None

    @property
    def cost(self) -> NDArray[np.int64]:
        """Cost of a structure, which is balanced over the ranks."""
        return self.atoms if self.edges is None else self.edges


def pack(order: NDArray[np.int64], sizes: Sizes, batch: BatchSection) -> list[NDArray[np.int64]]:
    """Cut `order` into consecutive batches within the budget; a structure above it comes alone."""
    limits = [(np.ones(len(order), np.int64), batch.structures), (sizes.atoms[order], batch.atoms)]
    if batch.edges is not None and sizes.edges is not None:
        limits.append((sizes.edges[order], batch.edges))
    sums = [(np.concatenate([[0], np.cumsum(values)]), limit) for values, limit in limits if limit is not None]
    out, start = [], 0
    while start < len(order):
        stop = len(order)
        for total, limit in sums:
            stop = min(stop, int(np.searchsorted(total, total[start] + limit, side="right")) - 1)
        stop = max(stop, start + 1)
        out.append(order[start:stop])
        start = stop
    return out


def deal(index: NDArray[np.int64], cost: NDArray[np.int64], n_ranks: int) -> list[NDArray[np.int64]]:
    """Divide a global batch over ranks, largest first to the least loaded; each share keeps the batch's order."""
    if n_ranks == 1:
        return [index]
    load = np.zeros(n_ranks)
    owner = np.zeros(len(index), np.int64)
    for k in np.argsort(-cost[index], kind="stable"):
        owner[k] = int(load.argmin())
        load[owner[k]] += cost[index[k]]
    return [index[owner == r] for r in range(n_ranks)]


class Order:
    """Global batches of each epoch.

    Parameters
    ----------
    head : [T] source of each training structure, in terms of positions 0..T-1; `index` [T] their catalogue indices.
    atoms : [T] atoms of each; weights : per source.
    block : structures of a source kept close together (1: a full shuffle).
    """

    def __init__(
        self,
        index: NDArray[np.int64],
        head: NDArray[np.integer],
        atoms: NDArray[np.int64],
        weights: list[float],
        batch: BatchSection,
        sizes: Sizes,
        seed: int,
        block: int = 1,
    ) -> None:
        self.batch, self.sizes, self.seed, self.block = batch, sizes, seed, block
        self.members = [index[head == h] for h in range(len(weights))]
        own_atoms = np.array([atoms[head == h].sum() for h in range(len(weights))], float)
        part = own_atoms / own_atoms.sum()
        share = np.where(part > 0, part**batch.balance, 0.0) * np.asarray(weights)
        share /= share.sum()
        mean = np.array([max(atoms[head == h].mean(), 1) if len(m) else 1.0 for h, m in enumerate(self.members)])
        self.quota = share * own_atoms.sum() / mean
        """Structures of each source in an epoch (a fraction carries over to the next); an epoch has T's atoms."""

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def _pass(self, head: int, number: int) -> NDArray[np.int64]:
        """Return pass `number` through a source: its structures shuffled, or its blocks and then within a window."""
        members, rng = self.members[head], self._rng(1, head, number)
        if self.block == 1:
            return rng.permutation(members)
        starts = rng.permutation(np.arange(0, len(members), self.block))
        counts = np.minimum(self.block, len(members) - starts)
        order = members[ragged_index(starts, counts)]
        window = 4 * self.block
        return np.concatenate([rng.permutation(order[k : k + window]) for k in range(0, len(order), window)])

    def _piece(self, head: int, start: int, stop: int) -> NDArray[np.int64]:
        size = len(self.members[head])
        if size == 0 or stop <= start:
            return np.zeros(0, np.int64)
        passes = [self._pass(head, k) for k in range(start // size, (stop - 1) // size + 1)]
        offset = start - start // size * size
        return np.concatenate(passes)[offset : offset + stop - start]

    def epoch(self, number: int) -> list[NDArray[np.int64]]:
        """Return the global batches (catalogue indices) of epoch `number`."""
        ends = np.floor(self.quota * (number + 1) + 1e-9).astype(int)
        begins = np.floor(self.quota * number + 1e-9).astype(int)
        pieces = [self._piece(h, int(b), int(e)) for h, (b, e) in enumerate(zip(begins, ends, strict=True))]
        label = np.repeat(np.arange(len(pieces)), [len(p) for p in pieces])
        label = self._rng(2, number).permutation(label)
        mixed = np.zeros(len(label), np.int64)
        for head, piece in enumerate(pieces):
            mixed[label == head] = piece
        return pack(mixed, self.sizes, self.batch)


def bootstrap_weights(
    head: NDArray[np.integer], members: list[int], n_structures: int, index: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return how often each member drew each structure, [K,S]: sampling with replacement within each source.

    head, index : source and catalogue index of the training structures [T]; others get 1.
    members : seed of each member.
    """
    out = np.ones((len(members), n_structures), np.float32)
    for k, seed in enumerate(members):
        for source in np.unique(head):
            own = index[head == source]
            rng = np.random.default_rng([seed, 3, int(source)])
            out[k, own] = np.bincount(rng.integers(len(own), size=len(own)), minlength=len(own))
    return out
