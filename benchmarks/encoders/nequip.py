"""A slim NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022): l up to 2, weights shared over elements.

Features are F scalars and F/2 vectors and rank-two tensors. The first layer sends scalars along spherical harmonics of
rank 0, 1, 2; further layers send every rank to every one by eleven paths of even parity, and the last one to scalars
alone, by three: nothing else reaches the energy. Filters are networks of the distance (eq. 5), which a compiled version
tabulates; residuals and gates as of the paper.
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
from atomsieve.models.layers import Seeds, StackedLinear
from encoders.common import RANK_TWO, Candidate, Cost, NetworkFilter, directions, map_rows

Ranks = dict[int, Tensor]
COMPONENTS = (1, 3, 5)
PATHS = tuple(
    (a, b, c) for a in range(3) for b in range(3) for c in range(3) if abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0
)
"""Ranks of what is sent, of the direction, and of the message; products of odd parity are left out."""


def _coupling(a: int, b: int, c: int) -> Tensor:
    """Return `[A,B,C]` with orthonormal columns: the product of ranks a and b along rank c."""
    if a == 0 or b == 0:
        return torch.eye(COMPONENTS[c], dtype=torch.float64).view(COMPONENTS[a], COMPONENTS[b], COMPONENTS[c])
    r = RANK_TWO
    if (a, b, c) == (1, 1, 0):
        out = torch.eye(3, dtype=torch.float64).unsqueeze(2)
    elif (a, b, c) == (2, 2, 0):
        out = torch.eye(5, dtype=torch.float64).unsqueeze(2)
    elif (a, b, c) == (1, 1, 2):
        out = r.permute(1, 2, 0)
    elif (a, b, c) == (1, 2, 1):
        out = r.permute(1, 0, 2)
    elif (a, b, c) == (2, 1, 1):
        out = r
    else:
        half = torch.einsum("aij,bjk,cki->abc", r, r, r)
        out = half + half.transpose(0, 1)
    return out * math.sqrt(COMPONENTS[c] / float((out * out).sum()))


class NequIPLayer(nn.Module):
    """Map, send along paths, map what arrives, add the mapped own features, and gate."""

    def __init__(self, config: ModelConfig, seeds: Seeds, *, first: bool, last: bool) -> None:
        super().__init__()
        self.width = widths(config)
        self.paths = layer_paths(first=first, last=last)
        self.sizes = [self.width[a] for a, _, _ in self.paths]
        self.filters = NetworkFilter(config, sum(self.sizes), seeds)
        ranks = {a for a, _, _ in self.paths}
        self.before = nn.ModuleDict(
            {str(a): StackedLinear(self.width[a], self.width[a], seeds, bias=False) for a in sorted(ranks)}
        )
        incoming = {c: sum(n for (_, _, d), n in zip(self.paths, self.sizes, strict=True) if d == c) for c in range(3)}
        self.out_ranks = [c for c in range(3) if incoming[c]]
        gates = sum(self.width[c] for c in self.out_ranks if c)
        outputs = {c: self.width[c] + (gates if c == 0 else 0) for c in self.out_ranks}
        self.after = nn.ModuleDict(
            {str(c): StackedLinear(incoming[c], outputs[c], seeds, bias=False) for c in self.out_ranks}
        )
        kept = [c for c in self.out_ranks if c in ranks]
        self.own = nn.ModuleDict({str(c): StackedLinear(self.width[c], outputs[c], seeds, bias=c == 0) for c in kept})

    def forward(self, h: Ranks, geometry: Geometry, graph: EdgeGraph) -> Ranks:
        """Return new features by rank, `[K,N,2l+1,F_l]`."""
        y = {1: geometry.unit, 2: directions(geometry.unit)}
        filters = self.filters(geometry.basis).split(self.sizes, dim=-1)
        sent = {int(a): graph.senders(map_rows(m, h[int(a)])) for a, m in self.before.items()}
        arrived: dict[int, list[Tensor]] = {c: [] for c in self.out_ranks}
        for (a, b, c), w in zip(self.paths, filters, strict=True):
            arrived[c].append(_couple(sent[a] * w.unsqueeze(2), y.get(b), a, b, c))
        out: Ranks = {}
        for c in self.out_ranks:
            new = map_rows(self.after[str(c)], graph.sum_edges(torch.cat(arrived[c], -1)))
            out[c] = new + map_rows(self.own[str(c)], h[c]) if str(c) in self.own else new
        scalars = out[0]
        plain, start = nn.functional.silu(scalars[..., : self.width[0]]), self.width[0]
        for c in self.out_ranks:
            if c:
                out[c] = out[c] * nn.functional.silu(scalars[..., start : start + self.width[c]])
                start += self.width[c]
        out[0] = plain
        return out


def _couple(x: Tensor, y: Tensor | None, a: int, b: int, c: int) -> Tensor:
    """Return the product of `x [K,E,A,F]` with directions `y [K,E,B]` along rank c, `[K,E,C,F]`."""
    if y is None:
        return x
    if a == 0:
        return x * y.unsqueeze(3)
    turn = torch.einsum("keb,abc->keca", y, _coupling(a, b, c).to(x))
    return torch.matmul(turn, x)


def widths(config: ModelConfig) -> tuple[int, int, int]:
    """Return the channels of each rank."""
    return config.hidden, config.hidden // 2, config.hidden // 2


def layer_paths(*, first: bool, last: bool) -> list[tuple[int, int, int]]:
    """Return the paths of a layer."""
    return [(a, b, c) for a, b, c in PATHS if not (first and a) and not (last and c)]


class NequIP(Candidate):
    """The slim NequIP."""

    name = "probe_nequip"

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__(config, seeds)
        self.embedding = element_embedding(config.hidden, seeds)
        last = config.layers - 1
        self.layers = nn.ModuleList(
            NequIPLayer(config, seeds, first=k == 0, last=k == last) for k in range(config.layers)
        )

    def forward(
        self, graph: EdgeGraph, geometry: Geometry, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, None]:
        """Return scalars `[K,N,F]`, and vectors or None."""
        s = self.embedding.index_select(1, graph.numbers)
        if condition is not None:
            s = s + condition
        h: Ranks = {0: s.unsqueeze(2)}
        for layer in self.layers:
            h = layer(h, geometry, graph)
        return h[0].squeeze(2), None

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds."""
        width, edge, products = widths(config), 0.0, 0.0
        for k in range(config.layers):
            paths = layer_paths(first=k == 0, last=k == config.layers - 1)
            for a, b, c in paths:
                n = width[a]
                # The direction turned by the coupling is shared by the channels; then a product of C x A for each.
                edge += NetworkFilter.cost(config, n) + n * COMPONENTS[a]
                edge += n * COMPONENTS[c] * (COMPONENTS[a] if a and b else 1 if b else 0)
            ranks = sorted({a for a, _, _ in paths})
            outs = sorted({c for _, _, c in paths})
            gates = sum(width[c] for c in outs if c)
            products += sum(COMPONENTS[a] * width[a] ** 2 for a in ranks)
            for c in outs:
                incoming = sum(width[a] for a, _, d in paths if d == c) + (width[c] if c in ranks else 0)
                products += COMPONENTS[c] * incoming * (width[c] + (gates if c == 0 else 0))
        return Cost(edge, products, products)
