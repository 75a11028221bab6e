"""Arrays as compiled kernels take them: addresses, strides over members, and the call of a kernel of the message."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from atomsieve.graphs.graph import Graph
from atomsieve.models.messages.layout import PAINN, Layout
from atomsieve.native import kernels

SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
"""Ending of the names of compiled kernels, by the dtype that they work in."""


def pointer(t: Tensor | None) -> ctypes.c_void_p:
    """Return where the data of a tensor lies, null for None."""
    return ctypes.c_void_p(t.data_ptr() if t is not None else None)


def new_messages(x: Tensor, layout: Layout) -> Tensor:
    """Return room `[K,N,C_out,F]`, not yet filled, for the messages of a payload `x [K,N,C_in,F]`."""
    members, atoms, _, width = x.shape
    return x.new_empty(members, atoms, layout.outputs, width)


def edge_data(t: Tensor) -> tuple[Tensor, int]:
    """Return edge data and its stride over members: 0 where all members share one array."""
    if t.shape[0] > 1 and t.stride(0) == 0 and t[0].is_contiguous():
        return t, 0
    t = t.contiguous()
    return t, t.stride(0) if t.shape[0] > 1 else 0


def call_kernel(
    name: str,
    x: Tensor,
    basis: Tensor,
    unit: Tensor,
    weights: Tensor,
    graph: Graph,
    *rest: Tensor | None,
    layout: Layout = PAINN,
) -> None:
    """Call a compiled kernel of the message: "forward", "vjp", "pull" or "second", with its further arrays `rest`."""
    library = kernels()
    assert library is not None
    kind, code = ("message", ()) if layout == PAINN else ("layout", (layout.code,))
    function = getattr(library, f"{kind}_{name}_{SUFFIX[x.dtype]}")
    members, atoms, _, width = x.shape
    sizes = (*code, members, atoms, graph.n_edges, width, basis.shape[-1])
    a, a_stride = edge_data(basis)
    u, u_stride = edge_data(unit)
    list_ = graph.neighbors
    function(
        *(ctypes.c_int64(n) for n in sizes),
        pointer(list_.row_ptr),
        pointer(list_.sender),
        pointer(x),
        pointer(a),
        ctypes.c_int64(a_stride),
        pointer(u),
        ctypes.c_int64(u_stride),
        pointer(weights),
        *(pointer(t) for t in rest),
    )


@functools.cache
def layout_compiled(layout: Layout) -> bool:
    """Return whether the compiled kernels, if there are any, have this layout."""
    library = kernels()
    if library is None:
        return False
    asked = getattr(library, "layout_serves", None)  # missing from builds of earlier versions
    return layout == PAINN or (asked is not None and bool(asked(ctypes.c_int64(layout.code))))
