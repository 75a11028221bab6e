"""Arrays of the fast path: results, activations of atoms, edges, and the memory that is kept between calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor


class FastResult(NamedTuple):
    """Energies and gradients.

    Attributes
    ----------
    energy_per_head : [S,B] float64, eV.
    energy : [S] float64, sum of the heads' energies times `mix`.
    edge_grad : [E,3], d energy / d vec.
    features : [N,F], the encoder's features of atoms, if asked for.
    """

    energy_per_head: Tensor
    energy: Tensor
    edge_grad: Tensor
    features: Tensor | None = None


class Activations(NamedTuple):
    """Activations of the atoms of a group; L is the padded length of a row of features."""

    spread: Tensor
    """[N,L] tanh of the first node map of layer 0, then 1, charge, spin."""
    s1: Tensor
    """[N,L] scalars that enter layer 1."""
    slope1: Tensor
    """[N,L] derivative of the nonlinearity in the payload."""
    phi: Tensor
    """[N,3L] payload: parts v, e, s."""
    uv: Tensor
    """[N,3,2L] vectors after the message by the two linear maps; in the backward pass their gradients."""
    slope2: Tensor
    """[N,L] derivative of the nonlinearity in the update."""
    gates: Tensor
    """[N,2L] what the update multiplies and adds."""
    closing: Tensor
    """[N,L] tanh of the first node map of layer 1, then 1, charge, spin."""
    last: Tensor
    """[N,L] features before the last nonlinearity."""


PARTS = {"phi": 3, "uv": 6, "gates": 2}
"""Rows of features that an atom has in an array of `Activations`, where more than one."""


class EdgeArrays(NamedTuple):
    """Arrays of the edges of a group; atoms count from its first one."""

    row_ptr: Tensor
    sender: Tensor
    receiver: Tensor
    vec: Tensor
    basis: Tensor
    slope: Tensor
    column: Tensor
    order: Tensor


class Workspace:
    """Working arrays, kept between calls; a caller holds the lock while it uses them.

    Models of one shape and type may share them. On a GPU every stream has its own, since earlier work of another stream
    may still be running.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.arrays: dict[tuple[str, int], Tensor] = {}


def spans(ptr: np.ndarray, atoms: int) -> Iterator[tuple[int, int]]:
    """Yield spans of structures of at most so many atoms, or of one larger structure; `ptr [S+1]`."""
    first, end = 0, len(ptr) - 1
    while first < end:
        last = max(int(np.searchsorted(ptr, ptr[first] + atoms, "right")) - 1, first + 1)
        yield first, last
        first = last
