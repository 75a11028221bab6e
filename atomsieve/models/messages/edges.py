"""Messages with one row per edge, as plain tensor operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atomsieve.models.messages.layout import Layout
from atomsieve.models.messages.tensors import second_order


def direction(unit: Tensor, order: int) -> Tensor:
    """Return `Y_l` of directions `[...,3]`: the directions themselves for order 1, `[...,5]` for order 2."""
    return unit if order == 1 else second_order(unit)


def edge_messages(sent: Tensor, filters: Sequence[Tensor], unit: Tensor, layout: Layout) -> Tensor:
    """Return the messages along edges `[K,E,C_out,F]` of the senders' payload `[K,E,C_in,F]` and filters `[K,E,F]`."""
    found = []
    for order in layout.orders:
        carried, pushed = layout.of_order(order)
        total = None
        if carried is not None:
            end = carried.start + carried.size
            total = filters[carried.filter].unsqueeze(2) * sent[:, :, carried.start : end]
        if pushed is not None:
            scalar = (filters[pushed.filter] * sent[:, :, pushed.start]).unsqueeze(2)
            along = scalar * direction(unit, order).unsqueeze(3)
            total = along if total is None else total + along
        assert total is not None
        found.append(total)
    return torch.cat(found, dim=2)
