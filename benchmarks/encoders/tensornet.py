"""TensorNet (Simeon and De Fabritiis, NeurIPS 2023) over irreducible components: 1 scalar, 3 and 5 of a 3 x 3 matrix.

A matrix X = I + A + S is kept by its components along an orthonormal basis, so that its Frobenius norm is the sum of
their squares. Filters are linear in the radial basis (`probe_tensornet`) or networks of it (`probe_tensornet_network`);
norms are divided by their root mean square, without subtracting a mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atomsieve.graphs.graph import EdgeGraph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.elements import element_embedding
from atomsieve.models.encoder import Wanted
from atomsieve.models.layers import Seeds, StackedLinear, StackedMLP
from encoders.common import (
    RANK_TWO,
    Candidate,
    Cost,
    LinearFilter,
    NetworkFilter,
    directions,
    map_rows,
    mean_square_norm,
)

PARTS = (1, 3, 5)
_TURN = torch.tensor(
    [
        [[0, 0, 0], [0, 0, 1], [0, -1, 0]],
        [[0, 0, -1], [0, 0, 0], [1, 0, 0]],
        [[0, 1, 0], [-1, 0, 0], [0, 0, 0]],
    ],
    dtype=torch.float64,
) / math.sqrt(2.0)
FRAME = torch.cat(
    [torch.eye(3, dtype=torch.float64).view(1, 9) / math.sqrt(3.0), _TURN.view(3, 9), RANK_TWO.view(5, 9)]
)
"""[9,9], orthogonal: rows are the matrices along which components are taken."""


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """Return x y + y x of matrices `[K,N,9,F]`, channel by channel."""
    shape = (*x.shape[:2], 3, 3, x.shape[3])
    x, y = x.view(shape), y.view(shape)
    out = torch.zeros(())
    for k in range(3):
        out = out + x[:, :, :, k : k + 1] * y[:, :, k : k + 1] + y[:, :, :, k : k + 1] * x[:, :, k : k + 1]
    return out.flatten(2, 3)


def square(x: Tensor) -> Tensor:
    """Return x x."""
    return 0.5 * multiply(x, x)


class Maps(nn.Module):
    """A linear map of the channels of each part."""

    def __init__(self, width: int, seeds: Seeds) -> None:
        super().__init__()
        self.maps = nn.ModuleList(StackedLinear(width, width, seeds, bias=False) for _ in PARTS)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K,N,9,F]`."""
        return torch.cat([map_rows(m, part) for m, part in zip(self.maps, x.split(PARTS, 2), strict=True)], 2)


def by_part(x: Tensor) -> Tensor:
    """Repeat factors of the parts `[K,M,3F]` for their components: `[K,M,9,F]`."""
    x = x.view(*x.shape[:2], 3, x.shape[2] // 3)
    return torch.cat([x[:, :, k : k + 1].expand(-1, -1, n, -1) for k, n in enumerate(PARTS)], 2)


class TensorNet(Candidate):
    """TensorNet with filters linear in the basis."""

    name = "probe_tensornet"
    filter: type[LinearFilter] | type[NetworkFilter] = LinearFilter

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__(config, seeds)
        width = config.hidden
        self.species = element_embedding(width, seeds)
        self.pair = StackedLinear(width, 2 * width, seeds)
        self.filters = self.filter(config, 3 * width, seeds)
        self.gain = nn.Parameter(torch.ones(len(seeds), 1, width))
        self.scale = StackedMLP(width, 2 * width, 3 * width, seeds)
        self.start = Maps(width, seeds)
        self.layers = nn.ModuleList(TensorLayer(config, seeds, self.filter) for _ in range(config.layers))
        self.out_gain = nn.Parameter(torch.ones(len(seeds), 1, 3 * width))
        self.out = StackedLinear(4 * width, width, seeds)

    def forward(
        self, graph: EdgeGraph, geometry: Geometry, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, None]:
        """Return scalars `[K,N,F]`, and vectors or None."""
        z = self.species.index_select(1, graph.numbers)
        if condition is not None:
            z = z + condition
        here, there = self.pair(z).chunk(2, dim=-1)
        weights = self.filters(geometry.basis)
        pair = (graph.receivers(here) + graph.senders(there)).repeat(1, 1, 3) * weights
        i, a, s = pair.chunk(3, dim=-1)
        unit, five = geometry.unit, directions(geometry.unit)
        x = graph.sum_edges(
            torch.cat(
                [
                    i.unsqueeze(2),
                    a.unsqueeze(2) * unit.unsqueeze(3),
                    s.unsqueeze(2) * five.unsqueeze(3),
                ],
                2,
            )
        )
        norm = mean_square_norm((x * x).sum(2), self.gain)
        x = self.start(x) * by_part(nn.functional.silu(self.scale(norm)))
        for layer in self.layers:
            x = layer(x, geometry, graph)
        parts = torch.cat([(p * p).sum(2) for p in x.split(PARTS, 2)], -1)
        read = torch.cat([mean_square_norm(parts, self.out_gain), z], -1)  # z: lone atoms differ by their element
        return nn.functional.silu(self.out(read)), None

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds."""
        f, n = config.hidden, config.layers
        # Embedding: two payloads (own and sent) and the pushes of rank 0, 1, 2; a layer: 9 components times a filter.
        start = cls.filter.cost(config, 3 * f) + 3 * f + 9 * f
        edge = start + n * (cls.filter.cost(config, 3 * f) + 9 * f)
        products = f * f * (2 + 2 + 6 + 9 + n * 18 + 4)
        return Cost(edge, products + n * (81 * 4 + 54 * 2) * f, products)


class TensorLayer(nn.Module):
    """Normalise, map, receive, multiply with what the atom is, map, and add with its square."""

    def __init__(self, config: ModelConfig, seeds: Seeds, filters: type[LinearFilter] | type[NetworkFilter]) -> None:
        super().__init__()
        self.filters = filters(config, 3 * config.hidden, seeds)
        self.before, self.after = Maps(config.hidden, seeds), Maps(config.hidden, seeds)

    def forward(self, x: Tensor, geometry: Geometry, graph: EdgeGraph) -> Tensor:
        """Return new components `[K,N,9,F]`."""
        frame = FRAME.to(x)
        x = x / ((x * x).sum(2, keepdim=True) + 1)
        y = self.before(x)
        sent = graph.senders(y)
        w = self.filters(geometry.basis).unflatten(2, (3, 1, x.shape[3]))
        m = graph.sum_edges(torch.cat([w[:, :, k] * part for k, part in enumerate(sent.split(PARTS, 2))], 2))
        product = torch.matmul(frame, multiply(torch.matmul(frame.t(), y), torch.matmul(frame.t(), m)))
        product = product / ((product * product).sum(2, keepdim=True) + 1)
        d = self.after(product)
        return x + d + torch.matmul(frame, square(torch.matmul(frame.t(), d)))


class NetworkTensorNet(TensorNet):
    """TensorNet with filters by a network."""

    name = "probe_tensornet_network"
    filter = NetworkFilter
