"""Batched evaluation and relaxation of many distorted structures, with the results of every member."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.relax_result import RelaxResult, Stop
from atomsieve.calculators.relaxation import USUAL, relax
from atomsieve.graphs.estimate import edge_budget_estimate
from atomsieve.predict.interface import AnyPredictor
from atomsieve.predict.packing import Limit, pack, run_halving_on_oom
from atomsieve.predict.status import Status
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import ragged_index

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Results of S structures with N atoms, of the mean and of K members; K is 0 where members give nothing apart.

    Attributes
    ----------
    status : [S] uint8, `Status`. energy : [S] eV. energy_members : [K,S].
    forces : [N,3] eV/Angstrom. forces_members : [K,N,3]. stress : [S,3,3] eV/Angstrom^3. stress_members : [K,S,3,3].
    """

    status: NDArray[np.uint8]
    energy: Array
    energy_members: Array
    forces: Array | None = None
    forces_members: Array | None = None
    stress: Array | None = None
    stress_members: Array | None = None


@dataclass(frozen=True)
class Evaluator:
    """Evaluates structures of any number in batches within a budget.

    Attributes
    ----------
    predictor, head : what computes. limit : the budget of a batch, which shrinks where memory does not suffice.
    stopping : asked between two batches; raises to break the work off.
    """

    predictor: AnyPredictor
    head: str
    limit: Limit
    stopping: Callable[[], None]

    def evaluate(self, batch: StructureBatch, want: Collection[str]) -> Evaluation:
        """Evaluate structures; `want` is of "forces" and "stress". Structures that do not fit have their status."""
        many, atoms, members = len(batch), batch.n_atoms, self.count_members()
        asked = {"energy", *want} | ({"members"} if members and self._gives_members(want) else set())
        asked |= {"stress_members"} if {"members", "stress"} <= asked else set()
        apart = members if "members" in asked else 0
        forces, stress = "forces" in want, "stress" in want
        found = Evaluation(
            np.full(many, Status.OUT_OF_MEMORY, np.uint8),
            np.full(many, np.nan),
            np.full((apart, many), np.nan),
            np.full((atoms, 3), np.nan) if forces else None,
            np.full((apart, atoms, 3), np.nan) if forces else None,
            np.full((many, 3, 3), np.nan) if stress else None,
            np.full((apart, many, 3, 3), np.nan) if stress else None,
        )

        def compute(index: NDArray[np.int64]) -> None:
            self.stopping()
            own = batch.take(index)
            out = self.predictor(own, frozenset(asked), self.head)
            place = ragged_index(batch.ptr[:-1][index], own.counts)
            found.status[index], found.energy[index] = out.status, out.energy
            if apart and out.energy_members is not None:
                found.energy_members[:, index] = out.energy_members
            if found.forces is not None and found.forces_members is not None:
                found.forces[place] = out.forces
                if apart and out.forces_members is not None:
                    found.forces_members[:, place] = out.forces_members
            if found.stress is not None and found.stress_members is not None:
                found.stress[index] = out.stress
                if apart and out.stress_members is not None:
                    found.stress_members[:, index] = out.stress_members

        self._run(batch, compute)
        return found

    def relax(self, batch: StructureBatch, fmax: float, steps: int, *, cell: bool) -> RelaxResult:
        """Relax structures, as many at once as a batch holds; see `atomsieve.calculators.relax`.

        With `cell`, one that becomes another structure ends with a reason of its own.
        """
        limits = USUAL if cell else None
        parts: list[tuple[NDArray[np.int64], RelaxResult]] = []

        def compute(index: NDArray[np.int64]) -> None:
            self.stopping()
            own = batch.take(index)
            done = relax(self.predictor, own, fmax, steps, cell=cell, head=self.head, limits=limits)
            parts.append((index, done))

        lost = self._run(batch, compute)
        if lost:
            parts.append((np.array(lost, np.int64), _without_result(batch.take(lost), cell)))
        return _join(parts)

    def count_members(self) -> int:
        """Return the number K of members whose results differ; 0 of an ensemble of one."""
        return self.predictor.members if self.predictor.members > 1 else 0

    def _gives_members(self, want: Collection[str]) -> bool:
        return "forces" not in want or "forces_members" in self.predictor.capabilities.outputs

    def _run(self, batch: StructureBatch, compute: Callable[[NDArray[np.int64]], None]) -> list[int]:
        edges = edge_budget_estimate(batch, self.predictor.cutoff)
        lost: list[int] = []
        for index in pack(edges, batch.counts, self.limit.max_atoms, self.limit.max_edges):
            lost += run_halving_on_oom(compute, index, batch.counts, edges, self.limit)
        return lost


def _without_result(batch: StructureBatch, cell: bool) -> RelaxResult:
    """Return the result of structures that do not fit into memory alone."""
    many = len(batch)
    return RelaxResult(
        batch,
        np.full(many, np.nan),
        np.full((batch.n_atoms, 3), np.nan),
        np.full((many, 3, 3), np.nan) if cell else None,
        np.full(many, np.nan),
        np.zeros(many, bool),
        np.zeros(many, np.int64),
        np.full(many, Stop.FAILED, np.uint8),
        np.full(many, Status.OUT_OF_MEMORY, np.uint8),
    )


def _join(parts: list[tuple[NDArray[np.int64], RelaxResult]]) -> RelaxResult:
    """Return the results of parts in the order of their indices."""
    order = np.argsort(np.concatenate([index for index, _ in parts]), kind="stable")
    found = [result for _, result in parts]
    batch = StructureBatch.concatenate([r.batch for r in found])
    atoms = ragged_index(batch.ptr[:-1][order], batch.counts[order])
    stresses = [r.stress for r in found if r.stress is not None]
    return RelaxResult(
        batch.take(order),
        np.concatenate([r.energy for r in found])[order],
        np.concatenate([r.forces for r in found])[atoms],
        np.concatenate(stresses)[order] if stresses else None,
        np.concatenate([r.max_force for r in found])[order],
        np.concatenate([r.converged for r in found])[order],
        np.concatenate([r.steps for r in found])[order],
        np.concatenate([r.reason for r in found])[order],
        np.concatenate([r.status for r in found])[order],
    )


def deform(batch: StructureBatch, gradients: Array) -> StructureBatch:
    """Return every structure under every deformation gradient [D,3,3]: structure s, gradient d is number s * D + d.

    Atoms move along: vectors and positions become F v.
    """
    many, each = len(batch), len(gradients)
    out = batch.take(np.repeat(np.arange(many), each))
    of_structures = np.tile(gradients, (many, 1, 1))
    positions = np.einsum("nij,nj->ni", of_structures[out.structure_of_atom], np.asarray(out.positions, np.float64))
    return out.replace(positions=positions, cell=out.cell @ of_structures.swapaxes(1, 2))


def spread(values: Array) -> float:
    """Return the unbiased standard deviation of finite values [K]; NaN of fewer than two."""
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")
