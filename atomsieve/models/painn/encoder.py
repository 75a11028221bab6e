"""PaiNN: the polarizable atom interaction network (Schuett, Unke and Gastegger, ICML 2021), for a stack of members."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atomsieve.graphs.graph import EdgeGraph, Graph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.elements import element_embedding
from atomsieve.models.encoder import Encoder, Wanted, WorkingMemory
from atomsieve.models.layers import Seeds, StackedLinear, StackedMLP
from atomsieve.models.messages.message import LANES, message
from atomsieve.models.painn.layer_cpu import layer_on_cpu, layer_serves
from atomsieve.models.painn.train_cpu import train_on_cpu, training_serves
from atomsieve.native import kernels

_EPSILON = 1e-6  # keeps the gradient of the norm finite at zero vectors; larger than what graph optimizers drop


class PaiNNLayer(nn.Module):
    """One message block (eqs. 7, 8) and one update block (eqs. 9, 10)."""

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__()
        width, radial = config.hidden, config.n_basis + 1
        self.payload = StackedMLP(width, width, 3 * width, seeds)
        # Sums over neighbours of random filters grow with their square root.
        bound = math.sqrt(6.0 / (radial + width)) / math.sqrt(config.typical_neighbors / 3.0)
        self.filters = seeds.uniform(radial, 3 * width, bound=bound)
        self.mix = StackedLinear(width, 2 * width, seeds, bias=False)
        self.update = StackedMLP(2 * width, width, 3 * width, seeds)

    def forward(
        self, s: Tensor, v: Tensor | None, graph: EdgeGraph, geometry: Geometry, wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        """Return new scalars `s [K,N,F]` and vectors `v [K,N,3,F]`; v is None before the first layer."""
        if isinstance(graph, Graph) and layer_serves(s, graph, wanted):
            return layer_on_cpu(self, s, v, graph, geometry)
        members, atoms, width = s.shape
        payload = self.payload(s).view(members, atoms, 3, width)
        carried = payload[:, :, 2:]
        vectors = torch.zeros_like(carried).expand(-1, -1, 3, -1) if v is None else carried * v
        x = torch.cat([payload[:, :, :2], vectors], dim=2)
        received = message(x, geometry.basis, geometry.unit, self.filters, graph, wanted=wanted)  # eqs. 7, 8
        s = s + received[:, :, 0]
        v = received[:, :, 1:] if v is None else v + received[:, :, 1:]
        left, right = self.mix(v.reshape(members, 3 * atoms, width)).view(members, atoms, 3, 2 * width).chunk(2, dim=-1)
        norm = torch.sqrt((right * right).sum(2) + _EPSILON)  # |V v| of eqs. 9, 10
        a_ss, a_sv, a_vv = self.update(torch.cat([s, norm], dim=-1)).chunk(3, dim=-1)
        s = s + a_ss + a_sv * (left * right).sum(2)  # eq. 9
        return s, v + a_vv.unsqueeze(2) * left  # eq. 10


class PaiNN(Encoder[Geometry]):
    """PaiNN with a species embedding; messages are summed, filters are linear in the radial basis."""

    name = "painn"
    edges_in_messages_only = True

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__(config, seeds)
        self.embedding = element_embedding(config.hidden, seeds)
        self.layers = nn.ModuleList(PaiNNLayer(config, seeds) for _ in range(config.layers))

    def forward(
        self, graph: EdgeGraph, geometry: Geometry, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, Tensor | None]:
        """Return scalars `[K,N,F]` and vectors `[K,N,3,F]`."""
        return self.apply_layers(graph, geometry, condition, wanted, vectors=self.config.forces == "direct")

    def apply_layers(
        self, graph: EdgeGraph, geometry: Geometry, condition: Tensor | None, wanted: Wanted, *, vectors: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the layers give, arguments and shapes as of `forward`.

        vectors : those of the last layer are read; without, compiled training does not compute them.
        """
        s = self.embedding.index_select(1, graph.numbers)
        if condition is not None:
            s = s + condition
        layers = [layer for layer in self.layers if isinstance(layer, PaiNNLayer)]
        if isinstance(graph, Graph) and training_serves(s, graph, layers, wanted):
            return train_on_cpu(layers, s, graph, geometry, wanted, vectors=vectors)
        v: Tensor | None = None
        for layer in self.layers:
            s, v = layer(s, v, graph, geometry, wanted)
        return s, v

    def find_slowdown(self, device: torch.device) -> str | None:
        """See `Encoder.find_slowdown`: compiled kernels take whole vectors of channels."""
        width = self.config.hidden
        if device.type != "cpu" or width % LANES == 0 or kernels() is None:
            return None
        nearest = max(1, round(width / LANES)) * LANES
        return (
            f"model.hidden: {width} channels take the slower general path on a CPU, since compiled kernels need a "
            f"multiple of {LANES}; the nearest is {nearest}"
        )

    @classmethod
    def memory(cls, config: ModelConfig, itemsize: int) -> WorkingMemory:
        """Return no figure: compiled and fused messages never hold an array of edges times channels."""
        return WorkingMemory(per_atom=0, per_edge=0)
