"""PaiNN as it is in the package, and variants of it whose messages cost the same or little more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atomsieve.graphs.graph import EdgeGraph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.elements import element_embedding
from atomsieve.models.encoder import Wanted
from atomsieve.models.layers import Seeds, StackedLinear, StackedMLP
from atomsieve.models.messages.message import message
from encoders.common import (
    EPSILON,
    Candidate,
    Cost,
    LinearFilter,
    NetworkFilter,
    apply_matrices,
    directions,
    map_rows,
)


class Layer(nn.Module):
    """A PaiNN layer in parts, so that variants replace one of them."""

    extra_inputs = 0
    """Inputs of the update network beyond s and |V v|, in multiples of the width."""
    extra_outputs = 0

    def __init__(self, config: ModelConfig, seeds: Seeds, *, first: bool, last: bool) -> None:
        super().__init__()
        width = config.hidden
        self.first, self.last = first, last
        self.payload = StackedMLP(width, width, 3 * width, seeds)
        self.filters = self.make_filters(config, seeds)
        self.mix = StackedLinear(width, 2 * width, seeds, bias=False)
        inputs, outputs = (2 + self.extra_inputs) * width, (3 + self.extra_outputs) * width
        self.update = StackedMLP(int(inputs), width, int(outputs), seeds)

    def make_filters(self, config: ModelConfig, seeds: Seeds) -> nn.Module:
        """Return the filters, a module from the basis to `[K,E,3F]`."""
        return LinearFilter(config, 3 * config.hidden, seeds)

    def send(self, s: Tensor, v: Tensor | None) -> Tensor:
        """Return what atoms send, `[K,N,5,F]`, as of `message`."""
        payload = self.payload(s).view(*s.shape[:2], 3, s.shape[2])
        carried = payload[:, :, 2:]
        vectors = torch.zeros_like(carried).expand(-1, -1, 3, -1) if v is None else carried * v
        return torch.cat([payload[:, :, :2], vectors], dim=2)

    def receive(self, x: Tensor, s: Tensor, graph: EdgeGraph, geometry: Geometry, wanted: Wanted) -> Tensor:
        """Return the sums of messages `[K,N,4,F]`."""
        return message(x, geometry.basis, geometry.unit, self.filters.weight, graph, wanted=wanted)

    def forward(
        self, s: Tensor, v: Tensor | None, graph: EdgeGraph, geometry: Geometry, wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        """Return new scalars `[K,N,F]` and vectors `[K,N,3,F]`."""
        received = self.receive(self.send(s, v), s, graph, geometry, wanted)
        s = s + received[:, :, 0]
        v = received[:, :, 1:] if v is None else v + received[:, :, 1:]
        left, right = map_rows(self.mix, v).chunk(2, dim=-1)
        norm = torch.sqrt((right * right).sum(2) + EPSILON)
        inner = (left * right).sum(2)
        gates = self.update(torch.cat([s, norm, *self.more(s, v, left, right, inner, received)], dim=-1))
        a_ss, a_sv, a_vv = gates[..., : 3 * s.shape[2]].chunk(3, dim=-1)
        return s + a_ss + a_sv * inner, v + a_vv.unsqueeze(2) * left

    def more(self, s: Tensor, v: Tensor, left: Tensor, right: Tensor, inner: Tensor, received: Tensor) -> list[Tensor]:
        """Return further inputs of the update network."""
        return []

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the cost of one layer."""
        f = config.hidden
        atom = f * f * (4 + 6 + 3 + cls.extra_inputs + 2 + cls.extra_outputs)
        return Cost(LinearFilter.cost(config, 3 * f) + 8 * f, atom + 20 * f, atom)


