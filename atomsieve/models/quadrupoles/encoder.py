"""PaiNN with blocks of quadrupoles on what its layers give; for a stack of members."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from atomsieve.graphs.graph import EdgeGraph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import EncoderOptions, Wanted
from atomsieve.models.layers import Seeds
from atomsieve.models.painn.encoder import PaiNN
from atomsieve.models.quadrupoles.block import QuadrupoleBlock


class QuadrupoleOptions(EncoderOptions):
    """Options of the encoder alone."""

    channels: int = Field(
        32, gt=0, description="channels G of rank two; multiples of 16 use the compiled kernels, like `hidden`"
    )
    blocks: int = Field(1, gt=0, description="blocks, one after the other, each with a message of its own")


class Quadrupoles(PaiNN):
    """PaiNN's layers as they are, compiled for inference and training, then `QuadrupoleBlock`s."""

    name = "quadrupoles"
    Config = QuadrupoleOptions

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__(config, seeds)
        options = config.options_of(QuadrupoleOptions)
        last = options.blocks - 1
        self.blocks = nn.ModuleList(
            QuadrupoleBlock(config, options.channels, seeds, last=k == last) for k in range(options.blocks)
        )

    def forward(
        self, graph: EdgeGraph, geometry: Geometry, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, Tensor | None]:
        """Return scalars `[K,N,F]` and vectors `[K,N,3,F]`."""
        s, v = self.apply_layers(graph, geometry, condition, wanted, vectors=True)
        assert v is not None  # there is at least one layer
        for block in self.blocks:
            s, v = block(s, v, graph, geometry, wanted)
        return s, v
