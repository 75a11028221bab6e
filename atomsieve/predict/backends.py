"""Backends: how the members are evaluated on a graph. All answer the same call; `native` is the reference."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from atomsieve.errors import AtomSieveError, unknown
from atomsieve.graphs.graph import Graph
from atomsieve.models import Ensemble, EnsembleOutput, set_precision
from atomsieve.models.layers import MATMULS

BACKENDS = ("native",)


class Backend(Protocol):
    """Evaluates all members on one graph."""

    name: str
    dtype: torch.dtype

    def __call__(
        self, graph: Graph, head: int, charge: Tensor | None, spin: Tensor | None, *, forces: bool, stress: bool
    ) -> EnsembleOutput:
        """Return energies (references left out), forces and virials of every member for one head."""


class NativeBackend:
    """The ensemble itself, eagerly, in one precision on one device."""

    name = "native"

    def __init__(self, ensemble: Ensemble, precision: str, device: torch.device) -> None:
        self.model = set_precision(ensemble, precision).to(device).eval().requires_grad_(False)
        self.dtype = torch.float64 if precision == "fp64" else torch.float32

    def __call__(
        self, graph: Graph, head: int, charge: Tensor | None, spin: Tensor | None, *, forces: bool, stress: bool
    ) -> EnsembleOutput:
        """See `Backend`."""
        index = torch.full((graph.n_structures,), head, dtype=torch.int64, device=graph.numbers.device)
        with torch.no_grad():
            return self.model(graph, index, charge, spin, forces=forces, stress=stress)


def choose_device(name: str) -> torch.device:
    """Return the device that a name stands for; `auto` takes CUDA where it is.

    Raises
    ------
    UsageError
        for a name that is no device; AtomSieveError for one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:0"))
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise AtomSieveError(
            f"device {name!r} is not here ({torch.cuda.device_count()} CUDA devices); use --device cpu"
        )
    return torch.device(name)


def make_backend(name: str, ensemble: Ensemble, precision: str, device: torch.device) -> Backend:
    """Build a backend by name; names and precisions that do not exist are refused with those that do."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    if precision not in MATMULS:
        raise unknown("precision", precision, MATMULS)
    return NativeBackend(ensemble, precision, device)
