"""The test vector of an ensemble: some structures, their energies and forces in FP64, errors of other precisions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from atomsieve.graphs.neighbors import build_graph
from atomsieve.models.ensemble import Ensemble
from atomsieve.models.layers import set_precision
from atomsieve.models.output import EnsembleOutput
from atomsieve.structures import StructureBatch

_INPUTS = ("ptr", "numbers", "positions", "cell", "pbc")


def builtin_structures(elements: list[int]) -> StructureBatch:
    """Return a lone atom, a pair and a small skewed crystal of the given atomic numbers (first ones used)."""
    z = [elements[k % len(elements)] for k in range(4)]
    positions = [[0, 0, 0], [0, 0, 0], [0.3, 0.2, 1.4], [0.1, 0, 0], [1.9, 1.7, 0.2], [0.2, 2.1, 1.8], [2.0, 0.1, 1.7]]
    cell = np.zeros((3, 3, 3))
    cell[2] = [[4.1, 0.0, 0.2], [0.3, 4.0, 0.0], [0.0, 0.5, 4.2]]
    return StructureBatch(
        ptr=np.array([0, 1, 3, 7], np.int64),
        numbers=np.array([z[0], z[0], z[1], z[0], z[1], z[2], z[3]], np.uint8),
        positions=np.array(positions, np.float64),
        cell=cell,
        pbc=np.array([[False] * 3, [False] * 3, [True] * 3]),
        id=np.arange(3, dtype=np.int64),
        charge=np.zeros(3, np.float32),
        spin=np.ones(3, np.float32),
    )


def evaluate(ensemble: Ensemble, batch: StructureBatch, head: int, precision: str) -> EnsembleOutput:
    """Evaluate a copy of the ensemble on the CPU in one precision, element references left out."""
    model = set_precision(copy.deepcopy(ensemble).cpu(), precision).requires_grad_(False)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    graph = build_graph(batch, ensemble.config.cutoff, max_neighbors=ensemble.config.max_neighbors, dtype=dtype)
    state = {}
    if ensemble.config.charge_spin:
        assert batch.charge is not None and batch.spin is not None
        state = {"charge": torch.from_numpy(batch.charge), "spin": torch.from_numpy(batch.spin)}
    index = torch.full((batch.n_structures,), head, dtype=torch.int64)
    conservative = ensemble.config.forces == "conservative"
    return model(graph, index, **state, forces=True, stress=conservative)


def make_test_vector(
    ensemble: Ensemble, examples: StructureBatch | None
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Return the test vector as JSON-able data, and per precision its largest errors against FP64.

    Inputs are positions, cells etc. of the structures; per head there are energies of all members (eV, element
    references included) and forces (eV/Angstrom). Errors: energy per atom (eV) and force component (eV/Angstrom).
    """
    vector: dict[str, Any] = {"heads": {}}
    precision = {p: {"energy_per_atom": 0.0, "force": 0.0} for p in ("fp64", "fp32", "bf16")}
    for k, head in enumerate(ensemble.heads):
        known = sorted(head.references, key=lambda z: -head.elements.get(z, 0)) or [1]
        batch = builtin_structures(known)
        if examples is not None:
            seen = np.isin(examples.numbers, known)
            bad = np.zeros(examples.n_structures, bool)
            np.logical_or.at(bad, examples.structure_of_atom, ~seen)
            chosen = np.flatnonzero(~bad & (examples.counts > 0))[:4]
            inputs = {n: a for n, a in examples.take(chosen).present().items() if n in (*_INPUTS, "id")}
            extra = StructureBatch(**inputs)
            batch = StructureBatch.concatenate([batch, extra])
            batch = batch.replace(
                id=np.arange(len(batch)), charge=np.zeros(len(batch), np.float32), spin=np.ones(len(batch), np.float32)
            )
        exact = evaluate(ensemble, batch, k, "fp64")
        reference = ensemble.reference_energy(batch.numbers, batch.ptr, k)
        assert exact.forces is not None
        vector["heads"][head.name] = {
            **{name: getattr(batch, name).tolist() for name in _INPUTS},
            "energy_members": (exact.energy.numpy() + reference).tolist(),
            "forces": exact.forces.mean(0).numpy().tolist(),
        }
        for name in ("fp32", "bf16"):
            other = evaluate(ensemble, batch, k, name)
            assert other.forces is not None
            per_atom = (other.energy - exact.energy).abs().numpy() / batch.counts
            worst = precision[name]
            worst["energy_per_atom"] = max(worst["energy_per_atom"], float(per_atom.max()))
            worst["force"] = max(worst["force"], float((other.forces.double() - exact.forces).abs().max()))
    return vector, precision
