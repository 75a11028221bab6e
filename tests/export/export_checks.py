"""What exports take and must give, computed by the eager ensemble."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.export.functional import Functional
from atomsieve.export.interface import inputs
from atomsieve.graphs import build_graph
from atomsieve.graphs.table import table_arrays
from atomsieve.models import Ensemble
from atomsieve.structures import StructureBatch

Heads = int | list[int]


def given_arrays(ensemble: Ensemble, batch: StructureBatch, head: Heads = 1) -> dict[str, NDArray[Any]]:
    """Return the inputs of a batch for an export of an ensemble, in order; `head` is one for all, or one for each."""
    config = ensemble.config
    reverse = config.max_neighbors is not None or not ensemble.encoder.edges_in_messages_only
    graph = build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=torch.float64)
    every = {
        **batch.present(),
        "structure": batch.structure_of_atom,
        "head": np.broadcast_to(np.array(head), (len(batch),)).astype(np.int64),
        **table_arrays(graph.neighbors, batch.n_atoms, reverse=reverse),
    }
    slots = inputs(charge_spin=config.charge_spin, truncated=reverse)
    return {s.name: np.array(every[s.name], order="C") for s in slots}


def call(module: Any, arrays: dict[str, NDArray[Any]], functional: Functional) -> dict[str, NDArray[Any]]:
    """Run a functional ensemble, or what was made of it, on arrays."""
    found = module(*(torch.from_numpy(a) for a in arrays.values()))
    return {slot.name: t.numpy() for slot, t in zip(functional.outputs, found, strict=True)}


def eager_outputs(ensemble: Ensemble, batch: StructureBatch, head: Heads = 1) -> dict[str, NDArray[np.float64]]:
    """Return all outputs of a batch, in FP64, by way of edge lists and autograd."""
    config = ensemble.config
    stress = config.forces == "conservative"
    graph = build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=torch.float64)
    index = np.broadcast_to(np.array(head), (len(batch),)).astype(np.int64)
    state = {n: torch.from_numpy(a) for n, a in batch.present().items() if n in ("charge", "spin")}
    out = ensemble.double()(graph, torch.from_numpy(index), **state, forces=True, stress=stress)
    assert out.forces is not None
    energy = out.energy.detach().numpy()
    reference = ensemble.reference_energy(batch.numbers, batch.ptr, index)
    forces = out.forces.detach().numpy()
    many = ensemble.members > 1
    found = {
        "energy": energy.mean(0) + reference,
        "energy_std": energy.std(0, ddof=1) if many else np.full(len(batch), np.nan),
        "energy_members": energy + reference,
        "forces": forces.mean(0),
        "forces_std": forces.std(0, ddof=1) if many and len(forces) > 1 else np.full(forces.shape[1:], np.nan),
        "forces_members": forces,
    }
    return found if out.virial is None else {**found, "virial": out.virial.detach().numpy().mean(0)}


def assert_close(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], tolerance: float) -> None:
    """Compare outputs by name: within a tolerance of the largest value of each; NaN equals NaN."""
    assert found
    for name, values in found.items():
        finite = expected[name][np.isfinite(expected[name])]
        allowed = tolerance * max(np.abs(finite).max(initial=0.0), 1.0)
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=allowed, err_msg=name)
