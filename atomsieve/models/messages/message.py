"""The message of a stack of members: filter(distance) x sender; one operation, three implementations.

`message(x, basis, unit, weights, graph, layout=...)` maps node payloads to the sums of messages that atoms receive. A
`Layout` says which groups of components a message has (`atomsieve.models.messages.layout` has the formulas and the
order of components); each group l has its own filter of edge e (sender j, receiver i):

    w_l = basis[e] @ weights_l
    out_l[i] = sum_e w_l * p_l[j]                 carried
    out_l[i] = sum_e w_l * p[j] * Y_l(unit[e])    pushed

The default is PaiNN (Schuett et al., ICML 2021, eqs. 7 and 8):

    ds[i] = sum_e w_s * p_s[j]
    dv[i] = sum_e w_a * q[j] + (w_b * p_b[j]) (x) unit[e]

with `x [K,N,5,F]` = (p_s, p_b, q_x, q_y, q_z), `weights [K,R,3F]` and the result `[K,N,4,F]` = (ds, dv_x, dv_y, dv_z).
K members, N atoms, E edges, F channels, R radial functions; `basis [K,E,R]`, `unit [K,E,3]`.
"""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atomsieve.graphs.graph import EdgeGraph, Graph
from atomsieve.graphs.table import TableGraph
from atomsieve.models.basis import Geometry
from atomsieve.models.encoder import Wanted
from atomsieve.models.messages.buffers import SUFFIX, call_kernel, layout_compiled, new_messages
from atomsieve.models.messages.edges import edge_messages
from atomsieve.models.messages.layout import NAMED_LAYOUTS, PAINN, Layout
from atomsieve.models.messages.table import message_on_table_graph
from atomsieve.native import kernels

log = logging.getLogger(__name__)

LANES = 16
"""Channels must fill whole vectors of the compiled kernels."""


def message(
    x: Tensor,
    basis: Tensor,
    unit: Tensor,
    weights: Tensor,
    graph: EdgeGraph,
    implementation: str = "auto",
    wanted: Wanted | None = None,
    layout: Layout = PAINN,
) -> Tensor:
    """Return the sum of the messages that each atom receives, `[K,N,C_out,F]` (see the head of this module).

    x : [K,N,C_in,F], weights : [K,R,G*F], with the components and filters of `layout`.
    wanted : the gradients that backward passes compute; may be changed between passes.
    implementation : "native" (compiled, CPU, complete lists), "triton" (fused, GPU, once differentiable), "edges" (any
        list, any device), or "auto": the first that serves.

    Raises ValueError where payload or weights do not fit the layout, or an implementation cannot serve.
    """
    _check_sizes(x, weights, layout)
    if isinstance(graph, TableGraph):
        return message_on_table_graph(x, basis, unit, weights, graph, layout)
    assert isinstance(graph, Graph)
    if implementation == "auto":
        implementation = "native" if native_serves(x, graph, layout) else "edges"
        if implementation == "edges" and triton_serves(x, wanted or Wanted()):
            implementation = "triton"
            if not (wanted or Wanted()).parameters:  # which it does not give
                weights = weights.detach()
    if implementation == "native" and not graph.neighbors.symmetric:
        raise ValueError("the native message needs a complete neighbour list; use 'edges' on a truncated one")
    if implementation == "native":
        if not layout_compiled(layout):
            raise ValueError(f"no compiled kernels for messages with {layout}; use 'edges', or 'auto'")
        return _Native.apply(x, basis, unit, weights, graph, wanted or Wanted(), layout)
    if implementation == "triton":
        from atomsieve.models.messages.triton_message import message_on_gpu

        return message_on_gpu(x, basis, unit, weights, graph, layout)
    if implementation == "edges":
        return message_on_edges(x, basis, unit, weights, graph, layout)
    raise ValueError(f"unknown message implementation {implementation!r}; allowed: auto, native, triton, edges")


