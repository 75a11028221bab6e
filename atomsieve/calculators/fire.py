"""The FIRE algorithm for many structures at once, each on its own, with no loop over them.

The steps are those of `ase.optimize.FIRE` (Bitzek et al., PRL 97, 170201 (2006)) for each structure, with its default
parameters. With `cell=True` the variables are those of `ase.filters.FrechetCellFilter`: positions in the undeformed
cell and n_atoms times the logarithm L of the deformation exp(L), here always symmetric, so that cells do not rotate.
Of all structures those that are active are evaluated and moved; which they are may change between steps.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.verlet import keep_lists
from atomsieve.errors import UsageError
from atomsieve.predict import AnyPredictor, Prediction, Status
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import check_batch, ragged_index

if TYPE_CHECKING:
    from ase import Atoms

    from atomsieve.calculators.guard import Guard

Array = NDArray[np.float64]
DT, DT_MAX, MAX_STEP, N_MIN, F_INC, F_DEC, A_START, F_A = 0.1, 1.0, 0.2, 5, 1.1, 0.5, 0.1, 0.99
"""Parameters of FIRE as in ASE; a step is at most MAX_STEP (Angstrom) long, over all coordinates of a structure."""
OF_STRUCTURES = ("cell", "original", "log_strain", "cell_velocity", "dt", "alpha", "downhill")
OF_ATOMS = ("positions", "frame", "velocity")
"""What is known of each structure and atom between one evaluation and the next, beside the results."""
RESULTS = ("energy", "forces", "stress", "max_force", "converged", "steps", "reason", "status")


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


class Fire:
    """A relaxation at work; arrays in `result` are of all S structures, the others of the active ones.

    Parameters
    ----------
    predictor, batch, fmax, steps, cell, guard, head, skin : as for `relax`.
    record : names of what else is noted of each structure: of "energy_std", "sigma_energy", "distance", "outside".
    active : the structures to begin with; None takes all.

    Attributes
    ----------
    result : as far as it is known. extra : by the names of `record`, [S]; NaN, or 0, where there is no result.
    active : indices [A] of the structures that are moved; `own` holds them as they are now.
    said : why the guard stopped a structure, by its index. build : makes the graphs.

    Raises
    ------
    UsageError
        as `relax`.
    """

    original: Array
    frame: Array
    log_strain: Array
    cell_velocity: Array
    velocity: Array
    dt: Array
    alpha: Array
    downhill: NDArray[np.int64]

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
    ) -> None:
        check(predictor, fmax, steps, cell=cell, guard=guard, head=head)
        check_batch(batch)
        batch.validate()
        self.predictor, self.fmax, self.limit, self.guard = predictor, fmax, int(steps), guard
        self.head, self.lists, self.cell = head, keep_lists(predictor, skin), cell
        self.want = _wanted(cell, guard, record)
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
        self.said: dict[int, str] = {}
        self._kept: dict[str, NDArray[Any]] = {
            "cell": batch.cell.copy(),
            "original": batch.cell.copy(),
            "positions": positions.copy(),
            "frame": positions.copy(),
            "log_strain": np.zeros((many, 3, 3)),
            "cell_velocity": np.zeros((many, 3, 3)),
            "velocity": np.zeros((atoms, 3)),
            "dt": np.full(many, DT),
            "alpha": np.full(many, A_START),
            "downhill": np.zeros(many, np.int64),
        }
        self._load(np.arange(many) if active is None else np.asarray(active, np.int64))

    # -- which are active ------------------------------------------------------------------------------------------

    def select(self, active: NDArray[np.int64]) -> None:
        """Go on with the structures `active`, in this order, each as it was left; the others stay as they are.

        To be called before `evaluate`, which makes forces for what is active then.
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
        for name in OF_STRUCTURES[1:]:
            setattr(self, name, self._kept[name][active])
        for name in OF_ATOMS[1:]:
            setattr(self, name, self._kept[name][self.atoms])
        self.forces, self.cell_forces = np.zeros((len(self.atoms), 3)), np.zeros((len(active), 3, 3))

    def _store(self) -> None:
        for name in OF_STRUCTURES:
            self._kept[name][self.active] = self.own.cell if name == "cell" else getattr(self, name)
        for name in OF_ATOMS:
            self._kept[name][self.atoms] = self.own.positions if name == "positions" else getattr(self, name)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that a relaxation of the same batch needs to go on from here, by name. Take it before `evaluate`.

        What the guard said is not in it.
        """
        self._store()
        result = {name: getattr(self.result, name) for name in RESULTS if getattr(self.result, name) is not None}
        geometry = {"positions": self.result.batch.positions, "cell": self.result.batch.cell}
        parts = {"kept": self._kept, "result": result, "batch": geometry, "extra": self.extra}
        named = {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        return named | {"active": self.active}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from a state of a relaxation of the same batch."""
        for key, own in self.state().items():
            if key != "active":
                own[...] = state[key]
        self._load(np.asarray(state["active"], np.int64))

    # -- one evaluation --------------------------------------------------------------------------------------------

    def evaluate(self) -> NDArray[np.int64]:
        """Evaluate the active structures, note results, and let go of those that are done: their indices are returned.

        With `cell`, a structure that is not periodic along all three vectors is done: it has its energy and forces.
        """
        if not len(self.active):
            return self.active
        found = self.predictor(self.own, self.want, head=self.head, build=self.lists.build)
        good = found.status == Status.OK
        fixed = np.asarray(~self.own.pbc.all(1)) if self.cell else np.zeros(len(good), bool)
        self._note(found, good)
        self.forces = np.asarray(found.forces, np.float64)
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
            stopped = self._guarded(found, good & ~fixed) & ~done
            reason[stopped] = Stop.GUARD
        reason[fixed] = Stop.NOT_PERIODIC
        reason[~good] = Stop.FAILED
        return self._leave((reason != Stop.STEPS) | spent, reason)

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
        for name, values in self.extra.items():
            if (given := getattr(found, name)) is not None:
                values[index] = given[good]

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
            stopped[s] = guard.act(reasons[s], partial(self._image, int(s)), where)
            if stopped[s]:
                self.said[int(self.active[s])] = "; ".join(reasons[s])
        return stopped

    def _image(self, s: int) -> Atoms:
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

    def drop(self, gone: NDArray[np.bool_], status: Status) -> None:
        """Let go of active structures [A] that can have no result, for a reason that the caller knows."""
        self.result.status[self.active[gone]] = status
        self._leave(gone, np.full(len(gone), Stop.FAILED))

    def _leave(self, gone: NDArray[np.bool_], reason: NDArray[np.int64]) -> NDArray[np.int64]:
        """Take structures out of the active ones; return their indices."""
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


def check(
    predictor: AnyPredictor, fmax: float, steps: int, *, cell: bool, guard: Guard | None, head: str | None
) -> None:
    """Refuse what `relax` refuses."""
    if not isinstance(predictor, AnyPredictor):
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


def _wanted(cell: bool, guard: Guard | None, record: Collection[str]) -> set[str]:
    """Return the properties to ask the predictor for."""
    want = {"energy", "forces"} | ({"stress"} if cell else set())
    watched = set() if guard is None else {limit.needs for limit in guard.limits}
    want |= {"spread"} if watched or {"energy_std", "sigma_energy"} & set(record) else set()
    return want | ({"force_spread"} if watched & {"forces_std", "sigma_forces"} else set())


def _spectral(vector: Array, value: Array) -> Array:
    """Return `Q diag(value) Q^T` of stacks of matrices."""
    return np.asarray((vector * value[:, None, :]) @ vector.swapaxes(1, 2))
