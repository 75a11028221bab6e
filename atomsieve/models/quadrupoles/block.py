"""Quadrupoles of an atom's neighbours, and their products with its own vectors: angles, at little cost per edge."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atomsieve.graphs.graph import EdgeGraph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import Wanted
from atomsieve.models.layers import Seeds, StackedLinear, StackedMLP
from atomsieve.models.messages.layout import QUADRUPOLES
from atomsieve.models.messages.message import message
from atomsieve.models.messages.tensors import make_matrices

_EPSILON = 1e-6  # keeps the gradient of the norm finite where an atom has no quadrupole


class QuadrupoleBlock(nn.Module):
    """Receive quadrupoles, contract them with the atom's own vectors, and update.

    With G channels of rank two, sender j, receiver i, direction u:

        T_i = sum over j of w(d) p_j (u u - 1/3)      p = s @ payload, [N,5,G]
        y = v @ narrow; t = T y                       channel by channel
        m, g = MLP([s, |T|, y.t])
        s += m; v += (g t) @ widen

    `T:T` is a sum over pairs of neighbours of Legendre polynomials of degree 2 of their angle, `y.t` one over triples.
    They are moments of an atom contracted with each other (Shapeev, Multiscale Model. Simul. 14, 1153, 2016): many-body
    terms without any cost per edge beyond the moments.
    """

    def __init__(self, config: ModelConfig, channels: int, seeds: Seeds, *, last: bool) -> None:
        """Draw the parameters; after the `last` block nothing reads vectors, unless forces are direct."""
        super().__init__()
        width, radial = config.hidden, config.n_basis + 1
        self.payload = StackedLinear(width, channels, seeds)
        # As PaiNN's filters; |u u - 1/3| is sqrt(2/3), a direction has length 1.
        bound = math.sqrt(1.5) * math.sqrt(6.0 / (radial + width)) / math.sqrt(config.typical_neighbors / 3.0)
        self.filters = seeds.uniform(radial, channels, bound=bound)
        self.narrow = StackedLinear(width, channels, seeds, bias=False)
        turns = not last or config.forces == "direct"
        self.update = StackedMLP(width + 2 * channels, width, width + (channels if turns else 0), seeds)
        self.widen = StackedLinear(channels, width, seeds, bias=False) if turns else None

    def forward(
        self, s: Tensor, v: Tensor, graph: EdgeGraph, geometry: Geometry, wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        """Return new scalars `[K,N,F]` and vectors `[K,N,3,F]`."""
        payload = self.payload(s).unsqueeze(2)
        received = message(
            payload, geometry.basis, geometry.unit, self.filters, graph, wanted=wanted, layout=QUADRUPOLES
        )
        own = _map_rows(self.narrow, v)
        turned = (_make_matrices(received) * own.unsqueeze(2)).sum(3)
        norm = torch.sqrt((received * received).sum(2) + _EPSILON)
        found = self.update(torch.cat([s, norm, (turned * own).sum(2)], dim=-1))
        if self.widen is None:
            return s + found, v
        width = s.shape[2]
        gate = found[:, :, width:].unsqueeze(2)
        return s + found[:, :, :width], v + _map_rows(self.widen, gate * turned)


def _make_matrices(components: Tensor) -> Tensor:
    """Return symmetric traceless matrices `[K,N,3,3,G]` of their components `[K,N,5,G]`: one matrix product."""
    frame = make_matrices(None, None, torch.eye(5, dtype=components.dtype, device=components.device))
    return torch.matmul(frame.flatten(0, 1), components).unflatten(2, (3, 3))


def _map_rows(linear: StackedLinear, x: Tensor) -> Tensor:
    """Apply a linear map to the channels of `[K,N,C,F]`."""
    members, atoms, components, width = x.shape
    found: Tensor = linear(x.reshape(members, atoms * components, width))
    return found.view(members, atoms, components, found.shape[2])