def receive(
    x: Tensor,
    geometry: Geometry,
    weights: Tensor,
    graph: EdgeGraph,
    layout: Layout = PAINN,
    wanted: Wanted | None = None,
) -> Tensor:
    """Return `message` along the edges of a geometry; for an encoder, the fastest way that what is wanted allows.

    Where only energies and forces are wanted, compiled kernels give the gradient by distance (`geometry.stretch`)
    instead of one for each radial function.
    """
    wanted = wanted or Wanted()
    if isinstance(graph, Graph) and not is_learning(wanted) and native_serves(x, graph, layout):
        _check_sizes(x, weights, layout)
        return _NativeForces.apply(x, geometry.unit, geometry.stretch, weights.detach(), geometry, graph, layout)
    return message(x, geometry.basis, geometry.unit, weights, graph, wanted=wanted, layout=layout)


def is_learning(wanted: Wanted) -> bool:
    """Return whether a backward pass may need gradients of weights, or second derivatives."""
    return wanted.twice or (wanted.parameters and torch.is_grad_enabled())


def _check_sizes(x: Tensor, weights: Tensor, layout: Layout) -> None:
    components, width, columns = x.shape[2], x.shape[3], weights.shape[2]
    if components != layout.inputs:
        raise ValueError(f"payload of {components} components; the layout {layout} takes {layout.inputs}: [K,N,C_in,F]")
    if columns != layout.filters * width:
        wanted = f"{layout.filters} filters of {width} channels: {layout.filters * width}"
        raise ValueError(f"filter weights of {columns} columns; the layout {layout} takes {wanted}")


def native_serves(x: Tensor, graph: Graph, layout: Layout = PAINN) -> bool:
    """Return whether the compiled kernels can be used; of a layout or width that they lack, the log says so once."""
    if x.device.type != "cpu" or x.dtype not in SUFFIX or not graph.neighbors.symmetric or kernels() is None:
        return False
    if not layout_compiled(layout):
        say_once(
            f"no compiled kernels for messages with {layout}: general path; served: {_name_compiled_layouts()} "
            "(atomsieve/native/message_layout.h lists them; rebuild after adding one)"
        )
        return False
    if x.shape[-1] % LANES:
        say_once(
            f"messages of {x.shape[-1]} channels take the general path; compiled kernels serve multiples of {LANES}"
        )
        return False
    return True


@functools.cache
def say_once(text: str) -> None:
    """Log a line the first time that it is given."""
    log.info(text)


def _name_compiled_layouts() -> str:
    return "; ".join(str(layout) for layout in NAMED_LAYOUTS if layout_compiled(layout))


def triton_serves(x: Tensor, wanted: Wanted) -> bool:
    """Return whether the fused GPU kernels can be used: for inference, where Triton is installed."""
    served = x.device.type == "cuda" and x.dtype in SUFFIX
    return served and not is_learning(wanted) and find_spec("triton") is not None


def message_on_edges(
    x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph, layout: Layout = PAINN
) -> Tensor:
    """Compute the message with one row per edge: any list, any device, differentiable any number of times."""
    members, atoms, _, width = x.shape
    filters = torch.bmm(basis, weights).split(width, dim=-1)  # [K,E,F] each
    sent = x.index_select(1, graph.neighbors.sender)  # [K,E,C_in,F]
    out = x.new_zeros(members, atoms, layout.outputs, width)
    return out.index_add(1, graph.neighbors.receiver, edge_messages(sent, filters, unit, layout))


def _sum_messages(x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph, layout: Layout) -> Tensor:
    """Return the messages that the compiled kernel sums; `x` and `weights` are contiguous."""
    out = new_messages(x, layout)
    call_kernel("forward", x, basis, unit, weights, graph, out, layout=layout)
    return out


