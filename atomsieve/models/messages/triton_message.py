"""Messages on a GPU: sizes and pointers are set up here, and `atomsieve.models.messages.triton_kernels` computes.

With TRITON_INTERPRET=1 the same kernels run on the CPU, slowly: that is how they are tested.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from atomsieve.graphs.graph import Graph
from atomsieve.models.messages.buffers import edge_data, new_messages
from atomsieve.models.messages.layout import PAINN, Layout
from atomsieve.models.messages.tensors import pull_second_order, second_order
from atomsieve.models.messages.triton_kernels import edge_gradients, forward, payload_gradients


def message_on_gpu(
    x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph, layout: Layout = PAINN
) -> Tensor:
    """Compute the message with fused kernels; any list, any layout. Differentiable once, by x, basis and unit.

    On a complete list the payload's gradient uses that an edge and its reverse have the same basis and opposite
    directions; on a truncated one the edges are sorted by sender first.
    """
    out: Tensor = _Fused.apply(x, basis, unit, weights, graph, layout)
    return out


def _constants(x: Tensor, basis: Tensor, layout: Layout) -> dict[str, Any]:
    """Return the constants of kernels: sizes, groups, and where components and filters of groups begin."""
    width, radial = x.shape[-1], basis.shape[-1]
    found: dict[str, Any] = {
        "F": width,
        "R": radial,
        "LANES": triton.next_power_of_2(width),
        "RADIAL": max(triton.next_power_of_2(radial), 2),
        "X": layout.inputs,
        "W": layout.filters,
        "Y": layout.outputs,
    }
    for order in (0, 1, 2):
        carried, pushed = layout.of_order(order)
        for letter, group in (("C", carried), ("P", pushed)):
            if (order, letter) == (0, "P"):
                continue
            found[f"{letter}{order}"] = group is not None
            if (order, letter) != (0, "C"):
                found[f"X_{letter}{order}"] = group.start if group else 0
                found[f"W_{letter}{order}"] = group.filter if group else 0
        if order:
            found[f"Y_{order}"] = next((g.into for g in (carried, pushed) if g), 0)
    return found


def _by_sender(graph: Graph) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return, of edges grouped by sender: far atom [E], edge [E], pointer [N+1], and whether mirrored ones serve."""
    found = graph.neighbors
    if found.symmetric:
        return found.sender, found.sender, found.row_ptr, True
    edge = torch.argsort(found.sender, stable=True)
    col_ptr = torch.zeros_like(found.row_ptr)
    torch.cumsum(torch.bincount(found.sender, minlength=graph.n_atoms), 0, out=col_ptr[1:])
    return found.receiver[edge], edge, col_ptr, False


def _second_orders(unit: Tensor, layout: Layout) -> tuple[Tensor, int]:
    """Return `Y_2` of the directions and its stride over members; the directions themselves if nothing needs it."""
    if not layout.has(2, pushed=True):
        return unit, 0
    shared = unit.shape[0] > 1 and unit.stride(0) == 0
    found = second_order(unit[:1] if shared else unit).contiguous()
    return found, 0 if shared or len(found) == 1 else found.stride(0)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph, layout: Layout
    ) -> Tensor:
        x, weights = x.contiguous(), weights.contiguous()
        (basis, b_stride), (unit, u_stride) = edge_data(basis), edge_data(unit)
        second, s_stride = _second_orders(unit, layout)
        ctx.save_for_backward(x, basis, unit, second, weights)
        ctx.graph, ctx.layout, ctx.strides = graph, layout, (b_stride, u_stride, s_stride)
        members, atoms = x.shape[:2]
        out = new_messages(x, layout)
        if atoms:
            list_, constants = graph.neighbors, _constants(x, basis, layout)
            given = (x, basis, unit, second, weights, list_.sender, list_.row_ptr, out, *ctx.strides, atoms)
            with torch.cuda.device_of(x):  # Triton launches on the current device
                forward[(atoms, members)](*given, **constants)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[3]:
            raise RuntimeError("the fused message gives no gradients of weights; train with implementation='edges'")
        x, basis, unit, second, weights = ctx.saved_tensors
        graph, layout, list_ = ctx.graph, ctx.layout, ctx.graph.neighbors
        grad = grad.contiguous()
        members, atoms = x.shape[:2]
        grad_x = torch.empty_like(x)
        shape, last = unit.shape, (5 if layout.has(2, pushed=True) else 0)
        grad_basis = x.new_empty(basis.shape)
        grad_unit, grad_second = (x.new_zeros(*shape[:2], n) for n in (3, last))
        if atoms:
            constants = _constants(x, basis, layout)
            far, edge, col_ptr, mirrored = _by_sender(graph)
            given = (grad, x, basis, unit, second, weights, list_.sender, list_.row_ptr)
            found = (grad_basis, grad_unit, grad_second)
            sent = (grad, basis, unit, second, weights, far, edge, col_ptr, grad_x)
            with torch.cuda.device_of(x):
                edge_gradients[(atoms, members)](*given, *found, *ctx.strides, atoms, graph.n_edges, **constants)
                payload_gradients[(atoms, members)](*sent, *ctx.strides, atoms, **constants, MIRRORED=mirrored)
        if last:
            grad_unit = grad_unit + pull_second_order(unit, grad_second)
        return grad_x, grad_basis, grad_unit if layout.pushed else None, None, None, None
