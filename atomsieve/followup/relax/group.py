"""A group of structures relaxed by one process: as many at once as a batch holds, each replaced when it is done.

Which structures are in a batch together is decided by the group and the options alone, and a group that was broken off
goes on from a state that holds everything. So its results are the same bytes, whoever computes it and in how many goes.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.fire import Fire
from atomsieve.calculators.guard import Guard
from atomsieve.calculators.relax_result import Stop
from atomsieve.followup.relax.options import RelaxOptions
from atomsieve.followup.relax.trajectories import Frames
from atomsieve.graphs.estimate import edge_budget_estimate
from atomsieve.predict import AnyPredictor, Status
from atomsieve.predict.packing import is_out_of_memory, release_memory
from atomsieve.screen.results.files import write_whole
from atomsieve.structures import StructureBatch

KEEP_SECONDS = 30.0
KEEP_STEPS = 25
"""A state is kept so often. With a skin steps count, as lists are found anew there, which changes the last bits."""
RECORD = ("energy_std", "sigma_energy", "distance", "outside")
Arrays = dict[str, NDArray[Any]]


@dataclass
class Batching:
    """The budget of a batch, which shrinks where memory does not suffice, and what was done."""

    max_atoms: int
    max_edges: int
    evaluations: int = 0
    atom_steps: int = 0
    shrunk: int = 0


@dataclass
class Group:
    """One group at work.

    Attributes
    ----------
    fire : the relaxation. waiting : structures to come, the largest first. turn : evaluations so far.
    frames : writes trajectories, or None. path : of the state.
    """

    fire: Fire
    batching: Batching
    path: Path
    frames: Frames | None = None
    waiting: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    turn: int = 0

    def run(self, stop: Callable[[], bool], left: Callable[[int], None]) -> bool:
        """Relax all of it; return False where `stop` became true before. `left` is told how many became done."""
        kept = time.monotonic()
        while len(self.fire.active) or len(self.waiting):
            stopping = stop()
            by_steps = self.fire.lists.skin > 0
            due = self.turn % KEEP_STEPS == 0 if by_steps else stopping or time.monotonic() - kept > KEEP_SECONDS
            if due and self.turn:
                self.fire.lists.clear()
                self.keep()
                kept = time.monotonic()
            if stopping:
                return False
            self.admit()
            done = self.evaluate()
            if done is None:
                continue
            if self.frames is not None:
                self.frames.note(self.fire, done)
            left(len(done))
            if len(self.fire.active):
                self.fire.step()
            self.turn += 1
        if self.frames is not None:
            self.frames.flush()
        return True

    # -- who is in the batch ---------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Take in those that wait, in their order, as long as they fit."""
        if not len(self.waiting):
            return
        whole, active = self.fire.result.batch, self.fire.active
        atoms = self.batching.max_atoms - whole.counts[active].sum()
        edges = self.batching.max_edges - self.edges[active].sum()
        fits = (np.cumsum(whole.counts[self.waiting]) <= atoms) & (np.cumsum(self.edges[self.waiting]) <= edges)
        many = int(np.argmin(fits)) if not fits.all() else len(fits)
        many = max(many, 0 if len(active) else 1)
        if many:
            self.fire.select(np.concatenate([active, self.waiting[:many]]))
            self.waiting = self.waiting[many:]

    def evaluate(self) -> NDArray[np.int64] | None:
        """Return who became done; None where memory did not suffice and the batch was made smaller."""
        fire, batching = self.fire, self.batching
        atoms = fire.own.n_atoms
        try:
            done = fire.evaluate()
        except Exception as error:  # every kind: which class says "out of memory" depends on the backend
            if not is_out_of_memory(error):
                raise
        else:
            batching.evaluations += 1
            batching.atom_steps += atoms
            return done
        release_memory()
        batching.shrunk += 1
        active = fire.active
        if len(active) == 1:
            fire.drop(np.ones(1, bool), Status.OUT_OF_MEMORY)
            return active
        half = len(active) // 2
        batching.max_atoms = int(fire.own.counts[:half].sum())
        self.waiting = np.concatenate([active[half:], self.waiting])
        fire.select(active[:half])
        return None

    @property
    def edges(self) -> NDArray[np.float64]:
        """Estimated edges of each structure, as it was at first."""
        if self._edges is None:
            self._edges = edge_budget_estimate(self.fire.result.batch, self.fire.predictor.cutoff)
        return self._edges

    _edges: NDArray[np.float64] | None = None

    # -- breaking off and going on ---------------------------------------------------------------------------------

    def keep(self) -> None:
        """Write the state."""
        sizes = {} if self.frames is None else self.frames.flush()
        notes = {
            "turn": self.turn,
            "said": self.fire.guard_reasons,
            "sizes": sizes,
            "max_atoms": self.batching.max_atoms,
        }
        state = self.fire.state() | {"waiting": self.waiting, "edges": self.edges}
        write_arrays(self.path, state | {"notes": np.array(json.dumps(notes))})

    def resume(self) -> bool:
        """Take over the state of an earlier process, if there is one that can be read."""
        state = read_arrays(self.path)
        if state is None:
            return False
        notes = json.loads(str(state["notes"]))
        self.fire.restore(state)
        self.fire.guard_reasons.update({int(s): text for s, text in notes["said"].items()})
        self.waiting, self._edges = state["waiting"], state["edges"]
        self.turn, self.batching.max_atoms = notes["turn"], notes["max_atoms"]
        if self.frames is not None:
            self.frames.resume({int(s): size for s, size in notes["sizes"].items()})
        return True


