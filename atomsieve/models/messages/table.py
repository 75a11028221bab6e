"""The PaiNN message on a padded neighbour table, forward and backward as plain tensor operations without any scatter.

The operation is that of `atomsieve.models.messages.message`. Here it is written for export: traced once with its
backward, it becomes part of one graph that needs no autograd.

On a symmetric table the basis of an edge equals that of its reverse, and its unit vector is the opposite one. So the
transpose of "gather from the neighbours and sum" is the same gather with the same table, and the gradient by a pair's
distance and direction needs only values that both of its rows gather anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atomsieve.graphs.table import PairedEdges, TableGraph
from atomsieve.models.messages.moments import PairedMoments


def message_on_table_graph(x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: TableGraph) -> Tensor:
    """Return the sum of messages of each atom, `[K,N,4,F]`; arguments as for `message`, with E = N*W."""
    if graph.paired is not None:
        edges = graph.paired
        if graph.moments:
            return PairedMoments.apply(
                x, edges.distance, edges.unit, edges.basis, edges.slope, weights, graph.neighbors
            )
        return _Paired.apply(
            x, edges.distance, edges.unit, edges.basis, edges.slope, weights, graph.neighbors, graph.inline
        )
    members, atoms, _, width = x.shape
    places = graph.neighbors.shape[1]
    near = graph.senders(x)
    w_s, w_a, w_b = (torch.bmm(basis, part) for part in weights.split(width, dim=2))
    ds = (w_s * near[:, :, 0]).unsqueeze(2)
    dv = w_a.unsqueeze(2) * near[:, :, 2:] + (w_b * near[:, :, 1]).unsqueeze(2) * unit.unsqueeze(3)
    return torch.cat([ds, dv], dim=2).view(members, atoms, places, 4, width).sum(2)


def _force_store(t: Tensor, dim: int) -> Tensor:
    """Return t put together of two parts: a compiler then stores it, where it would else compute it for each reader."""
    size = t.shape[dim]
    return torch.cat([t.narrow(dim, 0, size // 2), t.narrow(dim, size // 2, size - size // 2)], dim)


def _filters(radial: Tensor, weights: Tensor, width: int, inline: bool) -> tuple[Tensor, ...]:
    """Return three filters `[K,N,W,F]` from radial functions `[N,W,R]` and weights `[K,R,3F]`."""
    atoms, places, count = radial.shape
    parts = weights.split(width, dim=2)
    if inline:
        spread = radial.unsqueeze(2).unsqueeze(0)
        return tuple((spread * w.transpose(1, 2).unsqueeze(1).unsqueeze(1)).sum(4) for w in parts)
    flat = radial.reshape(1, atoms * places, count).expand(weights.shape[0], -1, -1)
    return tuple(torch.bmm(flat, w).view(weights.shape[0], atoms, places, width) for w in parts)


def _by_distance(gradients: tuple[Tensor, ...], slope: Tensor, weights: Tensor, inline: bool) -> Tensor:
    """Turn gradients by the three filters `[K,N,W,F]` into those by distance `[K,N,W]`."""
    members, atoms, places, width = gradients[0].shape
    if inline:
        turned = _filters(slope, weights, width, inline)
        return sum(t * g for t, g in zip(turned, gradients, strict=True)).sum(3)  # type: ignore[union-attr]
    by_basis = sum(
        torch.bmm(g.reshape(members, atoms * places, width), w.transpose(1, 2))
        for g, w in zip(gradients, weights.split(width, dim=2), strict=True)
    )
    return (by_basis.view(members, atoms, places, slope.shape[2]) * slope).sum(3)  # type: ignore[union-attr]


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
    ) -> Tensor:
        ctx.save_for_backward(x, unit, basis, slope, weights, neighbors)
        ctx.inline = inline
        members, atoms, _, width = x.shape
        near = x.index_select(1, neighbors.reshape(-1)).view(members, atoms, neighbors.shape[1], 5, width)
        w_s, w_a, w_b = _filters(basis, weights, width, inline)
        pushed = w_b * near[:, :, :, 1]
        received = [(w_s * near[:, :, :, 0]).sum(2)]
        for axis in range(3):
            along = unit[:1, :, :, axis].unsqueeze(3)
            received.append((w_a * near[:, :, :, 2 + axis] + pushed * along).sum(2))
        return torch.stack(received, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, unit, basis, slope, weights, neighbors = ctx.saved_tensors
        members, atoms, _, width = x.shape
        places, flat = neighbors.shape[1], neighbors.reshape(-1)
        grad = _force_store(grad, 2)
        near = x.index_select(1, flat).view(members, atoms, places, 5, width).unbind(3)
        far = grad.index_select(1, flat).view(members, atoms, places, 4, width).unbind(3)
        own, here = x.unsqueeze(2).unbind(3), grad.unsqueeze(2).unbind(3)
        along = [unit[:1, :, :, axis].unsqueeze(3) for axis in range(3)]
        w_s, w_a, w_b = _filters(basis, weights, width, ctx.inline)
        along_far = far[1] * along[0] + far[2] * along[1] + far[3] * along[2]
        along_here = here[1] * along[0] + here[2] * along[1] + here[3] * along[2]
        grad_x = [(w_s * far[0]).sum(2), -(w_b * along_far).sum(2), *((w_a * far[1 + k]).sum(2) for k in range(3))]
        by_s = here[0] * near[0] + far[0] * own[0]
        by_a = here[1] * near[2] + far[1] * own[2]
        for axis in (1, 2):
            by_a = by_a + here[1 + axis] * near[2 + axis] + far[1 + axis] * own[2 + axis]
        by_b = along_here * near[1] - along_far * own[1]
        by_distance = _by_distance((by_s, by_a, by_b), slope, weights, ctx.inline)
        by_unit = [(w_b * (here[1 + k] * near[1] - far[1 + k] * own[1])).sum(3) for k in range(3)]
        return torch.stack(grad_x, 2), by_distance, torch.stack(by_unit, 3), None, None, None, None, None


def make_paired_edges(distance: Tensor, unit: Tensor, basis: Tensor, slope: Tensor, members: int) -> PairedEdges:
    """Return leaves and constants of a symmetric table: `distance [N,W]`, `unit [N,W,3]`, `basis`, `slope` [N,W,R]."""
    many = torch.zeros_like(distance).expand(members, *distance.shape).detach().requires_grad_()
    directed = unit.expand(members, *unit.shape).detach().requires_grad_()
    return PairedEdges(many, directed, basis, slope)
