"""PaiNN whose layers each end in a block of quadrupoles of the neighbours; for a stack of members."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from atomsieve.graphs.graph import EdgeGraph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.elements import element_embedding
from atomsieve.models.encoder import Encoder, EncoderOptions, Wanted, WorkingMemory
from atomsieve.models.layers import Seeds
from atomsieve.models.painn.encoder import PaiNNLayer
from atomsieve.models.quadrupoles.block import QuadrupoleBlock

_BLOCK_ARRAYS = 6
"""Arrays [K,E,5,G] that a block holds at the peak where its message has one row per edge, roughly."""


class QuadrupoleOptions(EncoderOptions):
    """Options of the encoder alone."""

    channels: int = Field(
        16, gt=0, description="channels G of rank two; multiples of 16 use the compiled kernels, like `hidden`"
    )


class Quadrupoles(Encoder[Geometry]):
    """PaiNN's layers as they are, with their compiled forms, each followed by a `QuadrupoleBlock`."""

    name = "quadrupoles"
    Config = QuadrupoleOptions
    edges_in_messages_only = True

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__(config, seeds)
        self.embedding = element_embedding(config.hidden, seeds)
        channels, last = config.options_of(QuadrupoleOptions).channels, config.layers - 1
        self.layers = nn.ModuleList(PaiNNLayer(config, seeds) for _ in range(config.layers))
        self.blocks = nn.ModuleList(
            QuadrupoleBlock(config, channels, seeds, last=k == last) for k in range(config.layers)
        )

    def forward(
        self, graph: EdgeGraph, geometry: Geometry, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, Tensor | None]:
        """Return scalars `[K,N,F]` and vectors `[K,N,3,F]`."""
        s = self.embedding.index_select(1, graph.numbers)
        if condition is not None:
            s = s + condition
        v: Tensor | None = None
        for layer, block in zip(self.layers, self.blocks, strict=True):
            s, v = layer(s, v, graph, geometry, wanted)
            assert v is not None
            s, v = block(s, v, graph, geometry, wanted)
        return s, v

    @classmethod
    def memory(cls, config: ModelConfig, itemsize: int) -> WorkingMemory:
        """Return the working memory of a block; PaiNN's messages never hold an array of edges times channels."""
        channels = config.options_of(QuadrupoleOptions).channels
        return WorkingMemory(per_atom=0, per_edge=_BLOCK_ARRAYS * 5 * channels * itemsize)