class PaiNNLike(Candidate):
    """Layers over scalars and vectors."""

    layer: type[Layer] = Layer

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__(config, seeds)
        self.embedding = element_embedding(config.hidden, seeds)
        last = config.layers - 1
        self.layers = nn.ModuleList(
            self.layer(config, seeds, first=k == 0, last=k == last) for k in range(config.layers)
        )

    def forward(
        self, graph: EdgeGraph, geometry: Geometry, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, Tensor | None]:
        """Return scalars `[K,N,F]`, and vectors or None."""
        s = self.embedding.index_select(1, graph.numbers)
        if condition is not None:
            s = s + condition
        v: Tensor | None = None
        for layer in self.layers:
            s, v = layer(s, v, graph, geometry, wanted)
        return s, v

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds."""
        one = cls.layer.cost(config)
        return Cost(*(config.layers * value for value in one))


class PlainPaiNN(PaiNNLike):
    """PaiNN itself: the same weights and results as the package's, for checks and counts."""

    name = "probe_painn"


class NetworkLayer(Layer):
    """Filters by a network."""

    def make_filters(self, config: ModelConfig, seeds: Seeds) -> nn.Module:
        """Return the filters, a module from the basis to `[K,E,3F]`."""
        return NetworkFilter(config, 3 * config.hidden, seeds)

    def receive(self, x: Tensor, s: Tensor, graph: EdgeGraph, geometry: Geometry, wanted: Wanted) -> Tensor:
        """Return the sums of messages `[K,N,4,F]`."""
        return sum_messages(x, self.filters(geometry.basis), geometry, graph)

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds."""
        edge, atom, products = super().cost(config)
        return Cost(edge - LinearFilter.cost(config, 3 * config.hidden) + 12 * config.hidden, atom, products)


class NetworkPaiNN(PaiNNLike):
    """PaiNN with filters by a network of the distance."""

    name = "probe_network"
    layer = NetworkLayer


def sum_messages(x: Tensor, filters: Tensor, geometry: Geometry, graph: EdgeGraph) -> Tensor:
    """Return the sums of PaiNN's messages with filters `[K,E,3F]`."""
    w_s, w_a, w_b = filters.chunk(3, dim=-1)
    sent = graph.senders(x)
    ds = (w_s * sent[:, :, 0]).unsqueeze(2)
    dv = w_a.unsqueeze(2) * sent[:, :, 2:] + (w_b * sent[:, :, 1]).unsqueeze(2) * geometry.unit.unsqueeze(3)
    return graph.sum_edges(torch.cat([ds, dv], 2))


