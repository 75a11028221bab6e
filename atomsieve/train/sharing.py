"""Hidden units that all heads have in common.

Potential energy surfaces at two levels of theory are nearly one surface: E_h = E_common + E_own,h. A head is a sum over
hidden units, so a part of them can be common to all heads: their weights start alike (`ensemble.alike_heads`) and get
the sum of the heads' gradients, and an optimiser that works on each number by itself then keeps them alike. What is
trained is an ordinary readout: nothing that opens the ensemble later has to know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from atomsieve.errors import UsageError
from atomsieve.models.readout import PooledReadout, Readout
from atomsieve.train.data.label_scales import HeadData


class CommonUnits:
    """Ties the first `units` hidden units of the heads of a readout; with `units` 0 it does nothing.

    Raises
    ------
    UsageError
        if the heads have no such units: those of encoders whose heads read sums over atoms.
    """

    def __init__(self, readout: Readout | PooledReadout, units: int) -> None:
        self.tied: list[tuple[torch.nn.Parameter, int]] = []
        if not units:
            return
        if isinstance(readout, PooledReadout):
            raise UsageError(
                "ensemble.common_units is for heads that read atoms; the heads of this encoder read sums over atoms: "
                "set it to 0"
            )
        self.units = units
        # the axis of the hidden units: [K,H,F,units], [K,H,1,units], [K,H,units,1], [K,H,units,F]
        self.tied = [(readout.hidden_weight, 3), (readout.hidden_bias, 3), (readout.out_weight, 2)]
        if readout.gate_weight is not None:
            self.tied.append((readout.gate_weight, 2))

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Give the common weights of every head the sum of the gradients of all heads."""
        for parameter, axis in self.tied:
            if parameter.grad is not None:
                common: Tensor = parameter.grad.narrow(axis, 0, self.units)
                common.copy_(common.sum(1, keepdim=True).expand_as(common))


def take_one_scale(heads: Sequence[HeadData]) -> list[HeadData]:
    """Return heads with one output scale, the geometric mean of theirs, so that common units say one energy in all."""
    scale = math.exp(sum(math.log(head.output_scale) for head in heads) / len(heads))
    return [replace(head, output_scale=scale) for head in heads]
