"""What the candidates share: directions of rank two, filters, and the counting of multiply-adds."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import Encoder
from atomsieve.models.layers import Seeds, StackedMLP

EPSILON = 1e-6
RANK_TWO = torch.tensor(
    [
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 1, 0]],
        [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
        [[1, 0, 0], [0, -1, 0], [0, 0, 0]],
        [[-1, 0, 0], [0, -1, 0], [0, 0, 2]],
    ],
    dtype=torch.float64,
) / torch.tensor([2.0, 2.0, 2.0, 2.0, 6.0], dtype=torch.float64).sqrt().view(5, 1, 1)
"""[5,3,3]: orthonormal symmetric matrices without a trace; components of rank two are those along them."""
TABLE = 4
"""Multiply-adds of one value of a cubic table, in the place of a filter network that runs on every edge."""


class Cost(NamedTuple):
    """Multiply-adds of one evaluation of the energies: per directed edge and per atom.

    Attributes
    ----------
    products : per atom, those inside matrix products, for the check against a counter.
    """

    edge: float
    atom: float
    products: float


class Candidate(Encoder[Geometry]):
    """An encoder of the probe: it counts its own cost."""

    force_kinds: ClassVar[tuple[str, ...]] = ("conservative",)

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the multiply-adds that a compiled version has to do."""
        raise NotImplementedError


def directions(unit: Tensor) -> Tensor:
    """Return the rank-two directions `[K,E,5]` of unit vectors `[K,E,3]`: u u - 1/3, scaled to length 1."""
    x, y, z = unit.unbind(2)
    root = math.sqrt(3.0)
    return torch.stack(
        [root * x * y, root * y * z, root * x * z, 0.5 * root * (x * x - y * y), z * z - 0.5 * (x * x + y * y)], 2
    )


def matrices(t: Tensor) -> Tensor:
    """Return components of rank two `[K,N,5,G]` as matrices `[K,N,9,G]`."""
    return torch.matmul(RANK_TWO.to(t).view(5, 9).t(), t)


def apply_matrices(t: Tensor, v: Tensor) -> Tensor:
    """Multiply vectors `v [K,N,3,G]` by the matrices of `t [K,N,5,G]`, channel by channel."""
    members, atoms, _, width = t.shape
    m = matrices(t).view(members, atoms, 3, 3, width)
    return (m * v.unsqueeze(2)).sum(3)


def map_rows(linear: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear map to the channels of `[K,N,C,F]`."""
    members, atoms, components, width = x.shape
    found: Tensor = linear(x.reshape(members, atoms * components, width))
    return found.view(members, atoms, components, found.shape[2])


def mean_square_norm(x: Tensor, gain: Tensor) -> Tensor:
    """Divide rows `[K,N,F]` by their root mean square; `gain [K,1,F]`."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-4) * gain


class LinearFilter(nn.Module):
    """Filters linear in the radial basis, whose last column is the cutoff."""

    def __init__(self, config: ModelConfig, outputs: int, seeds: Seeds, neighbours: float = 1.0) -> None:
        """Draw the weights; messages are taken to add up at random over `neighbours` x the typical number."""
        super().__init__()
        radial = config.n_basis + 1
        # The bound of Glorot, as of PaiNN's filters here.
        bound = math.sqrt(6.0 / (radial + config.hidden)) / math.sqrt(neighbours * config.typical_neighbors / 3.0)
        self.weight = seeds.uniform(radial, outputs, bound=bound)

    def forward(self, basis: Tensor) -> Tensor:
        """Return `[K,E,outputs]`."""
        return torch.bmm(basis, self.weight)

    @staticmethod
    def cost(config: ModelConfig, outputs: int) -> float:
        """Return multiply-adds per edge."""
        return (config.n_basis + 1) * outputs


class NetworkFilter(nn.Module):
    """Filters by a network of the radial basis times the cutoff; a compiled version tabulates them."""

    def __init__(self, config: ModelConfig, outputs: int, seeds: Seeds, hidden: int = 32) -> None:
        super().__init__()
        self.network = StackedMLP(config.n_basis + 1, hidden, outputs, seeds)
        self.scale = 1.0 / math.sqrt(config.typical_neighbors / 3.0)

    def forward(self, basis: Tensor) -> Tensor:
        """Return `[K,E,outputs]`."""
        found: Tensor = self.network(basis) * (basis[:, :, -1:] * self.scale)
        return found

    @staticmethod
    def cost(config: ModelConfig, outputs: int) -> float:
        """Return multiply-adds per edge."""
        return TABLE * outputs
