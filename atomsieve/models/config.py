"""What a model is (ModelConfig) and what each of its heads stands for (HeadSpec)."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["deep", "shallow"]
"""Of an ensemble: its members are networks, or decoders on one encoder."""
KINDS: tuple[Kind, ...] = get_args(Kind)
HYDRAGNN = "hydragnn_painn"


class HydraGNNConfig(BaseModel):
    """What `encoder: hydragnn_painn` needs beside the rest: its heads read sums over atoms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shared: tuple[int, ...] = Field((50, 50), description="widths of a head's first layers (`graph_shared`)")
    heads: tuple[int, ...] = Field((776, 776), description="widths of the layers after them (`heads_NN`)")
    vector_bias: bool = Field(
        False, description="biases on vectors, as HydraGNN had up to version 5.0: the model is then not equivariant"
    )


class ModelConfig(BaseModel):
    """Architecture of one member; all members of an ensemble share it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field("painn", description="registered encoder")
    hidden: int = Field(64, gt=0, description="channels F; multiples of 16 use the compiled kernels")
    layers: int = Field(3, gt=0, description="message-passing layers")
    cutoff: float = Field(5.0, gt=0, le=20, description="neighbours are closer than this, Angstrom")
    n_basis: int = Field(7, gt=0, le=128, description="radial functions; one more channel carries the filter's bias")
    basis: Literal["bessel", "gaussian", "sinc"] = Field(
        "bessel", description="radial basis; sinc, with a cosine cutoff, goes with hydragnn_painn alone"
    )
    forces: Literal["conservative", "direct"] = Field(
        "conservative", description="minus the gradient of the energy, or a separate equivariant head"
    )
    charge_spin: bool = Field(
        False, description="condition on total charge and multiplicity; then every structure needs both"
    )
    max_neighbors: int | None = Field(None, gt=0, description="keep only the k nearest; null keeps all (recommended)")
    head_hidden: int = Field(32, gt=0, description="hidden width of each energy head")
    typical_neighbors: float = Field(
        30.0, gt=0, description="typical number of neighbours; sets the initial size of messages"
    )
    hydragnn: HydraGNNConfig | None = Field(None, description="of encoder hydragnn_painn; null with every other")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("encoder") == HYDRAGNN:
            return {"basis": "sinc", "hydragnn": {}, **given}
        return given

    @model_validator(mode="after")
    def _fits_the_encoder(self) -> ModelConfig:
        ours = self.encoder == HYDRAGNN
        if ours and self.hydragnn is None:
            raise ValueError(f"encoder {HYDRAGNN} needs a section hydragnn; leave it out for its defaults")
        if not ours and self.hydragnn is not None:
            raise ValueError(f"the section hydragnn goes with encoder {HYDRAGNN}, got encoder {self.encoder!r}")
        if ours != (self.basis == "sinc"):
            raise ValueError(f"encoder {HYDRAGNN} and basis sinc go together, got {self.encoder!r} and {self.basis!r}")
        if ours and self.forces != "conservative":
            raise ValueError(f"encoder {HYDRAGNN} has conservative forces, got {self.forces!r}")
        return self


class HeadSpec(BaseModel):
    """One source at one level of theory, and what its decoder has seen.

    Attributes
    ----------
    references : energy of one atom of each element, eV; total energy = their sum + what the network predicts.
    scale : eV; the network's output per atom is multiplied by it.
    elements : number of atoms of each element seen in training.
    statistics : label statistics for people (counts, means, force norms).
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    level_of_theory: str
    references: dict[int, float]
    scale: float = Field(gt=0)
    elements: dict[int, int]
    statistics: dict[str, Any] = Field(default_factory=dict)
