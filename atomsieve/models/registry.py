"""Encoders by name. Adding one is one file that registers a class, plus its test."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from atomsieve.errors import unknown
from atomsieve.graphs.graph import Graph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.layers import Seeds
from atomsieve.models.message import Wanted


class Encoder(nn.Module):
    """Turns a graph into per-atom features for K members at once; positions enter only through `geometry`.

    `forward(graph, geometry, condition, wanted)` returns scalars `[K,N,F]` and vectors `[K,N,3,F]` (or None, where the
    encoder has none). `condition [K,N,F]`, or None, is added to the species embedding. `graph` is a `Graph`, or in an
    export a `TableGraph`, whose edges lie on a padded table: an encoder reaches other atoms through `message` or
    `graph.take`.

    Attributes
    ----------
    edges_in_messages_only : the encoder reads edges through `atomsieve.models.message.message` and nowhere else; its
        exports then need no reverse table, and are faster.
    """

    edges_in_messages_only = False

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, graph: Graph, geometry: Geometry, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, Tensor | None]:
        """Return features; every encoder defines it."""
        raise TypeError(f"{type(self).__name__} defines no forward")


_ENCODERS: dict[str, type[Encoder]] = {}


def register_encoder(name: str) -> Callable[[type[Encoder]], type[Encoder]]:
    """Register an encoder class under a name that configurations use."""

    def register(cls: type[Encoder]) -> type[Encoder]:
        if name in _ENCODERS:
            raise ValueError(f"encoder {name!r} is registered twice")
        _ENCODERS[name] = cls
        return cls

    return register


def encoders() -> dict[str, type[Encoder]]:
    """Return all encoders by name."""
    from atomsieve.models import painn  # noqa: F401  (registers itself)

    return dict(_ENCODERS)


def build_encoder(config: ModelConfig, seeds: Seeds) -> Encoder:
    """Build the encoder that a configuration names, or say which names exist."""
    known = encoders()
    if config.encoder not in known:
        raise unknown("encoder", config.encoder, known)
    return known[config.encoder](config, seeds)
