"""A group of structures: relaxed together, distorted, evaluated in shared batches, and taken apart again."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.relax_result import RelaxResult, Stop
from atomsieve.predict.status import Status
from atomsieve.properties.elasticity import find_elasticity, list_deformations
from atomsieve.properties.equation_of_state import find_equation, list_scalings
from atomsieve.properties.evaluation import Array, Evaluation, Evaluator, deform
from atomsieve.properties.options import PropertyOptions
from atomsieve.properties.outcome import Outcome, Problem
from atomsieve.properties.phonons import choose_supercell, displace, find_phonons
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import ragged_index

log = logging.getLogger(__name__)


def compute_group(
    evaluator: Evaluator, batch: StructureBatch, options: PropertyOptions
) -> tuple[StructureBatch, list[Outcome]]:
    """Return the structures for which properties were computed, and what was found for each, in input order."""
    present, outcomes = prepare(evaluator, batch, options)
    good = np.flatnonzero([not o.problems for o in outcomes])
    own = present.take(good)
    if len(good):
        for name in options.what:
            for s, found in zip(good.tolist(), METHODS[name](evaluator, own, options), strict=True):
                outcomes[s].values |= found.values
                outcomes[s].details |= found.details
                outcomes[s].problems += found.problems
    return present, outcomes


def prepare(
    evaluator: Evaluator, batch: StructureBatch, options: PropertyOptions
) -> tuple[StructureBatch, list[Outcome]]:
    """Relax the structures unless they are to be taken as given; a problem marks those that stay without properties."""
    outcomes = [Outcome() for _ in range(len(batch))]
    periodic = batch.pbc.all(1)
    for s in np.flatnonzero(~periodic).tolist():
        pbc = "".join("TF"[not p] for p in batch.pbc[s])
        text = f"periodic along {pbc}; cells are deformed and phonons computed for crystals, periodic along all vectors"
        outcomes[s].problems.append((Problem.NOT_PERIODIC, text))
    index = np.flatnonzero(periodic)
    if not len(index):
        return batch, outcomes
    given = batch.take(index)
    done = evaluator.relax(given, options.fmax, options.max_steps if options.relax else 0, cell=True)
    merged = _put(batch, index, done.batch if options.relax else given)
    with np.errstate(invalid="ignore", divide="ignore"):
        before, after = (np.abs(np.linalg.det(b.cell)) for b in (given, done.batch))
    for k, s in enumerate(index.tolist()):
        outcome, stop, status = outcomes[s], Stop(int(done.reason[k])), Status(int(done.status[k]))
        natoms = int(given.counts[k])
        outcome.values |= {
            "relaxation": stop.name if options.relax else "AS_GIVEN",
            "steps": int(done.steps[k]),
            "max_force": float(done.max_force[k]),
            "energy_per_atom": float(done.energy[k]) / max(natoms, 1),
            "volume_per_atom": float(after[k]) / max(natoms, 1),
            "volume_change": float(after[k] / before[k]) - 1 if before[k] > 0 else float("nan"),
        }
        if status != Status.OK:
            outcome.problems.append((status.name, f"no result: {status.meaning}"))
        elif options.relax and stop != Stop.CONVERGED:
            what = (
                stop.meaning
                if stop.is_change
                else f"{done.max_force[k]:.3g} eV/A are left, fmax is {options.fmax:g}: {stop.meaning}"
            )
            name = stop.name if stop.is_change else Problem.NOT_RELAXED
            outcome.problems.append((name, f"the relaxation ended after {int(done.steps[k])} steps: {what}"))
        else:
            outcome.values["space_group"] = find_space_group(merged.slice(s, s + 1), options.symprec)
    return merged, outcomes


def find_space_group(structure: StructureBatch, symprec: float) -> int | None:
    """Return the number of the space group of one structure; None where spglib finds none."""
    import spglib

    scaled = np.linalg.solve(structure.cell[0].T, np.asarray(structure.positions, np.float64).T).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = spglib.get_symmetry_dataset(
                (structure.cell[0].tolist(), scaled.tolist(), structure.numbers.tolist()), symprec=symprec
            )
        except spglib.SpglibError:
            return None
    return None if found is None else int(found.number)


def _put(batch: StructureBatch, index: NDArray[np.int64], part: StructureBatch) -> StructureBatch:
    """Return the batch with the geometry of the structures `index` taken from `part`."""
    positions, cell = np.array(batch.positions, np.float64), batch.cell.copy()
    positions[ragged_index(batch.ptr[:-1][index], batch.counts[index])] = part.positions
    cell[index] = part.cell
    return batch.replace(positions=positions, cell=cell)


# -- methods -------------------------------------------------------------------------------------------------------


def _compute_eos(evaluator: Evaluator, batch: StructureBatch, options: PropertyOptions) -> list[Outcome]:
    relative, gradients = list_scalings(options)
    found, notes = _evaluate_deformed(evaluator, batch, gradients, options, ())
    volumes = np.abs(np.linalg.det(batch.cell))[:, None] * relative
    out = []
    for s, results in enumerate(found):
        lost = _find_lost(results, "eos")
        out.append(lost or find_equation(volumes[s], results, int(batch.counts[s])))
        out[-1].problems += notes("eos", s)
    return out


def _compute_elastic(evaluator: Evaluator, batch: StructureBatch, options: PropertyOptions) -> list[Outcome]:
    deformations = list_deformations(options)
    found, notes = _evaluate_deformed(evaluator, batch, deformations.gradients, options, ("forces", "stress"))
    out = []
    for s, results in enumerate(found):
        lost = _find_lost(results, "elastic")
        out.append(lost or find_elasticity(deformations, results, batch.slice(s, s + 1), options))
        out[-1].problems += notes("elastic", s)
    return out


def _compute_phonons(evaluator: Evaluator, batch: StructureBatch, options: PropertyOptions) -> list[Outcome]:
    """Evaluate the displaced supercells of one structure after the other: they fill batches by themselves."""
    out = []
    for s in range(len(batch)):
        own = batch.slice(s, s + 1)
        repeats, refused = choose_supercell(own.cell[0], int(own.counts[0]), options)
        if refused is not None:
            out.append(refused)
            continue
        try:
            displaced = displace(own, repeats, options)
            results = evaluator.evaluate(displaced.batch, ("forces",))
            assert results.forces is not None and results.forces_members is not None
            lost = _find_lost(results, "phonons")
            shape = (len(displaced.batch), -1, 3)
            members = results.forces_members
            apart = members.reshape(len(members), *shape[:1], int(displaced.batch.counts[0]), 3)
            out.append(lost or find_phonons(displaced, results.forces.reshape(shape), apart, options))
        except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:  # phonopy's own, for odd cells
            out.append(_fail("phonons", error))
    return out


METHODS = {"eos": _compute_eos, "elastic": _compute_elastic, "phonons": _compute_phonons}


def _fail(what: str, error: BaseException) -> Outcome:
    text = " ".join(str(error).split()) or type(error).__name__
    return Outcome(problems=[(Problem.METHOD_FAILED, f"{what}: {text}")])


def _find_lost(results: Evaluation, what: str) -> Outcome | None:
    """Return the problem of a structure of which a distorted one has no result."""
    bad = np.flatnonzero(results.status != Status.OK)
    if not len(bad):
        return None
    status = Status(int(results.status[bad[0]]))
    text = (
        f"{what}: {len(bad)} of {len(results.status)} distorted structures have no result, the first {status.meaning}"
    )
    return Outcome(problems=[(status.name, text)])


def _evaluate_deformed(
    evaluator: Evaluator,
    batch: StructureBatch,
    gradients: Array,
    options: PropertyOptions,
    want: tuple[str, ...],
) -> tuple[list[Evaluation], Any]:
    """Return the results [D] of every structure under every deformation, and notes on atoms that did not come to rest.

    Atoms are relaxed in the deformed cells unless `clamped`; members are evaluated where the mean is at rest.
    """
    each, many = len(gradients), len(batch)
    deformed = deform(batch, gradients)
    moving: RelaxResult | None = None
    if not options.clamped:
        moving = evaluator.relax(deformed, options.fmax, options.max_steps, cell=False)
        deformed = deformed.replace(positions=moving.batch.positions)
    found = evaluator.evaluate(deformed, want)
    pieces = [_cut(found, deformed, s * each, (s + 1) * each) for s in range(many)]

    def notes(what: str, s: int) -> list[tuple[str, str]]:
        if moving is None:
            return []
        own = slice(s * each, (s + 1) * each)
        restless = (moving.reason[own] != Stop.CONVERGED) & (moving.status[own] == Status.OK)
        if not restless.any():
            return []
        worst = float(np.nanmax(moving.max_force[own]))
        text = (
            f"{what}: in {int(restless.sum())} of {each} deformed cells the atoms did not come to rest in "
            f"{options.max_steps} steps (largest force {worst:.3g} eV/A, fmax {options.fmax:g})"
        )
        return [(Problem.ATOMS_NOT_RELAXED, text)]

    return pieces, notes


def _cut(found: Evaluation, batch: StructureBatch, first: int, stop: int) -> Evaluation:
    """Return the results of structures first:stop."""
    own, atoms = slice(first, stop), slice(int(batch.ptr[first]), int(batch.ptr[stop]))
    return replace(
        found,
        status=found.status[own],
        energy=found.energy[own],
        energy_members=found.energy_members[:, own],
        forces=None if found.forces is None else found.forces[atoms],
        forces_members=None if found.forces_members is None else found.forces_members[:, atoms],
        stress=None if found.stress is None else found.stress[own],
        stress_members=None if found.stress_members is None else found.stress_members[:, own],
    )
