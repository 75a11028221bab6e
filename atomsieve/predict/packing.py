"""Batches within a budget of atoms and edges, and smaller ones where memory runs out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.devices import device_kind
from atomsieve.predict.interface import AnyPredictor

log = logging.getLogger(__name__)

BUDGETS = {"cpu": (4096, 250_000), "cuda": (100_000, 5_000_000)}
"""Default budget of a batch per kind of device: atoms, estimated directed edges."""
CACHED, LEAST = 2**19, 256
"""On a CPU a batch is fastest if the features of all members take about CACHED bytes: the arrays of a layer then stay
in the cache, and the overhead of a call is small (`benchmarks/speed/growth.py budgets`). No batch is below LEAST
atoms."""
PACKING_RULE = "sorted by estimated edges, atoms, position; filled to max_atoms and max_edges"


def usual_budget(predictor: AnyPredictor) -> tuple[int, int]:
    """Return atoms and estimated edges of a batch that is fast for a predictor, where memory is no constraint.

    It is the predictor's own where it has one (`Capabilities.budget`), else that of the kind of device.
    """
    return predictor.capabilities.budget or BUDGETS.get(device_kind(predictor.device), BUDGETS["cpu"])


def cache_sized_budget(bytes_per_atom: int) -> tuple[int, int]:
    """Return atoms and edges of a batch on a CPU whose features take `bytes_per_atom`; a power of two."""
    atoms, edges = BUDGETS["cpu"]
    own = min(atoms, max(LEAST, 1 << max(CACHED // max(bytes_per_atom, 1), 1).bit_length() - 1))
    return own, edges * own // atoms


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


STILL_FITS = 0.6
"""After a batch that did not fit, batches up to this share of its load are tried; its halves are just below it."""


@dataclass
class Limit:
    """The budget of a run's batches, and the part of it that was found to fit into memory.

    A batch above that part is halved before it is tried, as it would be after a failure, so that its results have the
    same bytes in both cases.

    Attributes
    ----------
    max_atoms, max_edges : budget of a batch.
    part : share of the budget that is still tried; 1 until a batch did not fit. failures : batches that did not fit.
    """

    max_atoms: int
    max_edges: int
    part: float = 1.0
    failures: int = 0

    def allows(self, atoms: float, edges: float) -> bool:
        """Return whether a batch may still be tried in one piece."""
        return self.failures == 0 or self._load(atoms, edges) <= self.part

    def lower(self, atoms: float, edges: float) -> None:
        """Lower the limit after a batch that did not fit."""
        self.failures += 1
        part = STILL_FITS * self._load(atoms, edges)
        if part < self.part:
            self.part = part
            log.warning("batches are held to %.0f %% of the budget from now on", 100 * part)

    def pieces(
        self, index: NDArray[np.int64], counts: NDArray[np.int64], edges: NDArray[np.float64]
    ) -> list[NDArray[np.int64]]:
        """Halve a batch until every piece may be tried; parameters as of `halved`."""
        if len(index) < 2 or self.allows(float(counts[index].sum()), float(edges[index].sum())):
            return [index]
        return [piece for half in np.array_split(index, 2) for piece in self.pieces(half, counts, edges)]

    def _load(self, atoms: float, edges: float) -> float:
        return float(max(atoms / self.max_atoms, edges / self.max_edges))


def run_halving_on_oom(
    compute: Callable[[NDArray[np.int64]], None],
    index: NDArray[np.int64],
    counts: NDArray[np.int64],
    edges: NDArray[np.float64] | None = None,
    limit: Limit | None = None,
) -> list[int]:
    """Call `compute(index)`, or with halves where memory runs out; return the structures that do not fit even alone.

    index : structures, of which each has `counts[structure]` atoms and about `edges[structure]` edges.
    limit : the limit of the run, lowered by every failure for all later batches.
    """
    atoms, pairs = float(counts[index].sum()), 0.0 if edges is None else float(edges[index].sum())
    if limit is None or len(index) < 2 or limit.allows(atoms, pairs):
        try:
            compute(index)
            return []
        except Exception as error:  # every kind: which class says "out of memory" depends on the backend
            if not is_out_of_memory(error):
                raise
            log.warning("out of memory with %d structures, %d atoms in a batch", len(index), atoms)
        # outside the handler, so that the traceback no longer holds the tensors
        release_memory()
        if limit is not None:
            limit.lower(atoms, pairs)
        if len(index) == 1:
            return index.tolist()
    return [k for half in np.array_split(index, 2) for k in run_halving_on_oom(compute, half, counts, edges, limit)]


NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Messages of torch on the CPU, and of a GPU library that finds no memory for its own workspace."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory, of the host or of the GPU, ran out."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def release_memory() -> None:
    """Release cached GPU memory before a smaller batch is tried."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