class GatedLayer(Layer):
    """What an atom receives is gated by what it is, and the update sees the products of its own vectors.

    The gate of a receiver is a factor of the whole sum: it costs nothing per edge.
    """

    extra_inputs = 2

    def __init__(self, config: ModelConfig, seeds: Seeds, *, first: bool, last: bool) -> None:
        super().__init__(config, seeds, first=first, last=last)
        self.gate = StackedLinear(config.hidden, 2 * config.hidden, seeds)

    def receive(self, x: Tensor, s: Tensor, graph: EdgeGraph, geometry: Geometry, wanted: Wanted) -> Tensor:
        """Return the sums of messages `[K,N,4,F]`."""
        received = super().receive(x, s, graph, geometry, wanted)
        scalars, vectors = (1 + self.gate(s)).unsqueeze(2).chunk(2, dim=-1)
        return torch.cat([received[:, :, :1] * scalars, received[:, :, 1:] * vectors], 2)

    def more(self, s: Tensor, v: Tensor, left: Tensor, right: Tensor, inner: Tensor, received: Tensor) -> list[Tensor]:
        """Return further inputs of the update network."""
        return [inner, received[:, :, 0]]

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds."""
        edge, atom, products = super().cost(config)
        gate = 2 * config.hidden**2
        return Cost(edge, atom + gate + 4 * config.hidden, products + gate)


class GatedPaiNN(PaiNNLike):
    """PaiNN with gates of receivers, and more invariants of its own vectors."""

    name = "probe_gated"
    layer = GatedLayer


class MomentLayer(Layer):
    """Rank-two moments of the neighbours beside vectors, and products of an atom's own moments.

    Invariants T:T, T':T'' and v T v enter the update network, T v is added to the vectors. Moments are received anew
    in every layer: nothing of rank two is sent.
    """

    rank = 0.5
    """Channels of rank two, as a part of the width."""
    extra_inputs = 1.5
    extra_outputs = 0.5

    def __init__(self, config: ModelConfig, seeds: Seeds, *, first: bool, last: bool) -> None:
        super().__init__(config, seeds, first=first, last=last)
        width, rank = config.hidden, int(self.rank * config.hidden)
        self.moment_payload = StackedLinear(width, rank, seeds)
        self.moment_filters = LinearFilter(config, rank, seeds)
        self.moment_mix = StackedLinear(rank, 2 * rank, seeds, bias=False)
        self.narrow = StackedLinear(width, rank, seeds, bias=False)
        self.widen = StackedLinear(rank, width, seeds, bias=False)

    def forward(
        self, s: Tensor, v: Tensor | None, graph: EdgeGraph, geometry: Geometry, wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        """Return scalars `[K,N,F]`, and vectors or None."""
        received = self.receive(self.send(s, v), s, graph, geometry, wanted)
        pushed = self.moment_filters(geometry.basis) * graph.senders(self.moment_payload(s))
        moments = graph.sum_edges(pushed.unsqueeze(2) * directions(geometry.unit).unsqueeze(3))  # [K,N,5,G]
        s = s + received[:, :, 0]
        v = received[:, :, 1:] if v is None else v + received[:, :, 1:]
        left, right = map_rows(self.mix, v).chunk(2, dim=-1)
        norm = torch.sqrt((right * right).sum(2) + EPSILON)
        inner = (left * right).sum(2)
        one, two = map_rows(self.moment_mix, moments).chunk(2, dim=-1)
        narrow = map_rows(self.narrow, v)
        turned = apply_matrices(one, narrow)
        own = [torch.sqrt((two * two).sum(2) + EPSILON), (one * two).sum(2), (turned * narrow).sum(2)]
        gates = self.update(torch.cat([s, norm, *own], dim=-1))
        width = s.shape[2]
        a_ss, a_sv, a_vv, a_tv = gates.split([width, width, width, narrow.shape[3]], dim=-1)
        s = s + a_ss + a_sv * inner
        return s, v + a_vv.unsqueeze(2) * left + map_rows(self.widen, a_tv.unsqueeze(2) * turned)

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds."""
        edge, atom, products = super().cost(config)
        f, g = config.hidden, int(cls.rank * config.hidden)
        own = f * g + 10 * g * g + 3 * f * g + 3 * g * f
        return Cost(edge + LinearFilter.cost(config, g) + 6 * g, atom + own + 40 * g, products + own)


class MomentPaiNN(PaiNNLike):
    """PaiNN with rank-two moments."""

    name = "probe_moments"
    layer = MomentLayer


class NarrowMomentLayer(MomentLayer):
    """The same with a quarter of the width."""

    rank = 0.25
    extra_inputs = 0.75
    extra_outputs = 0.25


class NarrowMomentPaiNN(PaiNNLike):
    """PaiNN with few rank-two moments."""

    name = "probe_moments_narrow"
    layer = NarrowMomentLayer


