"""Relaxation of many structures at once: the FIRE algorithm, for each structure on its own, with no loop over them.

The steps are those of `ase.optimize.FIRE` (Bitzek et al., PRL 97, 170201 (2006)) for each structure, with its default
parameters. With `cell=True` the variables are those of `ase.filters.FrechetCellFilter`: positions in the undeformed
cell and n_atoms times the logarithm L of the deformation exp(L), here always symmetric, so that cells do not rotate.
Structures that are done leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.lists import skin_list
from atomsieve.errors import UsageError
from atomsieve.predict import AnyPredictor, Prediction, Status
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import check_batch, ragged_index

if TYPE_CHECKING:
    from ase import Atoms

    from atomsieve.calculators.guard import Guard
    from atomsieve.calculators.lists import NoList
    from atomsieve.graphs import SkinList

Array = NDArray[np.float64]
DT, DT_MAX, MAX_STEP, N_MIN, F_INC, F_DEC, A_START, F_A = 0.1, 1.0, 0.2, 5, 1.1, 0.5, 0.1, 0.99
"""Parameters of FIRE as in ASE; a step is at most MAX_STEP (Angstrom) long, over all coordinates of a structure."""


class Stop(IntEnum):
    """Why a structure is no longer relaxed."""

    CONVERGED = 0
    STEPS = 1
    GUARD = 2
    FAILED = 3
    NOT_PERIODIC = 4

    @property
    def meaning(self) -> str:
        """One line for people."""
        return {
            Stop.CONVERGED: "forces (and stress) are below the limit",
            Stop.STEPS: "the number of steps was used up",
            Stop.GUARD: "the guard found a limit passed",
            Stop.FAILED: "the structure has no result; `status` says why",
            Stop.NOT_PERIODIC: "as it was given: it is not periodic along all three vectors, so its cell cannot relax",
        }[self]


@dataclass(frozen=True)
class RelaxResult:
    """What a relaxation leaves of S structures with N atoms, in input order.

    Attributes
    ----------
    batch : the structures as they are now; one that failed on the way is as it was when it last had a result. One with
        NOT_PERIODIC is as it was given, with the energy and forces there.
    energy : [S] eV. forces : [N,3] eV/Angstrom. stress : [S,3,3] eV/Angstrom^3, with cell=True. NaN where there
        never was a result.
    max_force : [S] eV/Angstrom, what is compared with fmax.
    converged : [S] bool. steps : [S], steps taken. reason : [S] uint8, `Stop`. status : [S] uint8, `Status`.
    """

    batch: StructureBatch
    energy: Array
    forces: Array
    stress: Array | None
    max_force: Array
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]
    reason: NDArray[np.uint8]
    status: NDArray[np.uint8]


def relax(
    predictor: AnyPredictor,
    batch: StructureBatch,
    fmax: float = 0.05,
    steps: int = 500,
    *,
    cell: bool = False,
    guard: Guard | None = None,
    head: str | None = None,
    skin: float | None = None,
) -> RelaxResult:
    """Relax the positions of every structure, and with `cell` their cells too.

    fmax : eV/Angstrom; done when no force is longer and, with `cell`, no row of the virial per atom (as in ASE).
    steps : at most so many for each structure.
    guard : looked at in every step; a structure that it stops stays where it is. Its head must be the one used.
    head : of the predictor; skin : Angstrom, see `atomsieve.graphs.SkinList`.

    Raises
    ------
    UsageError
        for an unknown head, values out of range, a guard for another head, or if the ensemble gives no forces or
        stress. A bad structure raises nothing: it gets a status.
    """
    if not isinstance(predictor, AnyPredictor):
        raise UsageError(f"relax wants a loaded predictor, Predictor.load('gfm/'), got {type(predictor).__name__}")
    check_batch(batch)
    if not fmax > 0 or steps < 0 or steps != int(steps):
        raise UsageError(f"fmax must be above 0 and steps a whole number, 0 or more, got fmax={fmax}, steps={steps}")
    for name in ("forces", "stress") if cell else ("forces",):
        if name not in predictor.outputs:
            raise UsageError(f"relaxation needs {name}, which this ensemble with backend {predictor.backend} lacks")
    run = _Run(predictor, batch, fmax, cell, guard, head, skin_list(predictor, skin))
    run.evaluate()
    for _ in range(int(steps)):
        if not len(run.active):
            break
        run.step()
        run.evaluate()
    return run.finish()


class _Run:
    """All that is known of a relaxation; arrays in `result` are of all structures, the others of the active ones."""

    def __init__(
        self,
        predictor: AnyPredictor,
        batch: StructureBatch,
        fmax: float,
        cell: bool,
        guard: Guard | None,
        head: str | None,
        build: SkinList | NoList,
    ) -> None:
        batch.validate()
        used = predictor.head if head is None else head
        if guard is not None and guard.head != used:
            raise UsageError(
                f"the guard watches head {guard.head!r}, but the relaxation uses {used!r}; give both the same head="
            )
        positions = np.array(batch.positions, np.float64)
        self.predictor, self.fmax, self.guard, self.head, self.build = predictor, fmax, guard, head, build
        self.cell = cell
        self.want = {"energy", "forces"} | ({"stress"} if cell else set())
        watched = set() if guard is None else {limit.needs for limit in guard.limits}
        self.want |= {"spread"} if watched else set()
        self.want |= {"force_spread"} if watched & {"forces_std", "sigma_forces"} else set()
        many, atoms = len(batch), batch.n_atoms
        self.result = RelaxResult(
            batch.replace(positions=positions, cell=np.array(batch.cell), energy=None, forces=None, stress=None,
                          has_energy=None, has_forces=None, has_stress=None),
            np.full(many, np.nan), np.full((atoms, 3), np.nan), np.full((many, 3, 3), np.nan) if cell else None,
            np.full(many, np.nan), np.zeros(many, bool), np.zeros(many, np.int64),
            np.full(many, Stop.STEPS, np.uint8), np.zeros(many, np.uint8),
        )  # fmt: skip
        self.active = np.arange(many)
        self.own = self.result.batch
        self.home = self.own.structure_of_atom
        self.atoms = np.arange(atoms)
        self.original, self.frame = self.own.cell.copy(), positions.copy()
        self.log_strain, self.cell_velocity = np.zeros((many, 3, 3)), np.zeros((many, 3, 3))
        self.velocity = np.zeros((atoms, 3))
        self.dt, self.alpha, self.downhill = np.full(many, DT), np.full(many, A_START), np.zeros(many, np.int64)
        self.forces, self.cell_forces = np.zeros((atoms, 3)), np.zeros((many, 3, 3))
        if cell:
            self._set_apart(np.asarray(~batch.pbc.all(1)))

    def _set_apart(self, loose: NDArray[np.bool_]) -> None:
        """Evaluate, once, the structures whose cells cannot be relaxed, and let them go; all are active."""
        if not loose.any():
            return
        result, index = self.result, np.flatnonzero(loose)
        found = self.predictor(self.own.take(index), {"energy", "forces"}, head=self.head, build=self.build)
        result.status[index] = found.status
        result.energy[index] = found.energy
        result.forces[loose[self.home]] = found.forces
        good = index[found.status == Status.OK]
        result.max_force[good] = self._largest(np.linalg.norm(result.forces, axis=1))[good]
        reason = np.full(len(loose), Stop.FAILED)
        reason[good] = Stop.NOT_PERIODIC
        self._leave(loose, reason)

    # -- one evaluation --------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Evaluate the active structures, note results, and let those go that are done."""
        if not len(self.active):
            return
        found = self.predictor(self.own, self.want, head=self.head, build=self.build)
        good = found.status == Status.OK
        self._note(found, good)
        forces = np.asarray(found.forces, np.float64)
        self.forces = forces
        longest = self._largest(np.linalg.norm(forces, axis=1))
        if self.cell:
            assert found.stress is not None
            self._pull_back(found.stress, good)
            longest = np.maximum(longest, np.linalg.norm(self.cell_forces, axis=2).max(1))
        self.result.max_force[self.active[good]] = longest[good]
        done = good & (longest < self.fmax)
        reason = np.where(done, Stop.CONVERGED, Stop.STEPS)
        if self.guard is not None:
            reason[self._guarded(found, good) & ~done] = Stop.GUARD
        reason[~good] = Stop.FAILED
        self._leave(reason != Stop.STEPS, reason)

    def _note(self, found: Prediction, good: NDArray[np.bool_]) -> None:
        """Write geometry and results of structures with a result into those of all."""
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

    def _pull_back(self, stress: Array, good: NDArray[np.bool_]) -> None:
        """Turn forces and stress into those on positions in the undeformed cell and on n_atoms * L.

        With F = exp(L) symmetric and W = volume * stress, dE/dF = (F^-1 W + W F^-1) / 2, and by Daleckii and Krein
        dE/dL = Q ((Q^T dE/dF Q) * g) Q^T with L = Q diag(l) Q^T, g_ij = (exp l_i - exp l_j) / (l_i - l_j).
        """
        value, vector = np.linalg.eigh(self.log_strain)
        strain = _spectral(vector, np.exp(value))
        inverse = _spectral(vector, np.exp(-value))
        virial = np.where(good[:, None, None], stress, 0) * np.abs(np.linalg.det(self.own.cell))[:, None, None]
        slope = 0.5 * (inverse @ virial + virial @ inverse)
        half = 0.5 * (value[:, :, None] - value[:, None, :])
        mean = np.exp(0.5 * (value[:, :, None] + value[:, None, :]))
        ratio = mean * np.where(np.abs(half) < 1e-6, 1 + half**2 / 6, np.sinh(half) / np.where(half == 0, 1, half))
        turned = vector.swapaxes(1, 2) @ slope @ vector * ratio
        self.cell_forces = -(vector @ turned @ vector.swapaxes(1, 2)) / np.maximum(self.own.counts, 1)[:, None, None]
        self.forces = np.einsum("ni,nij->nj", self.forces, strain[self.home])

    def _guarded(self, found: Prediction, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return [S]: active structures that the guard stops."""
        guard = self.guard
        assert guard is not None
        guard.checks += 1
        values = {limit.needs: np.asarray(getattr(found, limit.needs)) for limit in guard.limits}
        reasons = guard.judge(values, self.own.ptr, found.outside, good)
        stopped = np.zeros(len(good), bool)
        for s in np.flatnonzero([bool(r) for r in reasons]):
            where = f"structure {self.own.id[s]}, step {self.result.steps[self.active[s]]}"
            stopped[s] = guard.act(reasons[s], partial(self._frame, int(s)), where)
        return stopped

    def _frame(self, s: int) -> Atoms:
        """Return an active structure as it is now."""
        return self.own.slice(s, s + 1).to_ase()[0]

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Move the active structures by one step of FIRE."""
        forces, v = self.forces, self.velocity
        cell_forces, w = self.cell_forces, self.cell_velocity
        power = self._dot(forces, v, cell_forces, w)
        first = self.result.steps[self.active] == 0
        down = power > 0
        mix = np.where(down, self.alpha, 0)
        norm = np.sqrt(self._dot(v, v, w, w) / np.maximum(self._dot(forces, forces, cell_forces, cell_forces), 1e-300))
        keep, gain = np.where(down, 1 - mix, 0), mix * norm
        faster = down & (self.downhill > N_MIN)
        slower = ~down & ~first
        self.dt = np.where(faster, np.minimum(self.dt * F_INC, DT_MAX), np.where(slower, self.dt * F_DEC, self.dt))
        self.alpha = np.where(faster, self.alpha * F_A, np.where(down, self.alpha, A_START))
        self.downhill = np.where(down, self.downhill + 1, 0)
        here = self.home
        self.velocity = keep[here, None] * v + (gain + self.dt)[here, None] * forces
        self.cell_velocity = keep[:, None, None] * w + (gain + self.dt)[:, None, None] * cell_forces
        length = self.dt * np.sqrt(self._dot(self.velocity, self.velocity, self.cell_velocity, self.cell_velocity))
        scale = self.dt * np.minimum(1, MAX_STEP / np.maximum(length, 1e-300))
        self.frame = self.frame + scale[here, None] * self.velocity
        positions, cells = self.frame, self.own.cell
        if self.cell:
            self.log_strain = self.log_strain + (scale / self.own.counts)[:, None, None] * self.cell_velocity
            value, vector = np.linalg.eigh(self.log_strain)
            strain = _spectral(vector, np.exp(np.clip(value, -50, 50)))
            cells = self.original @ strain
            positions = np.einsum("ni,nij->nj", self.frame, strain[here])
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

    def _leave(self, gone: NDArray[np.bool_], reason: NDArray[np.int64] | Stop) -> None:
        """Take structures out of the active ones."""
        if not gone.any():
            return
        self.result.reason[self.active[gone]] = np.broadcast_to(reason, gone.shape)[gone]
        stay = np.flatnonzero(~gone)
        atoms = ragged_index(self.own.ptr[:-1][stay], self.own.counts[stay])
        self.own = self.own.take(stay)
        self.home = self.own.structure_of_atom
        for name in ("active", "original", "log_strain", "cell_velocity", "cell_forces", "dt", "alpha", "downhill"):
            setattr(self, name, getattr(self, name)[stay])
        for name in ("atoms", "frame", "velocity", "forces"):
            setattr(self, name, getattr(self, name)[atoms])

    def finish(self) -> RelaxResult:
        """Return the result; what is still active has used up its steps."""
        result = self.result
        np.copyto(result.converged, result.reason == Stop.CONVERGED)
        return result


def _spectral(vector: Array, value: Array) -> Array:
    """Return `Q diag(value) Q^T` of stacks of matrices."""
    return np.asarray((vector * value[:, None, :]) @ vector.swapaxes(1, 2))
