"""The message on a symmetric table as few matrix products of each atom: for runtimes that fuse nothing.

The filters of `atomsieve.models.messages.message` are linear in the radial basis, so the sum over neighbours can come
first: of moments `Q_rf = sum_j B_jr x_jf` of an atom, `sum_j (B W)_jf x_jf = sum_r W_rf Q_rf`. Neither filters nor any
other array of N*W*F numbers is formed, but for the gathered payload; where one operation runs after the other, that
saves most of the memory traffic.

Symmetry is used as in `atomsieve.models.messages.table`. Shapes: K members, N atoms, W places, R radial functions, F
features; D is the number of components of one order, C that of all carried groups together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atomsieve.models.messages.edges import direction
from atomsieve.models.messages.layout import Group, Layout
from atomsieve.models.messages.tensors import pull_second_order


class PairedMoments(torch.autograd.Function):
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
        layout: Layout,
    ) -> Tensor:
        """Return the sum of messages of each atom, `[K,N,C_out,F]`; arguments as for `message`."""
        ctx.save_for_backward(x, unit, basis, slope, weights, neighbors)
        ctx.layout = layout
        members, atoms, _, width = x.shape
        places, radial = basis.shape[1:]
        many = members * atoms
        carried, pushed = _split(layout)
        found: dict[Group, Tensor] = {}
        if carried:
            moments = torch.bmm(_basis_rows(basis, members), _gather(_carried_payload(x, layout), neighbors))
            moments = moments.view(members, atoms, radial, _count(carried), width)  # of no atoms too: sizes are stated
            received, place = (moments * _direct(weights, layout, width)).sum(2), 0
            for group in carried:
                found[group] = received[:, :, place : place + group.size]
                place += group.size
        for group in pushed:
            along = direction(unit[0], group.order)  # [N,W,D]
            directed = (along.transpose(1, 2).unsqueeze(2) * basis.transpose(1, 2).unsqueeze(1)).reshape(
                atoms, group.size * radial, places
            )
            near = _take(x[:, :, group.start], neighbors).view(many, places, width)
            moments = torch.bmm(_each(directed, members), near).view(members, atoms, group.size, radial, width)
            found[group] = (moments * _push(weights, group, width)).sum(3)
        received_by_order = []
        for order in layout.orders:
            own, push = (found.get(group) if group else None for group in layout.of_order(order))
            received_by_order.append(push if own is None else own if push is None else own + push)
        return torch.cat([t for t in received_by_order if t is not None], 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients by x, distance and unit."""
        x, unit, basis, slope, weights, neighbors = ctx.saved_tensors
        layout: Layout = ctx.layout
        members, atoms, _, width = x.shape
        places, radial = basis.shape[1:]
        many = members * atoms
        carried, pushed = _split(layout)
        grad_x: dict[Group, Tensor] = {}
        by_distance, by_unit = [], []
        rows = _basis_rows(basis, members)
        of_order = {order: _of_order(grad, layout, order) for order in layout.orders}
        far = {order: _gather(part, neighbors) for order, part in of_order.items()}  # [K*N,W,D*F]

        # Gradients by the basis: features are summed in products with the gradient at the atom itself, times weights.
        if carried:
            direct, own, place = _direct(weights, layout, width), _carried_payload(x, layout), 0
            carried_grad = _join([of_order[group.order] for group in carried], 2)
            here = (carried_grad.unsqueeze(2) * direct).view(many, radial, _count(carried) * width).transpose(1, 2)
            there = (own.unsqueeze(2) * direct).view(many, radial, _count(carried) * width)
            by_basis = torch.bmm(_gather(own, neighbors), here)
            for group in carried:
                moments = torch.bmm(rows, far[group.order]).view(members, atoms, radial, group.size, width)
                grad_x[group] = (moments * direct[:, :, :, place : place + group.size]).sum(2)
                first, last = place * width, (place + group.size) * width
                by_basis = by_basis + torch.bmm(far[group.order], there[:, :, first:last].transpose(1, 2))
                place += group.size
            by_distance.append((by_basis.view(members, atoms, places, radial) * slope).sum(3))
        for group in pushed:
            push, along = _push(weights, group, width), direction(unit[:1], group.order)
            spread = far[group.order].view(many, places * group.size, width)
            directed = (basis.transpose(1, 2).unsqueeze(3) * along[0].unsqueeze(1)).reshape(
                atoms, radial, places * group.size
            )
            moments = torch.bmm(_each(directed, members), spread).view(members, atoms, radial, width)
            sent = (moments * push.squeeze(1)).sum(2, keepdim=True)
            grad_x[group] = -sent if group.sign < 0 else sent
            along_here = (
                (of_order[group.order].unsqueeze(3) * push).view(many, group.size * radial, width).transpose(1, 2)
            )
            scalar = x[:, :, group.start : group.start + 1]
            along_there = (scalar * push.squeeze(1)).view(many, radial, width).transpose(1, 2)
            near = _take(x[:, :, group.start], neighbors).view(many, places, width)
            shape = (members, atoms, places, group.size, radial)
            reverse = torch.bmm(spread, along_there).view(shape)
            both = torch.bmm(near, along_here).view(shape)
            both = both - reverse if group.sign < 0 else both + reverse
            turned = (both * basis.unsqueeze(2)).sum(4)
            by_unit.append(turned if group.order == 1 else pull_second_order(unit[:1], turned))
            by_distance.append(((both * slope.unsqueeze(2)).sum(4) * along).sum(3))
        by_payload = [grad_x[group] for group in sorted(layout.groups, key=lambda group: group.start)]
        none = (None,) * 5
        return _join(by_payload, 2), _add(by_distance), _add(by_unit) if by_unit else None, *none


