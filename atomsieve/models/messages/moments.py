"""The PaiNN message on a symmetric table as few matrix products of each atom: for runtimes that fuse nothing.

The filters of `atomsieve.models.messages.message` are linear in the radial basis, so the sum over neighbours can come
first: of moments `Q_rf = sum_j B_jr x_jf` of an atom, `sum_j (B W)_jf x_jf = sum_r W_rf Q_rf`. Neither filters nor any
other array of N*W*F numbers is formed, but for the gathered payload; where one operation runs after the other, that
saves most of the memory traffic.

Symmetry is used as in `atomsieve.models.messages.table`. Shapes: K members, N atoms, W places, R radial functions, F
features; x holds a scalar payload s, a payload p along edges, and vectors v.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
    ) -> Tensor:
        """Return the sum of messages of each atom, `[K,N,4,F]`; arguments as for `message`."""
        ctx.save_for_backward(x, unit, basis, slope, weights, neighbors)
        members, atoms, _, width = x.shape
        places, radial = basis.shape[1:]
        many = members * atoms
        direct, push = _by_part(weights, width)
        moments = torch.bmm(_basis_rows(basis, members), _gather_carried(x, neighbors))
        received = (moments.view(members, atoms, radial, 4, width) * direct).sum(2)
        directed = (unit[0].transpose(1, 2).unsqueeze(2) * basis.transpose(1, 2).unsqueeze(1)).reshape(
            atoms, 3 * radial, places
        )
        moments = torch.bmm(_each(directed, members), _take(x[:, :, 1], neighbors).view(many, places, width))
        pushed = (moments.view(members, atoms, 3, radial, width) * push).sum(3)
        return torch.cat([received[:, :, :1], received[:, :, 1:] + pushed], 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients by x, distance and unit."""
        x, unit, basis, slope, weights, neighbors = ctx.saved_tensors
        members, atoms, _, width = x.shape
        places, radial = basis.shape[1:]
        many = members * atoms
        direct, push = _by_part(weights, width)
        own = torch.cat([x[:, :, :1], x[:, :, 2:]], 2)
        near, near_p = _gather_carried(x, neighbors), _take(x[:, :, 1], neighbors).view(many, places, width)
        far_s = _take(grad[:, :, 0], neighbors).view(many, places, width)
        far_v = _take(grad[:, :, 1:].reshape(members, atoms, 3 * width), neighbors)
        rows = _basis_rows(basis, members)

        moments = torch.bmm(rows, far_s).view(members, atoms, radial, 1, width)
        grad_s = (moments * direct[:, :, :, :1]).sum(2)
        moments = torch.bmm(rows, far_v.view(many, places, 3 * width)).view(members, atoms, radial, 3, width)
        grad_v = (moments * direct[:, :, :, 1:]).sum(2)
        far_v = far_v.view(many, places * 3, width)
        directed = (basis.transpose(1, 2).unsqueeze(3) * unit[0].unsqueeze(1)).reshape(atoms, radial, places * 3)
        moments = torch.bmm(_each(directed, members), far_v).view(members, atoms, radial, width)
        grad_p = -(moments * push.squeeze(1)).sum(2, keepdim=True)

        # Gradients by the basis: features are summed in products with the gradient at the atom itself, times weights.
        here = (grad.unsqueeze(2) * direct).view(many, radial, 4 * width).transpose(1, 2)
        there = (own.unsqueeze(2) * direct).view(many, radial, 4 * width)
        by_basis = torch.bmm(near, here)
        by_basis = by_basis + torch.bmm(far_s, there[:, :, :width].transpose(1, 2))
        by_basis = by_basis + torch.bmm(far_v.view(many, places, 3 * width), there[:, :, width:].transpose(1, 2))
        along_here = (grad[:, :, 1:].unsqueeze(3) * push).view(many, 3 * radial, width).transpose(1, 2)
        along_there = (x[:, :, 1:2] * push.squeeze(1)).view(many, radial, width).transpose(1, 2)
        difference = torch.bmm(near_p, along_here).view(members, atoms, places, 3, radial)
        difference = difference - torch.bmm(far_v, along_there).view(members, atoms, places, 3, radial)
        by_unit = (difference * basis.unsqueeze(2)).sum(4)
        by_length = (difference * slope.unsqueeze(2)).sum(4)
        by_distance = (by_basis.view(members, atoms, places, radial) * slope).sum(3) + (by_length * unit[:1]).sum(3)
        return torch.cat([grad_s, grad_p, grad_v], 2), by_distance, by_unit, None, None, None, None


def _take(values: Tensor, neighbors: Tensor) -> Tensor:
    """Return rows of `[K,N,...]` by the table: `[K,N*W,...]`."""
    return values.index_select(1, neighbors.reshape(-1))


def _gather_carried(x: Tensor, neighbors: Tensor) -> Tensor:
    """Return s and v of the neighbours, `[K*N,W,4*F]`."""
    members, atoms, _, width = x.shape
    carried = torch.cat([x[:, :, :1], x[:, :, 2:]], 2).view(members, atoms, 4 * width)
    return _take(carried, neighbors).view(members * atoms, neighbors.shape[1], 4 * width)


def _each(values: Tensor, members: int) -> Tensor:
    """Repeat `[N,...]` for each member: `[K*N,...]`."""
    return values.expand(members, *values.shape).reshape(members * values.shape[0], *values.shape[1:])


def _basis_rows(basis: Tensor, members: int) -> Tensor:
    return _each(basis.transpose(1, 2), members)


def _by_part(weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the weights of s and v, `[K,1,R,4,F]`, and those of p, `[K,1,1,R,F]`, from `[K,R,3F]`."""
    s, a, b = weights.split(width, dim=2)
    return torch.stack([s, a, a, a], 2).unsqueeze(1), b.unsqueeze(1).unsqueeze(1)
