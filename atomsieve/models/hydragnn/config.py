"""Options of the encoder `hydragnn_painn`."""

from __future__ import annotations

from pydantic import Field

from atomsieve.models.registry import EncoderOptions

HYDRAGNN = "hydragnn_painn"
"""Name of the encoder in configurations; its options stand in the section `hydragnn`."""


class HydraGNNConfig(EncoderOptions):
    """Widths of the heads, which read sums over atoms, and a choice that old versions of HydraGNN made."""

    shared: tuple[int, ...] = Field((50, 50), description="widths of a head's first layers (`graph_shared`)")
    heads: tuple[int, ...] = Field((776, 776), description="widths of the layers after them (`heads_NN`)")
    vector_bias: bool = Field(
        False, description="biases on vectors, as HydraGNN had up to version 5.0: the model is then not equivariant"
    )