def _count(groups: Sequence[Group]) -> int:
    """Return the number of components of some groups."""
    return sum(group.size for group in groups)


def _split(layout: Layout) -> tuple[list[Group], list[Group]]:
    """Return the carried and the pushed groups."""
    return [g for g in layout.groups if not g.pushed], [g for g in layout.groups if g.pushed]


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _add(parts: list[Tensor]) -> Tensor:
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found


def _carried_payload(x: Tensor, layout: Layout) -> Tensor:
    """Return the payload of the carried groups, `[K,N,C,F]`."""
    return _join([x[:, :, g.start : g.start + g.size] for g in _split(layout)[0]], 2)


def _of_order(grad: Tensor, layout: Layout, order: int) -> Tensor:
    """Return the components of one order of the result, `[K,N,D,F]`."""
    (group, *_) = [g for g in layout.groups if g.order == order]
    return grad[:, :, group.into : group.into + group.size]


def _take(values: Tensor, neighbors: Tensor) -> Tensor:
    """Return rows of `[K,N,...]` by the table: `[K,N*W,...]`."""
    return values.index_select(1, neighbors.reshape(-1))


def _gather(values: Tensor, neighbors: Tensor) -> Tensor:
    """Return `[K,N,D,F]` of the neighbours, `[K*N,W,D*F]`."""
    members, atoms, components, width = values.shape
    laid = values.reshape(members, atoms, components * width)
    return _take(laid, neighbors).view(members * atoms, neighbors.shape[1], components * width)


def _each(values: Tensor, members: int) -> Tensor:
    """Repeat `[N,...]` for each member: `[K*N,...]`."""
    return values.expand(members, *values.shape).reshape(members * values.shape[0], *values.shape[1:])


def _basis_rows(basis: Tensor, members: int) -> Tensor:
    return _each(basis.transpose(1, 2), members)


def _direct(weights: Tensor, layout: Layout, width: int) -> Tensor:
    """Return the weights of each component of the carried groups, `[K,1,R,C,F]`."""
    parts = weights.split(width, dim=2)
    return torch.stack([parts[g.filter] for g in _split(layout)[0] for _ in range(g.size)], 2).unsqueeze(1)


def _push(weights: Tensor, group: Group, width: int) -> Tensor:
    """Return the weights of a pushed group, `[K,1,1,R,F]`."""
    return weights.split(width, dim=2)[group.filter].unsqueeze(1).unsqueeze(1)
