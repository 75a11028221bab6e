"""An encoder as somebody outside would write it: one file, found by an entry point, no line of the package changed.

A small invariant message-passing network (after Satorras, Hoogeboom and Welling, ICML 2021, eqs. 3, 5 and 6, without
moved coordinates): messages are multilayer perceptrons of both atoms and their distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from atomsieve.graphs.graph import EdgeGraph
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import Encoder, EncoderOptions, Wanted
from atomsieve.models.layers import Seeds, StackedLinear, StackedMLP


class ToyOptions(EncoderOptions):
    """Options of the encoder alone."""

    edge_hidden: int = Field(12, gt=0, description="hidden width of the messages")


@dataclass(frozen=True)
class ToyGeometry:
    """Edges by their vectors `vec [K,E,3]`, Gaussians of their lengths `basis [K,E,R]`, and the cutoff `[K,E,1]`."""

    vec: Tensor
    basis: Tensor
    cut: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Energies are differentiated by the edge vectors themselves."""
        return (self.vec,)

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the edge vectors, which it is already."""
        return gradient


class ToyLayer(nn.Module):
    """One message and one update."""

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__()
        width = config.hidden
        self.message = StackedMLP(2 * width + config.n_basis, config.options_of(ToyOptions).edge_hidden, width, seeds)
        self.update = StackedMLP(2 * width, width, width, seeds)

    def forward(self, s: Tensor, graph: EdgeGraph, edges: ToyGeometry) -> Tensor:
        sent = self.message(torch.cat([graph.receivers(s), graph.senders(s), edges.basis], -1)) * edges.cut
        return s + self.update(torch.cat([s, graph.sum_edges(sent)], -1))


class ToyEncoder(Encoder[ToyGeometry]):
    """Invariant network of edge messages; scalars only."""

    name = "toy"
    Config = ToyOptions
    bases = ("gaussian",)
    force_kinds = ("conservative",)

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__(config, seeds)
        self.embedding = seeds.uniform(119, config.hidden, bound=1.0)
        self.layers = nn.ModuleList(ToyLayer(config, seeds) for _ in range(config.layers))
        self.out = StackedLinear(config.hidden, config.hidden, seeds)

    def geometry(self, vec: Tensor, members: int, *, differentiable: bool) -> ToyGeometry:
        many = vec.detach().expand(members, *vec.shape)
        if differentiable:
            many.requires_grad_()
        d = torch.linalg.vector_norm(many, dim=2, keepdim=True)
        cutoff = self.config.cutoff
        centres = torch.linspace(0.5, cutoff, self.config.n_basis, device=vec.device, dtype=vec.dtype)
        basis = torch.exp(-((d - centres) ** 2))
        inside = 0.5 * (torch.cos(d.clamp(max=cutoff) * (math.pi / cutoff)) + 1)
        return ToyGeometry(many, basis, inside * inside)

    def forward(
        self, graph: EdgeGraph, geometry: ToyGeometry, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, None]:
        s = self.embedding.index_select(1, graph.numbers)
        if condition is not None:
            s = s + condition
        for layer in self.layers:
            s = layer(s, graph, geometry)
        return self.out(s), None


class PooledToy(ToyEncoder):
    """The same, with heads that read the sum over atoms."""

    name = "pooled_toy"
    pooled = True
