"""Encoders by name. Adding one is one file that registers a class, plus its test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from atomsieve.errors import unknown
from atomsieve.graphs.graph import Graph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.layers import Seeds
from atomsieve.models.messages.message import Wanted


class Encoder(nn.Module):
    """Turns a graph into per-atom features for K members at once; positions enter only through `geometry`.

    `forward(graph, geometry, condition, wanted)` returns scalars `[K,N,F]` and vectors `[K,N,3,F]` (or None, where the
    encoder has none). `condition [K,N,F]`, or None, is added to the species embedding. `graph` is a `Graph`, or in an
    export a `TableGraph`, whose edges lie on a padded table: an encoder reaches other atoms through `message` or
    `graph.take`.

    Attributes
    ----------
    edges_in_messages_only : the encoder reads edges through `atomsieve.models.messages.message.message` and nowhere
        else; its exports then need no reverse table, and are faster.
    pooled : its heads read the sum of the scalars over the atoms of a structure, not those of each atom.
    raw_condition : `condition` is `[K,N,2]`, charge and multiplicity themselves.
    exportable : `atomsieve.export` can write it.
    """

    edges_in_messages_only = False
    pooled = False
    raw_condition = False
    exportable = True

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__()
        self.config = config

    def geometry(self, vec: Tensor, members: int, *, differentiable: bool) -> Any:
        """Return what the encoder sees of edge vectors `vec [E,3]` (Angstrom), for so many members.

        It has `leaves`, what is differentiated by, and `pull_back`, which turns the gradients by them `[K,...]` into
        those by the edge vectors `[K,E,3]`.
        """
        return Geometry.build(vec, self.config, members, differentiable=differentiable)

    def forward(
        self, graph: Graph, geometry: Any, condition: Tensor | None, wanted: Wanted
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
    from atomsieve.models.hydragnn import encoder as hydragnn  # noqa: F401  (they register themselves)
    from atomsieve.models.painn import encoder as painn  # noqa: F401

    return dict(_ENCODERS)


def build_encoder(config: ModelConfig, seeds: Seeds) -> Encoder:
    """Build the encoder that a configuration names, or say which names exist."""
    known = encoders()
    if config.encoder not in known:
        raise unknown("encoder", config.encoder, known)
    return known[config.encoder](config, seeds)
