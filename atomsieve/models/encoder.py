"""The base class of encoders, and the properties that an encoder states about itself.

An encoder turns a graph of atoms into features of each atom. To add one, subclass `Encoder` in a module of
`atomsieve/models/` or in a package of your own (see `atomsieve.models.registry` for how it is found), and define

- `name`, the value of `model.encoder` that selects it;
- `Config`, a subclass of `EncoderOptions`, if it has options that `ModelConfig` lacks;
- `__init__(config, seeds)`: parameters for K members at once, best made of `StackedLinear` and `StackedMLP`;
- `forward(graph, geometry, condition, wanted)`: the features.

Then it trains, screens and exports. To also differentiate by other quantities than `Geometry` offers, override
`geometry`; to let batches be sized to its memory, override `memory`. `atomsieve.testing` checks all of it.

Rules. Positions enter through the edge vectors given to `geometry` alone. Other atoms are reached through
`graph.senders`, `graph.receivers` and `graph.sum_edges` alone, or through `message`: filter(distance) x sender, in any
`Layout` of `atomsieve.models.messages.layout`. Written so, an encoder is differentiable twice on an edge list, and free
of scatter operations on the padded table of an export. The contribution of an edge must vanish smoothly as its length
reaches the cutoff. Neither members nor structures may mix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from atomsieve.errors import AtomSieveError
from atomsieve.graphs.graph import EdgeGraph, Graph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import HeadSpec, ModelConfig
from atomsieve.models.layers import Seeds
from atomsieve.models.output import EnsembleOutput
from atomsieve.models.registry import EncoderOptions, EncoderPlugin, find_encoder

__all__ = [
    "EdgeGeometry",
    "Encoder",
    "EncoderOptions",
    "FastPath",
    "MemberStack",
    "Wanted",
    "WorkingMemory",
    "build_encoder",
]

EDGE_ARRAYS = 8
"""Arrays [K,E,3F] that an encoder written with one row per edge holds at the peak of forward and backward, roughly."""


@dataclass
class Wanted:
    """The gradients that the next backward pass computes; autograd does not pass this on to a function.

    Forces need those of the geometry; an optimizer needs those of the weights. Leaving out the others saves
    about a third of the work of a training step. An encoder without kernels of its own may ignore it.
    """

    geometry: bool = True
    parameters: bool = True
    twice: bool = True
    """Gradients of the geometry will themselves be differentiated, as a loss on forces needs."""


class EdgeGeometry(Protocol):
    """Edges as an encoder sees them: tensors computed from the edge vectors, of which some are leaves of autograd."""

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Tensors `[K,...]`, one slice per member, by which energies are differentiated to obtain forces."""

    @property
    def pull_back(self) -> Callable[..., Tensor]:
        """Function from the gradients by the leaves (None for one that nothing depends on) to `[K,E,3]`, by `vec`."""


class WorkingMemory(NamedTuple):
    """Bytes that one encoder holds at the peak of a forward and backward pass, beyond the graph and its geometry.

    Attributes
    ----------
    per_atom, per_edge : 0 if the usual size of a batch always fits.
    """

    per_atom: float
    per_edge: float


class MemberStack(Protocol):
    """The part of an ensemble that its encoder may use to build a fast path."""

    @property
    def config(self) -> ModelConfig:
        """Configuration of a member."""

    @property
    def heads(self) -> Sequence[HeadSpec]:
        """The heads."""

    @property
    def members(self) -> int:
        """Number of members K."""

    @property
    def shallow(self) -> bool:
        """True if the members share one encoder."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return all parameters by name, each with a leading member axis."""


class FastPath(Protocol):
    """A faster way to evaluate a whole ensemble for inference; results as of `Ensemble.forward`."""

    def __call__(
        self,
        graph: Graph,
        head_index: Tensor,
        charge: Tensor,
        spin: Tensor,
        *,
        forces: bool,
        stress: bool,
        features: bool = False,
    ) -> EnsembleOutput:
        """Evaluate all members on a batch; without `features` those of the output are empty."""


Edges = TypeVar("Edges", bound=EdgeGeometry)


class Encoder(EncoderPlugin, nn.Module, Generic[Edges]):
    """Turns a graph into features of its atoms, for K members at once; generic in its class of geometry.

    Attributes
    ----------
    name, section, Config, bases, force_kinds : see `EncoderPlugin`; only `name` has no default.
    edges_in_messages_only : the encoder reads edges through `atomsieve.models.messages.message.message` and nowhere
        else, and its geometry is `Geometry`. Exports then differentiate by pairs and need no reverse table.
    pooled : heads read the sum of the scalars over the atoms of a structure, not those of each atom; predictions then
        have no energies of atoms.
    raw_condition : `condition` is `[K,N,2]`, total charge and multiplicity themselves; else `[K,N,F]`, a learned
        map of them that is added to the species embedding.
    exportable : `atomsieve export` can write it.
    """

    edges_in_messages_only: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    raw_condition: ClassVar[bool] = False
    exportable: ClassVar[bool] = True

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        """Build the parameters of one member for each seed; member k must depend on stream k of `seeds` alone."""
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self, graph: EdgeGraph, geometry: Edges, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, Tensor | None]:
        """Return scalars `[K,N,F]` and vectors `[K,N,3,F]`, F = `config.hidden`.

        Vectors may be None if the encoder has none; then `force_kinds` must not name "direct".

        graph : a `Graph` with E edges, or in an export a `TableGraph` whose E = N*W places are partly empty.
        geometry : as `geometry` returned it for the edges of this graph.
        condition : see `raw_condition`; None if the model is not conditioned on charge and spin.
        wanted : gradients that will be asked for.
        """

    def geometry(self, vec: Tensor, members: int, *, differentiable: bool) -> Edges:
        """Return the edges as the encoder sees them, for edge vectors `vec [E,3]` in Angstrom, sender minus receiver.

        differentiable : leaves must record gradients, because forces are computed.
        """
        return Geometry.build(vec, self.config, members, differentiable=differentiable)  # type: ignore[return-value]

    @classmethod
    def memory(cls, config: ModelConfig, itemsize: int) -> WorkingMemory:
        """Return the working memory of one encoder in numbers of `itemsize` bytes.

        The default is that of eight arrays of three features per edge and channel, as an encoder written with one row
        per edge needs.
        """
        return WorkingMemory(per_atom=0, per_edge=EDGE_ARRAYS * 3 * config.hidden * itemsize)

    @classmethod
    def head_widths(cls, config: ModelConfig) -> tuple[int, ...]:
        """Return the widths of the hidden layers of each head of a `pooled` encoder."""
        return (config.head_hidden,)

    def find_slowdown(self, device: torch.device) -> str | None:
        """Return a line on why a device takes a slower path for this encoder, with the remedy; None if it does not."""
        return None

    def fast_path(self, ensemble: MemberStack, precision: str, device: torch.device) -> FastPath | None:
        """Return a faster way to evaluate its ensemble, None if there is none for this model, precision or device."""
        return None


def find_encoder_class(name: str) -> type[Encoder[Any]]:
    """Return the encoder class of a name; errors as of `atomsieve.models.registry.find_encoder`."""
    plugin = find_encoder(name)
    if not issubclass(plugin, Encoder):
        raise AtomSieveError(f"encoder {name!r} ({plugin.__module__}) is no subclass of {__name__}.Encoder; repair it")
    return plugin


def build_encoder(config: ModelConfig, seeds: Seeds) -> Encoder[Any]:
    """Build the encoder that a configuration names, one member for each seed."""
    return find_encoder_class(config.encoder)(config, seeds)