def begin(
    predictor: AnyPredictor,
    batch: StructureBatch,
    options: RelaxOptions,
    head: str,
    budget: tuple[int, int],
    path: Path,
    frames: Frames | None,
) -> Group:
    """Return a group, new or as an earlier process left it at `path`."""
    fire = Fire(
        predictor,
        batch,
        options.fmax,
        options.max_steps,
        cell=options.cell,
        guard=guard_of(predictor, options, head),
        head=head,
        skin=options.skin,
        record=RECORD,
        active=np.zeros(0, np.int64),
    )
    group = Group(fire, Batching(*budget), path, frames)
    if not group.resume():
        group.waiting = np.lexsort((np.arange(len(batch)), -group.edges, -batch.counts)).astype(np.int64)
        if frames is not None:
            frames.resume({})
    return group


def guard_of(predictor: AnyPredictor, options: RelaxOptions, head: str) -> Guard | None:
    """Return the guard that the options ask for."""
    if not options.guarded:
        return None
    return Guard(
        predictor,
        max_sigma_energy=options.max_sigma_energy,
        max_sigma_force=options.max_sigma_force,
        max_energy_std=options.max_energy_std,
        max_force_std=options.max_force_std,
        in_domain=options.guard,
        head=head,
    )


def finished(group: Group, start: StructureBatch) -> Arrays:
    """Return the results of a whole group as arrays: the structures as they are now, and what is said of them."""
    result = group.fire.result
    after = result.batch
    out: Arrays = {f"batch.{name}": array for name, array in after.present().items()}
    names = ("energy", "forces", "stress", "max_force", "steps", "reason", "status")
    out |= {name: getattr(result, name) for name in names if getattr(result, name) is not None}
    said = [group.fire.guard_reasons.get(s, "") if result.reason[s] == Stop.GUARD else "" for s in range(len(after))]
    return (
        out
        | group.fire.extra
        | {
            "moved": moved(start, after),
            "volume_before": np.abs(np.linalg.det(start.cell)),
            "said": np.array(said, str),
        }
    )


def rattled(start: StructureBatch, positions: NDArray[np.int64], width: float) -> StructureBatch:
    """Return structures displaced by normal random numbers of a width, Angstrom.

    positions : [S], places in the input, which alone decide the numbers. It is what leaves a saddle point of high
    symmetry, where forces are zero by symmetry alone.
    """
    if width == 0:
        return start
    draws = [np.random.default_rng(int(p)).normal(size=(n, 3)) for p, n in zip(positions, start.counts, strict=True)]
    return start.replace(positions=np.asarray(start.positions, np.float64) + width * np.concatenate(draws))


def moved(start: StructureBatch, after: StructureBatch) -> NDArray[np.float64]:
    """Return how far the atom that moved most went [S], Angstrom: beyond the deformation of its cell and the mean."""
    periodic = np.asarray(start.pbc.all(1))
    cells = np.where(periodic[:, None, None], start.cell, np.eye(3))
    strain = np.linalg.solve(cells, np.where(periodic[:, None, None], after.cell, np.eye(3)))
    home = start.structure_of_atom
    gone = after.positions - np.einsum("ni,nij->nj", np.asarray(start.positions, np.float64), strain[home])
    out, filled = np.zeros(len(start)), start.counts > 0
    if filled.any():
        first = start.ptr[:-1][filled]
        gone = gone - np.repeat(np.add.reduceat(gone, first) / start.counts[filled, None], start.counts[filled], axis=0)
        out[filled] = np.maximum.reduceat(np.linalg.norm(gone, axis=1), first)
    return out


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays into a file that is seen whole or not at all; the same arrays give the same bytes."""
    whole = io.BytesIO()
    np.savez(whole, **arrays)  # type: ignore[arg-type]
    write_whole(path, whole.getvalue())


def read_arrays(path: Path) -> Arrays | None:
    """Return the arrays of a file, None where there is none or it is damaged."""
    if not os.path.exists(path):
        return None
    whole = path.read_bytes()  # apart: what the disk refuses is no damage
    try:
        with np.load(io.BytesIO(whole), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except MemoryError:
        raise
    except Exception:  # every kind: which one depends on the place that is damaged
        return None
