"""Batched relaxation takes the steps of ASE's FIRE for each structure, and finds the minima of ASE's optimisers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS, FIRE

from atomsieve.calculators import ChangeLimits, GFMCalculator, Guard, Stop, relax
from atomsieve.errors import UsageError
from atomsieve.predict import Predictor, Status
from atomsieve.structures import StructureBatch
from tests.helpers import tiny_gfm


def rattled(seed: int, scale: float = 0.12) -> Atoms:
    atoms = bulk("Cu", a=3.6, cubic=True)
    if seed % 2:
        atoms.numbers[0] = 8
    if seed % 3 == 0:
        atoms = atoms.repeat((2, 1, 1))
    atoms.rattle(scale, seed=seed)
    return atoms


def batch_of(images: list[Atoms]) -> StructureBatch:
    return StructureBatch.from_ase(images)


@pytest.mark.parametrize("cell", [False, True])
def test_takes_the_steps_of_ase(predictor: Predictor, cell: bool) -> None:
    images = [rattled(seed) for seed in (0, 1, 2)]
    calc = GFMCalculator(predictor)
    for steps in (1, 4, 15):
        result = relax(predictor, batch_of(images), fmax=1e-9, steps=steps, cell=cell, skin=0.3, limits=None)
        assert (result.steps == steps).all() and (result.reason == Stop.STEPS).all() and not result.converged.any()
        for s, start in enumerate(images):
            atoms = start.copy()
            atoms.calc = calc
            FIRE(FrechetCellFilter(atoms) if cell else atoms, logfile=None).run(fmax=1e-9, steps=steps)
            own = result.batch.slice(s, s + 1)
            tolerance = 1e-8 if steps < 15 else 1e-5  # ASE's cell turns by a little
            assert np.allclose(own.cell[0], atoms.cell, atol=tolerance)
            assert np.allclose(own.positions, atoms.positions, atol=tolerance)
            assert np.isclose(result.energy[s], atoms.get_potential_energy(), atol=1e-6)


@pytest.mark.parametrize("cell", [False, True])
def test_same_minima_as_ase(copper_gfm: Path, cell: bool) -> None:
    predictor = Predictor.load(copper_gfm, precision="fp64")
    images = []
    for seed in range(3):
        atoms = bulk("Cu", a=3.59, cubic=seed % 2 == 0)
        atoms.rattle(0.1, seed=seed)
        if cell:
            atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * np.random.default_rng(seed).normal(size=(3, 3))), True)
        images.append(atoms)
    result = relax(predictor, batch_of(images), fmax=0.01, steps=300, cell=cell)
    assert result.converged.all() and (result.max_force < 0.01).all()
    assert len(set(result.steps.tolist())) > 1, "structures leave one by one"
    calc = GFMCalculator(predictor)
    for s, atoms in enumerate(images):
        atoms.calc = calc
        variables = FrechetCellFilter(atoms) if cell else atoms
        (FIRE if s % 2 else BFGS)(variables, logfile=None).run(fmax=0.01, steps=300)
        assert abs(result.energy[s] - atoms.get_potential_energy()) < 1e-4 * len(atoms)
        own = result.batch.slice(s, s + 1).to_ase()[0]
        own.calc = calc
        assert np.allclose(own.get_forces(), result.forces[result.batch.ptr[s] : result.batch.ptr[s + 1]], atol=1e-6)
        if cell:
            assert abs(own.get_volume() - atoms.get_volume()) < 0.01 * atoms.get_volume()
            assert np.allclose(own.get_stress(voigt=False), result.stress[s], atol=1e-7)


def test_bad_structures_do_not_stop_others(predictor: Predictor) -> None:
    nan = bulk("Cu")
    nan.positions[0] = np.nan
    images = [
        rattled(0),
        nan,
        Atoms(),
        Atoms("Cu2", [[0, 0, 0], [0, 0, 0.02]]),
        bulk("Xe", "fcc", a=6.2),
        rattled(1),
        Atoms("Cu2", [[0, 0, 0], [2.4, 0, 0]]),
    ]
    batch = batch_of(images)
    before = batch.positions.copy()
    result = relax(predictor, batch, fmax=0.02, steps=60)
    assert np.array_equal(batch.positions, before, equal_nan=True), "the input is not touched"
    wanted = [Status.OK, Status.NAN_INPUT, Status.EMPTY, Status.OVERLAPPING_ATOMS, Status.UNSEEN_ELEMENT, Status.OK]
    assert result.status.tolist() == [*wanted, Status.OK]
    bad = np.array([1, 2, 3, 4])
    assert (result.reason[bad] == Stop.FAILED).all() and (result.steps[bad] == 0).all()
    assert np.isnan(result.energy[bad]).all() and not result.converged[bad].any()
    for s in (0, 5, 6):
        alone = relax(predictor, batch_of([images[s]]), fmax=0.02, steps=60)
        assert alone.steps[0] == result.steps[s] and np.isclose(alone.energy[0], result.energy[s])
    with_cell = relax(predictor, batch_of([images[6], images[0]]), fmax=0.02, steps=5, cell=True)
    assert with_cell.reason.tolist()[0] == Stop.NOT_PERIODIC and np.isfinite(with_cell.energy[1])


def test_a_structure_that_breaks_on_the_way_keeps_its_last_good_state(predictor: Predictor, monkeypatch) -> None:
    images = [rattled(1), rattled(2)]
    calls: list[int] = []
    forward = Predictor.__call__

    def breaking(self, batch, *args, **kwargs):
        calls.append(len(batch))
        if len(calls) == 4:
            positions = batch.positions.copy()
            positions[0] = np.nan
            batch = batch.replace(positions=positions)
        return forward(self, batch, *args, **kwargs)

    monkeypatch.setattr(Predictor, "__call__", breaking)
    result = relax(predictor, batch_of(images), fmax=1e-6, steps=8)
    assert calls == [2, 2, 2, 2, 1, 1, 1, 1, 1]
    assert result.reason.tolist() == [Stop.FAILED, Stop.STEPS] and result.status[0] == Status.NAN_INPUT
    monkeypatch.undo()
    good = relax(predictor, batch_of(images[:1]), fmax=1e-6, steps=2)
    assert np.allclose(result.batch.slice(0, 1).positions, good.batch.positions)
    assert result.energy[0] == pytest.approx(good.energy[0])


def test_already_relaxed_and_no_steps(predictor: Predictor) -> None:
    perfect = relax(predictor, batch_of([bulk("Cu", a=3.6)]), fmax=0.05)
    assert perfect.converged.all() and perfect.steps[0] == 0
    none = relax(predictor, batch_of([rattled(0)]), fmax=1e-8, steps=0)
    assert none.reason[0] == Stop.STEPS and np.isfinite(none.energy[0])
    empty = relax(predictor, StructureBatch.empty())
    assert len(empty.converged) == 0


def test_the_guard_takes_single_structures_out(predictor: Predictor, tmp_path: Path) -> None:
    images = [rattled(seed) for seed in range(4)]
    spread = [GFMCalculator(predictor).get_property("forces_std", a) for a in images]
    worst = np.array([np.sqrt((x**2).mean(1)).max() for x in spread])
    limit = float(np.sort(worst)[1:3].mean())
    guard = Guard(predictor, max_force_std=limit, in_domain=False, action=("stop", "write"), file=tmp_path / "w.extxyz")
    result = relax(predictor, batch_of(images), fmax=0.03, steps=3, guard=guard)
    stopped = worst > limit
    assert (result.reason[stopped] == Stop.GUARD).all() and (result.steps[stopped] == 0).all()
    assert (result.reason[~stopped] != Stop.GUARD).all() or guard.passed > stopped.sum()
    assert guard.checks >= 1 and (tmp_path / "w.extxyz").is_file()
    warning = Guard(predictor, max_force_std=limit, in_domain=False, action="warn")
    with pytest.warns(UserWarning, match=r"structure \d, step 0: force_std"):
        free = relax(predictor, batch_of(images), fmax=0.03, steps=2, guard=warning)
    assert (free.reason != Stop.GUARD).all()


def test_structures_without_a_cell_keep_their_place_and_get_their_energy(predictor: Predictor) -> None:
    """With `cell=True` a molecule is evaluated once, as it is; a broken one fails as any other does."""
    molecule, broken = Atoms("Cu2", [[0, 0, 0], [2.4, 0, 0]]), Atoms("Cu2", [[0, 0, 0], [np.nan, 0, 0]])
    result = relax(predictor, batch_of([rattled(0), molecule, broken, Atoms(), rattled(1)]), steps=2, cell=True)
    assert result.reason[1:4].tolist() == [Stop.NOT_PERIODIC, Stop.FAILED, Stop.FAILED]
    assert result.status.tolist() == [Status.OK, Status.OK, Status.NAN_INPUT, Status.EMPTY, Status.OK]
    assert (np.isfinite(result.energy) == (result.status == Status.OK)).all() and not result.converged[1:4].any()
    calc = GFMCalculator(predictor)
    own = slice(*result.batch.ptr[1:3])
    assert result.energy[1] == pytest.approx(calc.get_property("energy", molecule))
    assert np.allclose(result.forces[own], calc.get_property("forces", molecule))
    assert result.max_force[1] == pytest.approx(np.linalg.norm(result.forces[own], axis=1).max())
    assert np.array_equal(result.batch.positions[own], molecule.positions) and np.isnan(result.stress[1]).all()
    assert (result.steps == [2, 0, 0, 0, 2]).all()


def test_every_structure_that_the_guard_stops_is_written(predictor: Predictor, tmp_path: Path) -> None:
    """Several in one check, one after another, with empty structures between them."""
    images = [rattled(0), Atoms(), rattled(1), rattled(2), Atoms(pbc=True), rattled(3), Atoms()]
    file = tmp_path / "w.extxyz"
    guard = Guard(predictor, max_force_std=1e-9, in_domain=False, action=("stop", "write"), file=file, every=5)
    result = relax(predictor, batch_of(images), fmax=1e-9, steps=3, guard=guard, cell=True)
    stopped = result.reason == Stop.GUARD
    assert stopped.tolist() == [True, False, True, True, False, True, False]
    frames = read(file, ":")
    assert len(frames) == stopped.sum() == guard.written
    assert [len(f) for f in frames] == [len(images[s]) for s in np.flatnonzero(stopped)]


def test_frames_of_one_check_are_written_together(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "w.extxyz"
    guard = Guard(predictor, max_force_std=1e-9, in_domain=False, action="write", file=file, every=2)
    relax(predictor, batch_of([rattled(0), rattled(1)]), fmax=1e-9, steps=3, guard=guard)
    assert guard.checks == 4 and guard.passed == 8 and len(read(file, ":")) == 4, "of checks 1 and 3"


def test_refusals(predictor: Predictor, tmp_path: Path) -> None:
    batch = batch_of([rattled(0)])
    with pytest.raises(UsageError, match="fmax=0"):
        relax(predictor, batch, fmax=0)
    with pytest.raises(UsageError, match="unknown head"):
        relax(predictor, batch, head="nothing")
    guard = Guard(predictor, head="organic", max_force_std=1.0)
    with pytest.raises(UsageError, match="guard watches head 'organic', but the relaxation uses 'metal'"):
        relax(predictor, batch, guard=guard)
    direct = Predictor.load(tiny_gfm(tmp_path / "direct", forces="direct"))
    with pytest.raises(UsageError, match="needs stress, which this ensemble"):
        relax(direct, batch, cell=True)


def test_all_reasons_have_a_meaning() -> None:
    assert all(stop.meaning for stop in Stop)


def test_what_is_no_predictor_or_no_batch_is_refused_in_one_line(predictor):
    batch = StructureBatch.from_ase([bulk("Cu")])
    with pytest.raises(UsageError, match="wants a loaded predictor"):
        relax("gfm", batch)
    with pytest.raises(UsageError, match=r"StructureBatch\.from_ase"):
        relax(predictor, [bulk("Cu")])
    with pytest.raises(UsageError, match="whole number"):
        relax(predictor, batch, steps=1.5)


def pulled(monkeypatch, stress: float) -> None:
    """Let every prediction have this stress, eV/Angstrom^3, and no forces."""
    forward = Predictor.__call__

    def call(self, batch, *args, **kwargs):
        found = forward(self, batch, *args, **kwargs)
        return replace(found, stress=np.tile(stress * np.eye(3), (len(batch), 1, 1)), forces=0 * found.forces)

    monkeypatch.setattr(Predictor, "__call__", call)


@pytest.mark.parametrize(("stress", "reason"), [(-0.1, Stop.EXPLODED), (0.1, Stop.COLLAPSED)])
def test_a_cell_that_explodes_or_collapses_ends_at_the_limit(predictor, monkeypatch, stress, reason) -> None:
    pulled(monkeypatch, stress)
    batch = batch_of([bulk("Cu"), rattled(0), Atoms("Cu2", [[0, 0, 0], [2.4, 0, 0]])])
    result = relax(predictor, batch, fmax=1e-6, steps=60, cell=True)
    assert result.reason.tolist() == [reason, reason, Stop.NOT_PERIODIC] and not result.converged.any()
    ratio = np.linalg.det(result.batch.cell[:2]) / np.linalg.det(batch.cell[:2])
    change = np.maximum(ratio, 1 / ratio)
    assert (change > 1.5).all() and (change < 1.8).all() and (result.steps[:2] < 60).all(), "at once"
    wider = relax(predictor, batch, fmax=1e-6, steps=60, cell=True, limits=ChangeLimits(max_volume_change=2.2))
    assert (wider.steps[:2] > result.steps[:2]).all()
    free = relax(predictor, batch, fmax=1e-6, steps=12, cell=True, limits=None)
    assert (free.reason[:2] == Stop.STEPS).all()


def test_a_cell_that_becomes_singular_fails_with_a_status(predictor, monkeypatch) -> None:
    pulled(monkeypatch, 3.0)
    result = relax(predictor, batch_of([bulk("Cu")]), fmax=1e-6, steps=400, cell=True, limits=None)
    assert result.reason[0] == Stop.FAILED and result.status[0] != Status.OK
    assert np.isfinite(result.batch.cell).all() and np.isfinite(result.energy[0]), "the last that had a result"


def test_what_leaves_the_domain_on_its_way_has_not_converged(predictor, monkeypatch) -> None:
    """A reason that was there before is none; the end decides, not the way."""
    forward, calls = Predictor.__call__, []
    reasons = [[4, 0, 0], [4, 8, 8], [4, 8, 0]]  # of three structures in three evaluations

    def call(self, batch, *args, **kwargs):
        found = forward(self, batch, *args, **kwargs)
        calls.append(1)
        return replace(found, outside=np.array(reasons[len(calls) - 1], np.uint8))

    monkeypatch.setattr(Predictor, "__call__", call)
    result = relax(predictor, batch_of([rattled(s) for s in (0, 1, 2)]), fmax=1e-9, steps=2)
    assert result.reason.tolist() == [Stop.STEPS, Stop.LEFT_DOMAIN, Stop.STEPS]
