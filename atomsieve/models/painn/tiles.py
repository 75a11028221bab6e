"""Pairs of edges in tiles of four, as the compiled steps that train PaiNN take them (`native/painn_tiles.h`)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atomsieve.graphs.graph import Graph
from atomsieve.models.basis import Geometry
from atomsieve.models.messages.buffers import SUFFIX
from atomsieve.native import kernels


class _Tiles(ctypes.Structure):
    """`tiles::Tiles` of the native sources."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("members", "atoms", "edges", "width", "radial", "structures")),
        *((name, ctypes.c_void_p) for name in ("first", "atom", "near", "edge", "basis", "slope", "unit")),
    ]


class Tiles:
    """The tiles of a complete list, and the calls that go through them.

    Every pair of an edge and its reverse comes once; gradients by edges stand at the one whose sender comes later.
    """

    def __init__(self, graph: Graph, geometry: Geometry, members: int, width: int) -> None:
        """Make the tiles for K = `members` stacks of F = `width` channels; the geometry must be that of `Geometry`."""
        basis, unit = (t.detach()[0].contiguous() for t in (geometry.basis, geometry.unit))
        slope, list_ = geometry.slope.detach().contiguous(), graph.neighbors
        self.dtype, radial = basis.dtype, basis.shape[1]
        first = torch.empty(graph.n_structures + 1, dtype=torch.int64)
        count = find("count_tiles", None, 1, 4)
        of_list = list_.row_ptr.data_ptr(), list_.sender.data_ptr()
        n = count(graph.n_structures, graph.ptr.data_ptr(), *of_list, first.data_ptr())
        atom, near, edge = (torch.empty(n, k, dtype=torch.int64) for k in (1, 4, 4))
        many = [basis.new_empty(n, k, 4) for k in (radial, radial, 3)]
        call("fill_tiles", self.dtype, (graph.n_atoms, radial), *of_list, basis, slope, unit, atom, near, edge, *many)
        self._kept = (first, atom, near, edge, *many)
        sizes = members, graph.n_atoms, graph.n_edges, width, radial, graph.n_structures
        self._tiles = _Tiles(*sizes, *(t.data_ptr() for t in self._kept))
        self.n_edges, self.sizes = graph.n_edges, (members, graph.n_atoms, width)
        self._address = ctypes.addressof(self._tiles)

    def __call__(self, name: str, first: bool, *arrays: Tensor | None) -> None:
        """Call a step over all pairs; `first`: of a layer that has no vectors yet."""
        find(f"pairs_{name}", self.dtype, 0, 2 + len(arrays))(self._address, int(first), *_addresses(arrays))


def call(name: str, dtype: torch.dtype, sizes: tuple[int, ...], *arrays: Tensor | int | None) -> None:
    """Call a compiled step of PaiNN with sizes and arrays (contiguous; None: a null pointer)."""
    find(name, dtype, len(sizes), len(arrays))(*sizes, *_addresses(arrays))


def call_part(name: str, dtype: torch.dtype, sizes: tuple[int, ...], *arrays: Tensor | None) -> None:
    """Call a compiled part of a layer, whose arrays are given as one list of pointers."""
    addresses = _addresses(arrays)
    listed = (ctypes.c_void_p * len(addresses))(*addresses)
    find(f"part_{name}", dtype, len(sizes), 1)(*sizes, ctypes.addressof(listed))


def _addresses(arrays: tuple[Tensor | int | None, ...]) -> list[int | None]:
    assert all(t is None or isinstance(t, int) or t.is_contiguous() for t in arrays)
    return [t.data_ptr() if isinstance(t, Tensor) else t for t in arrays]


@functools.cache
def find(name: str, dtype: torch.dtype | None, numbers: int, pointers: int) -> Callable[..., Any]:
    """Return a compiled step of so many whole numbers, then pointers (of `pairs_`: a pointer, a number, pointers)."""
    function = getattr(kernels(), f"painn_{name}" + (f"_{SUFFIX[dtype]}" if dtype else ""))
    kinds = [ctypes.c_int64] * numbers + [ctypes.c_void_p] * pointers
    if name.startswith("pairs_"):
        kinds[1] = ctypes.c_int64
    function.argtypes, function.restype = kinds, None if dtype else ctypes.c_int64
    found: Callable[..., Any] = function
    return found
