"""The interface of backends: how the members of an ensemble are evaluated on a graph."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.graphs import Graph
from atomsieve.structures import StructureBatch

MAX_ATOMS = {"cpu": 20_000, "cuda": 200_000}
"""Atoms that the ensemble itself evaluates at once on each kind of device."""
MEMORY = {"cpu": 1.5e9, "cuda": 3e10}
"""Bytes that one batch may take on each kind of device, roughly."""


@dataclass(frozen=True)
class BackendOutput:
    """Results of all members for a graph of S structures with N atoms.

    Attributes
    ----------
    energy_members : [K,S] eV, element references included; energy, energy_std : [S] mean and unbiased spread.
    forces, forces_std : [N,3] eV/Angstrom, or None; forces_std is NaN with one member, and None of a shallow ensemble
        unless "force_spread" was asked for.
    virial : [S,3,3] eV, mean, or None.
    atom_energies : [N] eV, mean of the atoms' shares in the energy, references included, or None.
    forces_members : [K,N,3] eV/Angstrom, or None. virial_members : [K,S,3,3] eV, or None.
    features : [N,F], scalars that the first member's encoder gives each atom, or None.
    """

    energy_members: NDArray[np.float64]
    energy: NDArray[np.float64]
    energy_std: NDArray[np.float64]
    forces: NDArray[np.float64] | None = None
    forces_std: NDArray[np.float64] | None = None
    virial: NDArray[np.float64] | None = None
    atom_energies: NDArray[np.float64] | None = None
    forces_members: NDArray[np.float64] | None = None
    features: NDArray[np.float32] | None = None
    virial_members: NDArray[np.float64] | None = None


class Backend(Protocol):
    """Evaluates all members on one graph.

    Attributes
    ----------
    name, precision : as asked for. dtype : of the edge vectors in the graphs that it is given.
    max_atoms : evaluated at once; a larger batch is worked through in consecutive pieces.
    outputs : results other than the energy: of "forces", "stress", "energies",
        "energy_members" and "forces_members".
    budget : atoms and estimated edges of a batch that is fast for it; None takes the default of the device.
    why : one line on how it was chosen. digest : SHA-256 that names the artefact, None for native.
    """

    name: str
    precision: str
    dtype: torch.dtype
    max_atoms: int
    outputs: frozenset[str]
    why: str
    digest: str | None
    budget: tuple[int, int] | None

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.float64], want: Collection[str]
    ) -> BackendOutput:
        """Evaluate a batch and its graph for one head.

        head : its index, or [S,H], the weight of every head in each structure: then all are mixed, by one pass.
        want : any of `atomsieve.predict.prediction.PROPERTIES`; "features" are those of the first encoder.
        """
