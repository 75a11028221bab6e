"""The compiled neighbour list, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.errors import AtomSieveError
from atomsieve.graphs.limits import MAX_EDGES, MAX_NEIGHBORS_PER_ATOM, raise_graph_error
from atomsieve.native import kernels
from atomsieve.structures.batch import StructureBatch

_I64, _I32, _PTR, _F64 = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_double


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled library with its argument types declared, or None where it was not built."""
    lib = kernels()
    if lib is None or not hasattr(lib, "atomsieve_neighbors_build"):
        return None
    arrays: list[Any] = [_I64, _PTR, _PTR, _PTR, _PTR, _F64]
    lib.atomsieve_neighbors_build.argtypes = [*arrays, _I64, _I64, _I64, _I32, _PTR, _PTR, _PTR]
    lib.atomsieve_neighbors_build.restype = _I64
    lib.atomsieve_neighbors_fill.argtypes = [_PTR, _I32, _PTR, _PTR, _PTR, _PTR, _PTR, _PTR]
    lib.atomsieve_neighbors_fill.restype = _I64
    lib.atomsieve_neighbors_free.argtypes = [_PTR]
    lib.atomsieve_neighbors_free.restype = None
    lib.atomsieve_neighbors_count.argtypes = [*arrays, _I64, _I32, _PTR, _PTR]
    lib.atomsieve_neighbors_count.restype = _I64
    return lib


def _library() -> ctypes.CDLL:
    lib = library()
    if lib is None:
        raise AtomSieveError(
            "the compiled neighbour list is not available; reinstall with a C++ compiler at hand, "
            "or use implementation='torch'"
        )
    return lib


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _inputs(batch: StructureBatch) -> tuple[NDArray[Any], ...]:
    """Return ptr, positions, cell and pbc as the C++ code takes them (copied only where they differ)."""
    return (
        np.ascontiguousarray(batch.ptr, np.int64),
        np.ascontiguousarray(batch.positions, np.float64),
        np.ascontiguousarray(batch.cell, np.float64),
        np.ascontiguousarray(batch.pbc, np.bool_),
    )


def native_edges(
    batch: StructureBatch, cutoff: float, max_neighbors: int | None, vec_dtype: torch.dtype | None, threads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, bool]:
    """Return sender, receiver, shift, row_ptr, vec (float64, float32, or None if not asked for) and `complete`.

    Raises
    ------
    DataError
        naming the first structure that has no neighbour list: positions or a periodic cell that are not finite, a
        singular periodic cell, more than `MAX_NEIGHBORS_PER_ATOM` neighbours, or `MAX_EDGES` edges in all.
    """
    lib = _library()
    inputs = _inputs(batch)
    addresses = [_address(a) for a in inputs]
    handle, bad, dropped = ctypes.c_void_p(), ctypes.c_int64(), ctypes.c_int64()
    n_edges = lib.atomsieve_neighbors_build(
        batch.n_structures,
        *addresses,
        cutoff,
        max_neighbors or 0,
        MAX_NEIGHBORS_PER_ATOM,
        MAX_EDGES,
        threads,
        ctypes.byref(handle),
        ctypes.byref(bad),
        ctypes.byref(dropped),
    )
    if n_edges < 0:
        raise_graph_error(-n_edges, bad.value, batch, cutoff)
    try:
        sender, receiver = torch.empty(n_edges, dtype=torch.int64), torch.empty(n_edges, dtype=torch.int64)
        shift = torch.empty((n_edges, 3), dtype=torch.int32)
        row_ptr = torch.empty(batch.n_atoms + 1, dtype=torch.int64)
        vec = None if vec_dtype is None else torch.empty((n_edges, 3), dtype=vec_dtype)
        vec64 = vec.data_ptr() if vec is not None and vec_dtype == torch.float64 else None
        vec32 = vec.data_ptr() if vec is not None and vec_dtype == torch.float32 else None
        fault = lib.atomsieve_neighbors_fill(
            handle, threads, sender.data_ptr(), receiver.data_ptr(), shift.data_ptr(), row_ptr.data_ptr(), vec64, vec32
        )
        if fault:
            raise_graph_error(-fault, -1, batch, cutoff)
    finally:
        lib.atomsieve_neighbors_free(handle)
    return sender, receiver, shift, row_ptr, vec, dropped.value == 0


def native_count(batch: StructureBatch, cutoff: float, threads: int) -> NDArray[np.int64]:
    """Return the number of edges of each structure [S]; raises as `native_edges` does."""
    lib = _library()
    inputs = _inputs(batch)
    edges = np.zeros(batch.n_structures, np.int64)
    bad = ctypes.c_int64()
    total = lib.atomsieve_neighbors_count(
        batch.n_structures,
        *(_address(a) for a in inputs),
        cutoff,
        MAX_NEIGHBORS_PER_ATOM,
        threads,
        _address(edges),
        ctypes.byref(bad),
    )
    if total < 0:
        raise_graph_error(-total, bad.value, batch, cutoff)
    return edges