class MomentBlock(nn.Module):
    """Rank-two moments of the neighbours' scalars, and their products with an atom's own vectors.

    Adds a network of s, |T'|, T:T' and w T w to the scalars, and T w to the vectors; w are few maps of the vectors.
    """

    rank = 0.25

    def __init__(self, config: ModelConfig, seeds: Seeds, *, last: bool) -> None:
        super().__init__()
        width, rank = config.hidden, int(self.rank * config.hidden)
        self.payload = StackedLinear(width, rank, seeds)
        self.filters = LinearFilter(config, rank, seeds)
        self.mix = StackedLinear(rank, 2 * rank, seeds, bias=False)
        self.narrow = StackedLinear(width, rank, seeds, bias=False)
        self.update = StackedMLP(width + 3 * rank, width, width if last else width + rank, seeds)
        self.widen = None if last else StackedLinear(rank, width, seeds, bias=False)

    def forward(self, s: Tensor, v: Tensor, graph: EdgeGraph, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Return new scalars and vectors."""
        pushed = self.filters(geometry.basis) * graph.senders(self.payload(s))
        moments = graph.sum_edges(pushed.unsqueeze(2) * directions(geometry.unit).unsqueeze(3))  # [K,N,5,G]
        one, two = map_rows(self.mix, moments).chunk(2, dim=-1)
        narrow = map_rows(self.narrow, v)
        turned = apply_matrices(one, narrow)
        own = [torch.sqrt((two * two).sum(2) + EPSILON), (one * two).sum(2), (turned * narrow).sum(2)]
        found = self.update(torch.cat([s, *own], dim=-1))
        if self.widen is None:
            return s + found, v
        more, gate = found.split([s.shape[2], narrow.shape[3]], dim=-1)
        return s + more, v + map_rows(self.widen, gate.unsqueeze(2) * turned)

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds, vectors of the last layer included."""
        f, g = config.hidden, int(cls.rank * config.hidden)
        products = f * g + 10 * g * g + 3 * f * g + 3 * g * f + (f + 3 * g) * f + f * (f + g)
        return Cost(LinearFilter.cost(config, g) + 6 * g, products + 40 * g, products)


class BlockLayer(Layer):
    """A PaiNN layer as it is, then a block of rank-two moments of what it gave."""

    def __init__(self, config: ModelConfig, seeds: Seeds, *, first: bool, last: bool) -> None:
        super().__init__(config, seeds, first=first, last=last)
        self.block = MomentBlock(config, seeds, last=last)

    def forward(
        self, s: Tensor, v: Tensor | None, graph: EdgeGraph, geometry: Geometry, wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        """Return new scalars and vectors."""
        s, v = super().forward(s, v, graph, geometry, wanted)
        found: tuple[Tensor, Tensor] = self.block(s, v, graph, geometry)
        return found

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds."""
        return Cost(*(a + b for a, b in zip(super().cost(config), MomentBlock.cost(config), strict=True)))


class BlockPaiNN(PaiNNLike):
    """PaiNN whose layers each end in a block of rank-two moments."""

    name = "probe_block"
    layer = BlockLayer


class AttentiveLayer(Layer):
    """Messages weighted by attention of the receiver (Thoelke and De Fabritiis, ICLR 2022, eqs. 7 to 9), 8 heads."""

    heads = 8

    def __init__(self, config: ModelConfig, seeds: Seeds, *, first: bool, last: bool) -> None:
        super().__init__(config, seeds, first=first, last=last)
        width = config.hidden
        self.query = StackedLinear(width, width, seeds)
        self.key = StackedLinear(width, width, seeds)
        self.key_filters = LinearFilter(config, width, seeds, neighbours=3.0 / config.typical_neighbors)

    def receive(self, x: Tensor, s: Tensor, graph: EdgeGraph, geometry: Geometry, wanted: Wanted) -> Tensor:
        """Return the sums of messages `[K,N,4,F]`."""
        filters = self.filters(geometry.basis)
        members, edges, _ = filters.shape
        shape = (members, edges, self.heads, s.shape[2] // self.heads)
        meet = graph.receivers(self.query(s)) * graph.senders(self.key(s)) * self.key_filters(geometry.basis)
        weight = nn.functional.silu(meet.view(shape).sum(3, keepdim=True) + 1.0)  # eq. 8: silu, not softmax
        many = weight.expand(shape).reshape(members, edges, 1, s.shape[2])
        filters = (filters.view(members, edges, 3, s.shape[2]) * many).flatten(2)
        return sum_messages(x, filters, geometry, graph)

    @classmethod
    def cost(cls, config: ModelConfig) -> Cost:
        """Return the counted multiply-adds."""
        edge, atom, products = super().cost(config)
        f = config.hidden
        more = LinearFilter.cost(config, f) + 2 * f + 3 * f + 4 * cls.heads
        return Cost(edge + more, atom + 2 * f * f, products + 2 * f * f)


class AttentivePaiNN(PaiNNLike):
    """PaiNN with attention over neighbours."""

    name = "probe_attention"
    layer = AttentiveLayer
