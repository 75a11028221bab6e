"""The message on a padded neighbour table, forward and backward as plain tensor operations without any scatter.

The operation is that of `atomsieve.models.messages.message`. Here it is written for export: traced once with its
backward, it becomes part of one graph that needs no autograd.

On a symmetric table the basis of an edge equals that of its reverse, and its unit vector is the opposite one: Y_1
changes its sign, Y_2 does not. So the transpose of "gather from the neighbours and sum" is the same gather with the
same table, and the gradient by a pair's distance and direction needs only values that both of its rows gather anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atomsieve.graphs.table import PairedEdges, TableGraph
from atomsieve.models.messages.edges import direction, edge_messages
from atomsieve.models.messages.layout import PAINN, Layout
from atomsieve.models.messages.moments import PairedMoments
from atomsieve.models.messages.tensors import pull_second_order


def message_on_table_graph(
    x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: TableGraph, layout: Layout = PAINN
) -> Tensor:
    """Return the sum of messages of each atom, `[K,N,C_out,F]`; arguments as for `message`, with E = N*W."""
    if graph.paired is not None:
        edges = graph.paired
        if graph.moments:
            return PairedMoments.apply(
                x, edges.distance, edges.unit, edges.basis, edges.slope, weights, graph.neighbors, layout
            )
        return _Paired.apply(
            x, edges.distance, edges.unit, edges.basis, edges.slope, weights, graph.neighbors, graph.inline, layout
        )
    members, atoms, _, width = x.shape
    places = graph.neighbors.shape[1]
    near = graph.senders(x)
    filters = [torch.bmm(basis, part) for part in weights.split(width, dim=2)]
    messages = edge_messages(near, filters, unit, layout)
    return messages.view(members, atoms, places, layout.outputs, width).sum(2)


def _force_store(t: Tensor, dim: int) -> Tensor:
    """Return t put together of two parts: a compiler then stores it, where it would else compute it for each reader."""
    size = t.shape[dim]
    if size < 2:
        return t
    return torch.cat([t.narrow(dim, 0, size // 2), t.narrow(dim, size // 2, size - size // 2)], dim)


def _filters(radial: Tensor, weights: Tensor, width: int, inline: bool) -> tuple[Tensor, ...]:
    """Return the filters `[K,N,W,F]` from radial functions `[N,W,R]` and weights `[K,R,G*F]`."""
    atoms, places, count = radial.shape
    parts = weights.split(width, dim=2)
    if inline:
        spread = radial.unsqueeze(2).unsqueeze(0)
        return tuple((spread * w.transpose(1, 2).unsqueeze(1).unsqueeze(1)).sum(4) for w in parts)
    flat = radial.reshape(1, atoms * places, count).expand(weights.shape[0], -1, -1)
    return tuple(torch.bmm(flat, w).view(weights.shape[0], atoms, places, width) for w in parts)


def _by_distance(gradients: tuple[Tensor, ...], slope: Tensor, weights: Tensor, inline: bool) -> Tensor:
    """Turn gradients by the filters `[K,N,W,F]` into those by distance `[K,N,W]`."""
    members, atoms, places, width = gradients[0].shape
    if inline:
        turned = _filters(slope, weights, width, inline)
        return sum(t * g for t, g in zip(turned, gradients, strict=True)).sum(3)  # type: ignore[union-attr]
    by_basis = sum(
        torch.bmm(g.reshape(members, atoms * places, width), w.transpose(1, 2))
        for g, w in zip(gradients, weights.split(width, dim=2), strict=True)
    )
    return (by_basis.view(members, atoms, places, slope.shape[2]) * slope).sum(3)  # type: ignore[union-attr]


def _total(parts: list[Tensor]) -> Tensor:
    """Return the sum of tensors, from the first on."""
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found


def _axes(unit: Tensor, order: int) -> list[Tensor]:
    """Return the components of `Y_l`, `[1,N,W,1]` each, of directions `[K,N,W,3]` that members share."""
    return [t.unsqueeze(3) for t in direction(unit[:1], order).unbind(3)]


class _Paired(torch.autograd.Function):
    """Message on a symmetric table; gradients by distance and unit are those of pairs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        distance: Tensor,
        unit: Tensor,
        basis: Tensor,
        slope: Tensor,
        weights: Tensor,
        neighbors: Tensor,
        inline: bool,
        layout: Layout,
    ) -> Tensor:
        ctx.save_for_backward(x, unit, basis, slope, weights, neighbors)
        ctx.inline, ctx.layout = inline, layout
        members, atoms, inputs, width = x.shape
        near = x.index_select(1, neighbors.reshape(-1)).view(members, atoms, neighbors.shape[1], inputs, width)
        filters = _filters(basis, weights, width, inline)
        received = []
        for order in layout.orders:
            carried, pushed = layout.of_order(order)
            if pushed is not None:
                scalar = filters[pushed.filter] * near[:, :, :, pushed.start]
                along = _axes(unit, order)
            for k in range(2 * order + 1):
                parts = []
                if carried is not None:
                    parts.append(filters[carried.filter] * near[:, :, :, carried.start + k])
                if pushed is not None:
                    parts.append(scalar * along[k])
                received.append(_total(parts).sum(2))
        return torch.stack(received, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, unit, basis, slope, weights, neighbors = ctx.saved_tensors
        layout: Layout = ctx.layout
        members, atoms, _, width = x.shape
        places, flat = neighbors.shape[1], neighbors.reshape(-1)
        grad = _force_store(grad, 2)
        near = x.index_select(1, flat).view(members, atoms, places, layout.inputs, width).unbind(3)
        far = grad.index_select(1, flat).view(members, atoms, places, layout.outputs, width).unbind(3)
        own, here = x.unsqueeze(2).unbind(3), grad.unsqueeze(2).unbind(3)
        filters = _filters(basis, weights, width, ctx.inline)
        grad_x: list[Tensor] = [x] * layout.inputs
        by_filters, by_unit = [], []
        for group in layout.groups:
            w, into, start = filters[group.filter], group.into, group.start
            components = range(group.size)
            if not group.pushed:
                for k in components:
                    grad_x[start + k] = (w * far[into + k]).sum(2)
                found = here[into] * near[start] + far[into] * own[start]
                for k in components[1:]:
                    found = found + here[into + k] * near[start + k] + far[into + k] * own[start + k]
                by_filters.append(found)
                continue
            along = _axes(unit, group.order)
            along_far = _total([far[into + k] * along[k] for k in components])
            along_here = _total([here[into + k] * along[k] for k in components])
            sent = (w * along_far).sum(2)
            reverse, odd = along_far * own[start], group.sign < 0
            grad_x[start] = -sent if odd else sent
            by_filters.append(along_here * near[start] - reverse if odd else along_here * near[start] + reverse)
            turned = []
            for k in components:
                near_k, own_k = here[into + k] * near[start], far[into + k] * own[start]
                turned.append((w * (near_k - own_k if odd else near_k + own_k)).sum(3))
            found = torch.stack(turned, 3)
            by_unit.append(found if group.order == 1 else pull_second_order(unit[:1], found))
        by_distance = _by_distance(tuple(by_filters), slope, weights, ctx.inline)
        none = (None,) * 6
        return torch.stack(grad_x, 2), by_distance, _total(by_unit) if by_unit else None, *none


def make_paired_edges(distance: Tensor, unit: Tensor, basis: Tensor, slope: Tensor, members: int) -> PairedEdges:
    """Return leaves and constants of a symmetric table: `distance [N,W]`, `unit [N,W,3]`, `basis`, `slope` [N,W,R]."""
    many = torch.zeros_like(distance).expand(members, *distance.shape).detach().requires_grad_()
    directed = unit.expand(members, *unit.shape).detach().requires_grad_()
    return PairedEdges(many, directed, basis, slope)
