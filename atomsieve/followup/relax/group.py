"""A group of structures relaxed by one process: as many at once as a batch holds, each replaced when it is done.

The group and the options alone decide which structures share a batch, and an interrupted group continues from a
complete state. So the bytes of its results depend neither on the process nor on interruptions.
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
from ase.units import GPa
from numpy.typing import NDArray

from atomsieve.calculators.guard import Guard
from atomsieve.calculators.holding import (
    Holding,
    find_lowest,
    hold_atoms,
    hold_axes,
    hold_symmetry,
    join_holdings,
)
from atomsieve.calculators.minimiser import Minimiser
from atomsieve.calculators.relax_result import Stop
from atomsieve.calculators.relaxation import find_optimizer
from atomsieve.calculators.structure_change import measure_displacement
from atomsieve.followup.relax.options import RelaxOptions
from atomsieve.followup.relax.outcome import measure_outcome
from atomsieve.followup.relax.trajectories import Frames
from atomsieve.graphs.estimate import edge_budget_estimate
from atomsieve.predict import AnyPredictor, Status
from atomsieve.predict.packing import is_out_of_memory, release_memory
from atomsieve.runs.output_folder import write_output
from atomsieve.structures import StructureBatch

KEEP_SECONDS = 30.0
KEEP_STEPS = 25
"""Intervals between two written states. With a skin, steps count: lists are computed again at a state, which changes
the last bits."""
RECORD = ("energy_std", "sigma_energy", "distance", "outside")
Arrays = dict[str, NDArray[Any]]


@dataclass
class Batching:
    """The budget of a batch, which shrinks where memory does not suffice, and counts of the work done."""

    max_atoms: int
    max_edges: int
    evaluations: int = 0
    atom_steps: int = 0
    shrunk: int = 0


@dataclass
class RelaxGroup:
    """One group that is being relaxed.

    Attributes
    ----------
    fire : the relaxation. waiting : structures to come, the largest first. turn : evaluations so far.
    frames : writes trajectories, or None. path : of the state.
    """

    fire: Minimiser
    batching: Batching
    path: Path
    frames: Frames | None = None
    waiting: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    turn: int = 0

    def run(self, stop: Callable[[], bool], left: Callable[[int], None]) -> bool:
        """Relax all structures; return False if `stop` became true before. `left` receives how many became done."""
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

    # -- structures of the batch -----------------------------------------------------------------------------------

    def admit(self) -> None:
        """Move waiting structures into the batch, in their order, as long as they fit."""
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
        """Return the structures that became done; None where memory did not suffice and the batch was made smaller."""
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
        """Estimated edges of each structure before the relaxation."""
        if self._edges is None:
            self._edges = edge_budget_estimate(self.fire.result.batch, self.fire.predictor.cutoff)
        return self._edges

    _edges: NDArray[np.float64] | None = None

    # -- interruption and continuation -----------------------------------------------------------------------------

    def keep(self) -> None:
        """Write the state."""
        sizes = {} if self.frames is None else self.frames.flush()
        notes = {
            "turn": self.turn,
            "said": self.fire.guard_reasons,
            "changes": self.fire.change_reasons,
            "sizes": sizes,
            "max_atoms": self.batching.max_atoms,
        }
        state = self.fire.state() | {"waiting": self.waiting, "edges": self.edges}
        write_arrays(self.path, state | {"notes": np.array(json.dumps(notes))})

    def resume(self) -> bool:
        """Load the state of an earlier process; return False if there is none that can be read."""
        state = read_arrays(self.path)
        if state is None:
            return False
        notes = json.loads(str(state["notes"]))
        self.fire.restore(state)
        self.fire.guard_reasons.update({int(s): text for s, text in notes["said"].items()})
        self.fire.change_reasons.update({int(s): text for s, text in notes.get("changes", {}).items()})
        self.waiting, self._edges = state["waiting"], state["edges"]
        self.turn, self.batching.max_atoms = notes["turn"], notes["max_atoms"]
        if self.frames is not None:
            self.frames.resume({int(s): size for s, size in notes["sizes"].items()})
        return True


def begin_group(
    predictor: AnyPredictor,
    batch: StructureBatch,
    options: RelaxOptions,
    head: str,
    budget: tuple[int, int],
    path: Path,
    frames: Frames | None,
) -> RelaxGroup:
    """Return a group, new or from the state that an earlier process wrote to `path`."""
    fire = find_optimizer(options.optimizer)(
        predictor,
        batch,
        options.fmax,
        options.max_steps,
        cell=options.cell,
        guard=make_guard(predictor, options, head),
        head=head,
        skin=options.skin,
        record=RECORD,
        active=np.zeros(0, np.int64),
        limits=options.limits,
        holding=make_holding(batch, options),
        pressure=options.pressure * GPa,
    )
    group = RelaxGroup(fire, Batching(*budget), path, frames)
    if not group.resume():
        group.waiting = np.lexsort((np.arange(len(batch)), -group.edges, -batch.counts)).astype(np.int64)
        if frames is not None:
            frames.resume({})
    return group


def make_holding(batch: StructureBatch, options: RelaxOptions) -> Holding | None:
    """Return what the options ask to hold fast; None for nothing."""
    parts = []
    if options.keep_symmetry:
        parts.append(hold_symmetry(batch, options.keep_symmetry))
    if options.cell_axes:
        parts.append(hold_axes(len(batch), options.cell_axes))
    if options.fix_depth:
        parts.append(hold_atoms(find_lowest(batch, options.fix_depth)))
    return join_holdings(parts)


def make_guard(predictor: AnyPredictor, options: RelaxOptions, head: str) -> Guard | None:
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


def collect_arrays(group: RelaxGroup, start: StructureBatch) -> Arrays:
    """Return the results of a finished group as arrays: the relaxed structures, and the values of their table rows."""
    result = group.fire.result
    after = result.batch
    out: Arrays = {f"batch.{name}": array for name, array in after.present().items()}
    names = ("energy", "forces", "stress", "max_force", "steps", "reason", "status")
    out |= {name: getattr(result, name) for name in names if getattr(result, name) is not None}
    many = range(len(after))
    said = [group.fire.guard_reasons.get(s, "") if result.reason[s] == Stop.GUARD else "" for s in many]
    passed = [group.fire.change_reasons.get(s, "") for s in many]
    return (
        out
        | group.fire.extra
        | measure_outcome(start, after, result.energy)
        | {
            "passed": np.array(passed, str),
            "moved": measure_displacement(start, after),
            "volume_before": np.abs(np.linalg.det(start.cell)),
            "said": np.array(said, str),
        }
    )


def rattle(start: StructureBatch, positions: NDArray[np.int64], width: float) -> StructureBatch:
    """Return structures displaced by normal random numbers of a width, Angstrom.

    positions : [S], places in the input, which alone decide the numbers. The displacements leave saddle points of high
    symmetry, where forces vanish by symmetry.
    """
    if width == 0:
        return start
    draws = [np.random.default_rng(int(p)).normal(size=(n, 3)) for p, n in zip(positions, start.counts, strict=True)]
    return start.replace(positions=np.asarray(start.positions, np.float64) + width * np.concatenate(draws))


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays to a file atomically; the same arrays give the same bytes."""
    whole = io.BytesIO()
    np.savez(whole, **arrays)  # type: ignore[arg-type]
    write_output(path, whole.getvalue())


def read_arrays(path: Path) -> Arrays | None:
    """Return the arrays of a file, None where there is none or it is damaged."""
    if not os.path.exists(path):
        return None
    whole = path.read_bytes()  # outside of `try`: an error of the disk is no damage
    try:
        with np.load(io.BytesIO(whole), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except MemoryError:
        raise
    except Exception:  # every kind: which one depends on the place that is damaged
        return None
