"""Minimisation of many structures at once, vectorised over structures: all but the step that an optimiser takes.

With `cell=True` the variables are those of `ase.filters.FrechetCellFilter`: positions in the undeformed cell and
n_atoms times the logarithm L of the deformation exp(L), here always symmetric, so that cells do not rotate. Only the
active structures are evaluated and moved; the caller may change which are active between two steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.change_limits import ChangeLimits
from atomsieve.calculators.holding import Holding
from atomsieve.calculators.relax_result import RelaxResult, Stop
from atomsieve.calculators.structure_change import measure_change
from atomsieve.calculators.verlet import keep_lists
from atomsieve.errors import UsageError
from atomsieve.predict import AnyPredictor, Prediction, Status
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import check_batch, ragged_index

if TYPE_CHECKING:
    from ase import Atoms

    from atomsieve.calculators.guard import Guard

Array = NDArray[np.float64]
RESULTS = ("energy", "forces", "stress", "max_force", "converged", "steps", "reason", "status")


class Minimiser(ABC):
    """A running relaxation. Arrays in `result` and `extra` hold all S structures, all other arrays the active ones.

    Parameters
    ----------
    predictor, batch, fmax, steps, cell, guard, head, skin, limits, holding, pressure : as for `relax`.
    record : further outputs to keep for each structure: of "energy_std", "sigma_energy", "distance", "outside".
    active : the structures that are active first; None takes all.

    Attributes
    ----------
    result : the result so far. extra : by the names of `record`, [S]; NaN, or 0, where there is no result.
    active : indices [A] of the active structures; `own` holds their present geometries.
    guard_reasons : why the guard stopped a structure, by its index. change_reasons : likewise the limits that its
    change passed. first_outside : [S], reasons against the domain in the first evaluation.
    lists : neighbour lists kept between steps.

    Raises
    ------
    UsageError
        as `relax`.
    """

    original: Array
    frame: Array
    log_strain: Array
    of_structures: ClassVar[tuple[str, ...]] = ("cell", "original", "log_strain")
    of_atoms: ClassVar[tuple[str, ...]] = ("positions", "frame")
    """State of each structure and atom that is kept between two evaluations, besides the results."""

    def __init__(
        self,
        predictor: AnyPredictor,
        batch: StructureBatch,
        fmax: float,
        steps: int,
        *,
        cell: bool = False,
        guard: Guard | None = None,
        head: str | None = None,
        skin: float | None = None,
        record: Collection[str] = (),
        active: NDArray[np.int64] | None = None,
        limits: ChangeLimits | None = None,
        holding: Holding | None = None,
        pressure: float = 0.0,
    ) -> None:
        check_relaxation(predictor, fmax, steps, cell=cell, guard=guard, head=head)
        check_batch(batch)
        batch.validate()
        self.predictor, self.fmax, self.limit, self.guard = predictor, fmax, int(steps), guard
        self.head, self.lists, self.cell = head, keep_lists(predictor, skin), cell
        self.want = _properties_for(cell, guard, record)
        many, atoms = len(batch), batch.n_atoms
        positions = np.array(batch.positions, np.float64)
        self.result = RelaxResult(
            batch.replace(
                positions=positions,
                cell=np.array(batch.cell),
                energy=None,
                forces=None,
                stress=None,
                has_energy=None,
                has_forces=None,
                has_stress=None,
            ),
            np.full(many, np.nan),
            np.full((atoms, 3), np.nan),
            np.full((many, 3, 3), np.nan) if cell else None,
            np.full(many, np.nan),
            np.zeros(many, bool),
            np.zeros(many, np.int64),
            np.full(many, Stop.STEPS, np.uint8),
            np.zeros(many, np.uint8),
        )
        self.extra: dict[str, NDArray[Any]] = {
            name: np.zeros(many, np.uint8) if name == "outside" else np.full(many, np.nan) for name in record
        }
        self.limits = limits if limits is not None and limits.watched else None
        self.start, self.pressure = batch, pressure
        self.holding = Holding() if holding is None else holding
        self.first_outside = np.zeros(many, np.uint8)
        self.guard_reasons: dict[int, str] = {}
        self.change_reasons: dict[int, str] = {}
        self._kept: dict[str, NDArray[Any]] = {
            "cell": batch.cell.copy(),
            "original": batch.cell.copy(),
            "positions": positions.copy(),
            "frame": positions.copy(),
            "log_strain": np.zeros((many, 3, 3)),
            **self._begin(many, atoms),
        }
        self._load(np.arange(many) if active is None else np.asarray(active, np.int64))

    # -- which are active ------------------------------------------------------------------------------------------

    def select(self, active: NDArray[np.int64]) -> None:
        """Make the structures `active` the active ones, in this order; each continues from its kept state.

        Call it before `evaluate`, which computes the forces of the structures that are active then.
        """
        self._store()
        self._load(np.asarray(active, np.int64))

    def _load(self, active: NDArray[np.int64]) -> None:
        whole = self.result.batch
        self.active = active
        self.atoms = ragged_index(whole.ptr[:-1][active], whole.counts[active])
        self.own = whole.take(active).replace(
            positions=self._kept["positions"][self.atoms], cell=self._kept["cell"][active]
        )
        self.home = self.own.structure_of_atom
        for name in self.of_structures[1:]:
            setattr(self, name, self._kept[name][active])
        for name in self.of_atoms[1:]:
            setattr(self, name, self._kept[name][self.atoms])
        self.forces, self.cell_forces = np.zeros((len(self.atoms), 3)), np.zeros((len(active), 3, 3))
        self._held = self.holding.take(active, self.atoms)

    def _store(self) -> None:
        for name in self.of_structures:
            self._kept[name][self.active] = self.own.cell if name == "cell" else getattr(self, name)
        for name in self.of_atoms:
            self._kept[name][self.atoms] = self.own.positions if name == "positions" else getattr(self, name)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by which `restore` continues a relaxation of the same batch. Call it before `evaluate`.

        The reasons of the guard and of the limits are not among them.
        """
        self._store()
        result = {name: getattr(self.result, name) for name in RESULTS if getattr(self.result, name) is not None}
        geometry = {"positions": self.result.batch.positions, "cell": self.result.batch.cell}
        begun = {"outside": self.first_outside}
        parts = {"kept": self._kept, "result": result, "batch": geometry, "extra": self.extra, "first": begun}
        named = {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        return named | {"active": self.active}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from the `state` of a relaxation of the same batch; arrays that an older version lacks stay 0."""
        for key, own in self.state().items():
            if key != "active" and key in state:
                own[...] = state[key]
        self._load(np.asarray(state["active"], np.int64))

    # -- one evaluation --------------------------------------------------------------------------------------------

    def evaluate(self) -> NDArray[np.int64]:
        """Evaluate the active structures, record results, and deactivate those that are done; return their indices.

        With `cell`, a structure that is not periodic along all three vectors is done after its first evaluation.
        """
        if not len(self.active):
            return self.active
        found = self.predictor(self.own, self.want, head=self.head, build=self.lists.build)
        good = found.status == Status.OK
        fixed = np.asarray(~self.own.pbc.all(1)) if self.cell else np.zeros(len(good), bool)
        self._record(found, good)
        assert found.forces is not None
        self.forces = self._held.hold_forces(np.where(good[self.home, None], found.forces, 0.0))
        longest = self._largest(np.linalg.norm(self.forces, axis=1))
        if self.cell:
            assert found.stress is not None
            self._pull_back(found.stress, good & ~fixed)
            rows = np.linalg.norm(self.cell_forces, axis=2).max(1)
            longest = np.where(fixed, longest, np.maximum(longest, rows))
        self.result.max_force[self.active[good]] = longest[good]
        done = good & (longest < self.fmax)
        spent = self.result.steps[self.active] >= self.limit
        reason = np.where(done, Stop.CONVERGED, Stop.STEPS)
        if self.guard is not None:
            stopped = self._apply_guard(found, good & ~fixed) & ~done
            reason[stopped] = Stop.GUARD
        if self.limits is not None:
            self._apply_limits(found, good & ~fixed, spent, reason)
        reason[fixed] = Stop.NOT_PERIODIC
        reason[~good] = Stop.FAILED
        return self._leave((reason != Stop.STEPS) | spent, reason)

    def _record(self, found: Prediction, good: NDArray[np.bool_]) -> None:
        """Copy geometry and results of the `good` active structures into `result` and `extra`."""
        result, index = self.result, self.active[good]
        result.status[self.active] = found.status
        atoms, kept = self.atoms[good[self.home]], good[self.home]
        result.batch.positions[atoms] = self.own.positions[kept]
        result.batch.cell[index] = self.own.cell[good]
        result.energy[index] = found.energy[good]
        assert found.forces is not None
        result.forces[atoms] = found.forces[kept]
        if result.stress is not None and found.stress is not None:
            result.stress[index] = found.stress[good]
        for name, values in self.extra.items():
            if (given := getattr(found, name)) is not None:
                values[index] = given[good]

    def _pull_back(self, stress: Array, good: NDArray[np.bool_]) -> None:
        """Turn forces and stress into those on positions in the undeformed cell and on n_atoms * L.

        With F = exp(L) symmetric and W = volume * stress, dE/dF = (F^-1 W + W F^-1) / 2, and by Daleckii and Krein
        dE/dL = Q ((Q^T dE/dF Q) * g) Q^T with L = Q diag(l) Q^T, g_ij = (exp l_i - exp l_j) / (l_i - l_j).
        A pressure p adds p * V to the energy, so p to the stress.
        """
        value, vector = np.linalg.eigh(self.log_strain)
        strain = _spectral(vector, np.exp(value))
        inverse = _spectral(vector, np.exp(-value))
        total = np.where(good[:, None, None], stress + self.pressure * np.eye(3), 0)
        virial = total * np.abs(np.linalg.det(self.own.cell))[:, None, None]
        slope = 0.5 * (inverse @ virial + virial @ inverse)
        half = 0.5 * (value[:, :, None] - value[:, None, :])
        mean = np.exp(0.5 * (value[:, :, None] + value[:, None, :]))
        ratio = mean * np.where(np.abs(half) < 1e-6, 1 + half**2 / 6, np.sinh(half) / np.where(half == 0, 1, half))
        turned = vector.swapaxes(1, 2) @ slope @ vector * ratio
        forces = -(vector @ turned @ vector.swapaxes(1, 2)) / np.maximum(self.own.counts, 1)[:, None, None]
        self.cell_forces = self._held.hold_cells(forces)
        self.forces = np.einsum("ni,nij->nj", self.forces, strain[self.home])

    def _apply_guard(self, found: Prediction, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Let the guard check the active structures; return [A], whether it stops each."""
        guard = self.guard
        assert guard is not None
        guard.checks += 1
        values = {limit.needs: np.asarray(getattr(found, limit.needs)) for limit in guard.limits}
        reasons = guard.judge(values, self.own.ptr, found.outside, good)
        stopped = np.zeros(len(good), bool)
        for s in np.flatnonzero([bool(r) for r in reasons]):
            where = f"structure {self.own.id[s]}, step {self.result.steps[self.active[s]]}"
            stopped[s] = guard.act(reasons[s], partial(self._image, int(s)), where)
            if stopped[s]:
                self.guard_reasons[int(self.active[s])] = "; ".join(reasons[s])
        return stopped

    def _apply_limits(
        self, found: Prediction, good: NDArray[np.bool_], spent: NDArray[np.bool_], reason: NDArray[np.int64]
    ) -> None:
        """Change `reason` [A] of the structures whose volume passed a limit now, and of those that end beyond one."""
        limits = self.limits
        assert limits is not None
        begin = self.result.steps[self.active] == 0
        self.first_outside[self.active[begin]] = found.outside[begin]
        grown = limits.judge_volumes(np.trace(self.log_strain, axis1=1, axis2=2))
        leaves = (reason != Stop.STEPS) | spent | (grown != Stop.CONVERGED)
        ends = np.flatnonzero(good & leaves & (reason != Stop.GUARD))
        if not len(ends):
            return
        chosen = self.active[ends]
        change = measure_change(self.start.take(chosen), self.own.take(ends), np.ones(len(ends), bool))
        judged, texts = limits.judge_ends(change, found.outside[ends] & ~self.first_outside[chosen])
        passed = judged != Stop.CONVERGED
        reason[ends[passed]] = judged[passed]
        for s, text in zip(chosen[passed].tolist(), np.array(texts, object)[passed], strict=True):
            self.change_reasons[s] = str(text)

    def _image(self, s: int) -> Atoms:
        """Return the present geometry of an active structure."""
        return self.own.slice(s, s + 1).to_ase()[0]

    # -- one step --------------------------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, many: int, atoms: int) -> dict[str, NDArray[Any]]:
        """Return the optimiser's own state of S structures and N atoms, by the further names of `of_...`."""

    @abstractmethod
    def step(self) -> None:
        """Move the active structures by one step."""

    def _move(self, frame: Array, log_strain: Array) -> None:
        """Take new variables of the active structures, and count a step. frame : [N,3]. log_strain : [S,3,3]."""
        self.frame = frame
        positions, cells = frame, self.own.cell
        if self.cell:
            self.log_strain = log_strain
            value, vector = np.linalg.eigh(log_strain)
            strain = _spectral(vector, np.exp(np.clip(value, -50, 50)))
            cells = self.original @ strain
            positions = np.einsum("ni,nij->nj", frame, strain[self.home])
        self.own = self.own.replace(positions=positions, cell=cells)
        self.result.steps[self.active] += 1

    def _dot(self, a: Array, b: Array, c: Array, d: Array) -> Array:
        """Return a.b + c.d of each structure [S]; a, b : [N,3], c, d : [S,3,3]."""
        of_atoms = np.add.reduceat(np.einsum("ni,ni->n", a, b), self.own.ptr[:-1])
        return np.asarray(of_atoms + np.einsum("sij,sij->s", c, d))

    def _largest(self, of_atoms: Array) -> Array:
        """Return the largest value of the atoms of each structure; infinity where there are none."""
        out = np.full(len(self.own), np.inf)
        filled = self.own.counts > 0
        if filled.any():
            out[filled] = np.maximum.reduceat(of_atoms, self.own.ptr[:-1][filled])
        return out

    # -- leaving ---------------------------------------------------------------------------------------------------

    def drop(self, gone: NDArray[np.bool_], status: Status) -> None:
        """Deactivate the active structures marked in `gone` [A] as failed, with a status that the caller found."""
        self.result.status[self.active[gone]] = status
        self._leave(gone, np.full(len(gone), Stop.FAILED))

    def _leave(self, gone: NDArray[np.bool_], reason: NDArray[np.int64]) -> NDArray[np.int64]:
        """Deactivate the structures marked in `gone` [A]; return their indices."""
        left = self.active[gone]
        if not len(left):
            return left
        self.result.reason[left] = reason[gone]
        self.result.converged[left] = reason[gone] == Stop.CONVERGED
        stay = np.flatnonzero(~gone)
        kept = ragged_index(self.own.ptr[:-1][stay], self.own.counts[stay])
        forces, cell_forces = self.forces[kept], self.cell_forces[stay]
        self._store()
        self._load(self.active[stay])
        self.forces, self.cell_forces = forces, cell_forces
        return left


def check_relaxation(
    predictor: AnyPredictor, fmax: float, steps: int, *, cell: bool, guard: Guard | None, head: str | None
) -> None:
    """Raise UsageError for parameters that do not fit the predictor; see `relax`."""
    if isinstance(predictor, str | Path):
        raise UsageError(f"relax wants a loaded predictor, Predictor.load('gfm/'), got {type(predictor).__name__}")
    if not fmax > 0 or steps < 0 or steps != int(steps):
        raise UsageError(f"fmax must be above 0 and steps a whole number, 0 or more, got fmax={fmax}, steps={steps}")
    for name in ("forces", "stress") if cell else ("forces",):
        if name not in predictor.capabilities.outputs:
            raise UsageError(f"relaxation needs {name}, which this ensemble with backend {predictor.backend} lacks")
    used = predictor.head if head is None else head
    if guard is not None and guard.head != used:
        raise UsageError(
            f"the guard watches head {guard.head!r}, but the relaxation uses {used!r}; give both the same head="
        )


def _properties_for(cell: bool, guard: Guard | None, record: Collection[str]) -> set[str]:
    """Return the properties to ask the predictor for."""
    want = {"energy", "forces"} | ({"stress"} if cell else set())
    watched = set() if guard is None else {limit.needs for limit in guard.limits}
    want |= {"spread"} if watched or {"energy_std", "sigma_energy"} & set(record) else set()
    return want | ({"force_spread"} if watched & {"forces_std", "sigma_forces"} else set())


def _spectral(vector: Array, value: Array) -> Array:
    """Return `Q diag(value) Q^T` of stacks of matrices."""
    return np.asarray((vector * value[:, None, :]) @ vector.swapaxes(1, 2))