class _Native(torch.autograd.Function):
    """The compiled message; its backward is `_NativeGrad`, so that losses on forces can be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        basis: Tensor,
        unit: Tensor,
        weights: Tensor,
        graph: Graph,
        wanted: Wanted,
        layout: Layout,
    ) -> Tensor:
        x, weights = x.contiguous(), weights.contiguous()
        ctx.graph, ctx.wanted, ctx.layout = graph, wanted, layout
        ctx.save_for_backward(x, basis, unit, weights)
        return _sum_messages(x, basis, unit, weights, graph, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted, needs, directed = ctx.wanted, ctx.needs_input_grad, bool(ctx.layout.pushed)
        need = (wanted.geometry and needs[1], wanted.geometry and needs[2] and directed, wanted.parameters and needs[3])
        grads = _NativeGrad.apply(grad, *ctx.saved_tensors, ctx.graph, wanted, ctx.layout, *need)
        return (*grads, None, None, None)


class _NativeGrad(torch.autograd.Function):
    """Gradients of the message with respect to x, basis, unit and weights, differentiable once more.

    The second derivative is taken for gradients of a loss on energies, forces and stresses with respect to parameters;
    it does not reach back to the geometry (Hessians go through the "edges" implementation).
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        x: Tensor,
        basis: Tensor,
        unit: Tensor,
        weights: Tensor,
        graph: Graph,
        wanted: Wanted,
        layout: Layout,
        need_basis: bool,
        need_unit: bool,
        need_weights: bool,
    ) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous()
        ctx.graph, ctx.wanted, ctx.layout, ctx.weights_given = graph, wanted, layout, need_weights
        ctx.save_for_backward(grad, x, basis, unit, weights)
        grad_x = torch.empty_like(x)
        grad_basis = torch.empty(basis.shape, dtype=x.dtype) if need_basis else None
        grad_unit = torch.empty(unit.shape, dtype=x.dtype) if need_unit else None
        grad_weights = torch.empty_like(weights) if need_weights else None
        found = (grad_x, grad_basis, grad_unit, grad_weights)
        call_kernel("vjp", x, basis, unit, weights, graph, grad, *found, layout=layout)
        return found

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, h_x: Tensor, h_basis: Tensor | None, h_unit: Tensor | None, h_weights: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if ctx.wanted.geometry or ctx.weights_given:
            raise RuntimeError(
                "the compiled message gives second derivatives of geometry with respect to parameters only: set "
                "wanted.parameters = False for the first backward and wanted.geometry = False for the second, "
                "or take implementation='edges'"
            )
        grad, x, basis, unit, weights = ctx.saved_tensors
        h_x = h_x.contiguous()
        h_basis = torch.zeros(basis.shape, dtype=x.dtype) if h_basis is None else h_basis.contiguous()
        h_unit = torch.zeros(unit.shape, dtype=x.dtype) if h_unit is None else h_unit.contiguous()
        out_grad, out_x, out_weights = torch.empty_like(grad), torch.empty_like(x), torch.empty_like(weights)
        more = (grad, h_x, h_basis, h_unit, out_grad, out_x, out_weights)
        call_kernel("second", x, basis, unit, weights, ctx.graph, *more, layout=ctx.layout)
        return out_grad, out_x, None, None, out_weights, *(None,) * 6


class _NativeForces(torch.autograd.Function):
    """The compiled message for inference; differentiable once, by payload, direction and distance."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        unit: Tensor,
        stretch: Tensor,
        weights: Tensor,
        geometry: Geometry,
        graph: Graph,
        layout: Layout,
    ) -> Tensor:
        x, weights = x.contiguous(), weights.contiguous()
        ctx.geometry, ctx.graph, ctx.layout = geometry, graph, layout
        ctx.save_for_backward(x, unit, weights)
        return _sum_messages(x, geometry.basis.detach(), unit, weights, graph, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, unit, weights = ctx.saved_tensors
        basis, rates = ctx.geometry.basis.detach(), ctx.geometry.slope.contiguous()
        grad_x, grad_stretch = torch.empty_like(x), x.new_empty(x.shape[0], ctx.graph.n_edges)
        grad_unit = x.new_empty(unit.shape) if ctx.layout.pushed else None
        found = (grad_x, grad_stretch, grad_unit)
        call_kernel("pull", x, basis, unit, weights, ctx.graph, rates, grad.contiguous(), *found, layout=ctx.layout)
        return grad_x, grad_unit, grad_stretch, *(None,) * 4
