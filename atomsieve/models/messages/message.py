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

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atomsieve.graphs.graph import EdgeGraph, Graph
from atomsieve.graphs.table import TableGraph
from atomsieve.models.encoder import Wanted
from atomsieve.models.messages.buffers import SUFFIX, call_kernel
from atomsieve.models.messages.edges import edge_messages
from atomsieve.models.messages.layout import PAINN, Layout
from atomsieve.models.messages.table import message_on_table_graph
from atomsieve.native import kernels

_LANES = 16  # channels must fill whole vectors of the compiled kernels


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
        if implementation == "edges" and triton_serves(x, wanted or Wanted(), layout):
            implementation = "triton"
            if not (wanted or Wanted()).parameters:  # which it does not give
                weights = weights.detach()
    if implementation == "native" and not graph.neighbors.symmetric:
        raise ValueError("the native message needs a complete neighbour list; use 'edges' on a truncated one")
    if implementation == "native":
        return _Native.apply(x, basis, unit, weights, graph, wanted or Wanted())
    if implementation == "triton":
        from atomsieve.models.messages.triton_kernels import message_on_gpu

        return message_on_gpu(x, basis, unit, weights, graph)
    if implementation == "edges":
        return message_on_edges(x, basis, unit, weights, graph, layout)
    raise ValueError(f"unknown message implementation {implementation!r}; allowed: auto, native, triton, edges")


def _check_sizes(x: Tensor, weights: Tensor, layout: Layout) -> None:
    components, width, columns = x.shape[2], x.shape[3], weights.shape[2]
    if components != layout.inputs:
        raise ValueError(f"payload of {components} components; the layout {layout} takes {layout.inputs}: [K,N,C_in,F]")
    if columns != layout.filters * width:
        wanted = f"{layout.filters} filters of {width} channels: {layout.filters * width}"
        raise ValueError(f"filter weights of {columns} columns; the layout {layout} takes {wanted}")


def native_serves(x: Tensor, graph: Graph, layout: Layout = PAINN) -> bool:
    """Return whether the compiled kernels can be used for this payload, graph and layout."""
    return (
        layout == PAINN
        and x.device.type == "cpu"
        and x.dtype in SUFFIX
        and x.shape[-1] % _LANES == 0
        and graph.neighbors.symmetric
        and kernels() is not None
    )


def triton_serves(x: Tensor, wanted: Wanted, layout: Layout = PAINN) -> bool:
    """Return whether the fused GPU kernels can be used: for inference, where Triton is installed."""
    learning = wanted.twice or (wanted.parameters and torch.is_grad_enabled())
    served = layout == PAINN and x.device.type == "cuda" and x.dtype in SUFFIX
    return served and not learning and find_spec("triton") is not None


def message_on_edges(
    x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph, layout: Layout = PAINN
) -> Tensor:
    """Compute the message with one row per edge: any list, any device, differentiable any number of times."""
    members, atoms, _, width = x.shape
    filters = torch.bmm(basis, weights).split(width, dim=-1)  # [K,E,F] each
    sent = x.index_select(1, graph.neighbors.sender)  # [K,E,C_in,F]
    out = x.new_zeros(members, atoms, layout.outputs, width)
    return out.index_add(1, graph.neighbors.receiver, edge_messages(sent, filters, unit, layout))


class _Native(torch.autograd.Function):
    """The compiled message; its backward is `_NativeGrad`, so that losses on forces can be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph, wanted: Wanted
    ) -> Tensor:
        x, weights = x.contiguous(), weights.contiguous()
        ctx.graph, ctx.wanted = graph, wanted
        ctx.save_for_backward(x, basis, unit, weights)
        out = x.new_empty(x.shape[0], x.shape[1], 4, x.shape[3])
        call_kernel("forward", x, basis, unit, weights, graph, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted, needs = ctx.wanted, ctx.needs_input_grad
        need = (wanted.geometry and needs[1], wanted.geometry and needs[2], wanted.parameters and needs[3])
        grads = _NativeGrad.apply(grad, *ctx.saved_tensors, ctx.graph, wanted, *need)
        return (*grads, None, None)


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
        need_basis: bool,
        need_unit: bool,
        need_weights: bool,
    ) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous()
        ctx.graph, ctx.wanted, ctx.weights_given = graph, wanted, need_weights
        ctx.save_for_backward(grad, x, basis, unit, weights)
        grad_x = torch.empty_like(x)
        grad_basis = torch.empty(basis.shape, dtype=x.dtype) if need_basis else None
        grad_unit = torch.empty(unit.shape, dtype=x.dtype) if need_unit else None
        grad_weights = torch.empty_like(weights) if need_weights else None
        call_kernel("vjp", x, basis, unit, weights, graph, grad, grad_x, grad_basis, grad_unit, grad_weights)
        return grad_x, grad_basis, grad_unit, grad_weights

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
        call_kernel("second", x, basis, unit, weights, ctx.graph, *more)
        return out_grad, out_x, None, None, out_weights, None, None, None, None, None
