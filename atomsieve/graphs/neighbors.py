"""Neighbour lists and graphs of a batch of structures, by whichever implementation fits the device."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.errors import UsageError, unknown
from atomsieve.graphs import native
from atomsieve.graphs.graph import Graph, NeighborList
from atomsieve.graphs.limits import refuse_long_vectors
from atomsieve.structures.batch import StructureBatch

IMPLEMENTATIONS: tuple[str, ...] = ("native", "torch", "nvalchemi", "brute")
"""Ways to find neighbours; all give the same arrays up to rounding at the cutoff."""


class _Edges(NamedTuple):
    sender: Tensor
    receiver: Tensor
    shift: Tensor
    row_ptr: Tensor
    vec: Tensor | None
    complete: bool


@functools.cache
def _have_nvalchemi() -> bool:
    return find_spec("nvalchemiops") is not None


def choose_implementation(implementation: str, device: torch.device) -> str:
    """Return the implementation that `auto` stands for on a device, or the given name once checked.

    Raises
    ------
    UsageError
        for an unknown name.
    """
    if implementation == "auto":
        if device.type == "cpu":
            return "native" if native.library() is not None else "torch"
        return "nvalchemi" if device.type == "cuda" and _have_nvalchemi() else "torch"
    if implementation not in IMPLEMENTATIONS:
        raise unknown("neighbour list implementation", implementation, (*IMPLEMENTATIONS, "auto"))
    return implementation


def _find(
    batch: StructureBatch,
    cutoff: float,
    max_neighbors: int | None,
    implementation: str,
    device: torch.device,
    vec_dtype: torch.dtype | None,
) -> _Edges:
    if not 0 < cutoff < float("inf"):
        raise UsageError(f"cutoff must be a positive number of Angstrom, got {cutoff}")
    if max_neighbors is not None and max_neighbors < 1:
        raise UsageError(f"max_neighbors must be at least 1, or None for all, got {max_neighbors}")
    chosen = choose_implementation(implementation, device)
    refuse_long_vectors(batch, cutoff)
    if chosen == "native":
        direct = None if vec_dtype is None else torch.float32 if vec_dtype == torch.float32 else torch.float64
        edges = _Edges(*native.native_edges(batch, cutoff, max_neighbors, direct, torch.get_num_threads()))
        if device.type == "cpu" and direct == vec_dtype:
            return edges  # the hot path: training builds many small batches
    else:
        edges = _tensor_edges(batch, cutoff, max_neighbors, chosen, device)
    sender, receiver, shift, row_ptr = (t.to(device) for t in edges[:4])
    vec = None if edges.vec is None or vec_dtype is None else edges.vec.to(device=device, dtype=vec_dtype)
    return _Edges(sender, receiver, shift, row_ptr, vec, edges.complete)


def _tensor_edges(
    batch: StructureBatch, cutoff: float, max_neighbors: int | None, implementation: str, device: torch.device
) -> _Edges:
    """Run an implementation that gives all edges in list order with vec in float64, then keep the nearest."""
    from atomsieve.graphs import torch_list

    if implementation == "torch":
        found = torch_list.torch_edges(batch, cutoff, device)
    elif implementation == "nvalchemi":
        from atomsieve.graphs.nvalchemi_list import nvalchemi_edges

        found = nvalchemi_edges(batch, cutoff, device)
    else:
        from atomsieve.graphs.brute import brute_edges

        found = torch_list.Found(*(torch.from_numpy(a) for a in brute_edges(batch, cutoff)))
    row_ptr = torch_list.row_pointer(found.receiver, batch.n_atoms)
    torch_list.check_counts(found.receiver, 0, batch, cutoff)
    complete = True
    if max_neighbors is not None:
        found, row_ptr, complete = torch_list.keep_nearest(found, row_ptr, max_neighbors)
    return _Edges(found.sender, found.receiver, found.shift.to(torch.int32), row_ptr, found.vec, complete)


def neighbor_list(
    batch: StructureBatch,
    cutoff: float,
    max_neighbors: int | None = None,
    implementation: str = "auto",
    device: torch.device | str = "cpu",
) -> NeighborList:
    """Return all edges shorter than `cutoff` (Angstrom), sorted by receiver, then sender, then shift.

    Positions are taken as given (not wrapped); cell vectors of directions without periodicity are ignored. Two atoms on
    one point have an edge of length zero. `max_neighbors` keeps the nearest per receiver; of neighbours equally far
    within 1e-8 Angstrom, those first in list order.

    `implementation` is "native" (C++, on the CPU), "torch" (any device), "nvalchemi" (CUDA, extra `cuda`), "brute"
    (slow and plain, for checks), or "auto": native on the CPU where compiled, nvalchemi on CUDA where installed, else
    torch. The result lies on `device`.

    Raises
    ------
    DataError
        naming the first structure without a neighbour list: positions or periodic cell not finite, periodic cell
        singular, or more than `limits.MAX_NEIGHBORS_PER_ATOM` neighbours; or more than `limits.MAX_EDGES` edges.
    UsageError
        for a cutoff, `max_neighbors` or implementation out of range.
    """
    edges = _find(batch, cutoff, max_neighbors, implementation, torch.device(device), None)
    return NeighborList(edges.sender, edges.receiver, edges.shift, edges.row_ptr, cutoff, edges.complete)


def build_graph(
    batch: StructureBatch,
    cutoff: float,
    *,
    max_neighbors: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    implementation: str = "auto",
) -> Graph:
    """Return the graph of a batch; `vec` is computed in float64 and rounded to `dtype` once.

    Parameters and errors: `neighbor_list`.
    """
    where = torch.device(device)
    edges = _find(batch, cutoff, max_neighbors, implementation, where, dtype)
    assert edges.vec is not None
    neighbors = NeighborList(edges.sender, edges.receiver, edges.shift, edges.row_ptr, cutoff, edges.complete)
    numbers = torch.from_numpy(batch.numbers.astype(np.int64))
    ptr = torch.from_numpy(np.array(batch.ptr, np.int64))
    structure = torch.from_numpy(np.arange(batch.n_structures).repeat(batch.ptr[1:] - batch.ptr[:-1]))
    if where.type != "cpu":
        numbers, ptr, structure = numbers.to(where), ptr.to(where), structure.to(where)
    return Graph(numbers, ptr, structure, edges.vec, neighbors)


def count_edges(batch: StructureBatch, cutoff: float, implementation: str = "auto") -> NDArray[np.int64]:
    """Return the exact number of edges of each structure [S]; errors as `neighbor_list`."""
    if choose_implementation(implementation, torch.device("cpu")) == "native":
        if not 0 < cutoff < float("inf"):
            raise UsageError(f"cutoff must be a positive number of Angstrom, got {cutoff}")
        refuse_long_vectors(batch, cutoff)
        return native.native_count(batch, cutoff, torch.get_num_threads())
    row_ptr = neighbor_list(batch, cutoff, implementation=implementation).row_ptr.numpy()
    return np.diff(row_ptr[batch.ptr])
