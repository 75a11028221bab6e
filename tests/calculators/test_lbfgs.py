"""L-BFGS in batches: each structure as alone, in any order and after a break, and in fewer steps than FIRE."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.units import GPa
from scipy.optimize import minimize

from atomsieve.calculators import GFMCalculator, Stop, relax
from atomsieve.calculators.lbfgs import Lbfgs
from atomsieve.errors import UsageError
from atomsieve.predict import Predictor
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides

LOOSE = {"fmax": 0.02, "steps": 40, "cell": True, "limits": None, "optimizer": "lbfgs"}


@pytest.fixture
def springs(monkeypatch):
    """Every atom is bound to its place in the first call by a spring of its own, the cell to its volume and shape."""
    forward, home = Predictor.__call__, {}

    def call(self, batch, *args, **kwargs):
        found = forward(self, batch, *args, **kwargs)
        energy, forces, stress = np.zeros(len(batch)), np.zeros((batch.n_atoms, 3)), np.zeros((len(batch), 3, 3))
        for s, key in enumerate(batch.id.tolist()):
            own = slice(*batch.ptr[s : s + 2])
            stiff = np.linspace(1, 40, 3 * (own.stop - own.start)).reshape(-1, 3)
            first = home.setdefault(key, batch.positions[own] + 0.3 * np.sin(np.arange(stiff.size)).reshape(-1, 3))
            away = batch.positions[own] - first
            energy[s], forces[own] = 0.5 * (stiff * away**2).sum(), -stiff * away
        return replace(found, energy=energy, forces=forces, stress=stress)

    monkeypatch.setattr(Predictor, "__call__", call)


def test_a_quadratic_is_minimised_in_far_fewer_steps_than_by_fire(predictor, springs) -> None:
    batch = copper_oxides(6, seed=2)
    found = relax(predictor, batch, fmax=1e-3, steps=200, optimizer="lbfgs", limits=None)
    by_fire = relax(predictor, batch, fmax=1e-3, steps=600, limits=None)
    assert found.converged.all() and by_fire.converged.all()
    assert found.energy == pytest.approx(np.zeros(6), abs=1e-6)
    assert by_fire.steps.sum() > 3 * found.steps.sum()
    n = int(batch.counts[0])
    stiff, start = np.linspace(1, 40, 3 * n), 0.3 * np.sin(np.arange(3 * n))
    peer = minimize(
        lambda x: (0.5 * (stiff * x**2).sum(), stiff * x), start, jac=True, method="L-BFGS-B", options={"gtol": 1e-3}
    )
    assert found.steps[0] <= 3 * peer.nfev


def test_each_is_as_alone_in_any_order(predictor) -> None:
    batch = copper_oxides(7, seed=3)
    whole = relax(predictor, batch, **LOOSE)
    order = np.array([4, 0, 6, 2, 1, 5, 3])
    mixed = relax(predictor, batch.take(order), **LOOSE)
    assert np.array_equal(mixed.steps, whole.steps[order]) and np.array_equal(mixed.reason, whole.reason[order])
    assert np.allclose(mixed.energy, whole.energy[order], atol=1e-8)
    for s in (1, 4):
        alone = relax(predictor, batch.slice(s, s + 1), **LOOSE)
        assert alone.steps[0] == whole.steps[s]
        assert np.allclose(alone.batch.cell[0], whole.batch.cell[s], atol=1e-7)
    assert len(set(whole.steps.tolist())) > 2, "structures leave one by one"


def test_a_state_goes_on_where_it_was(predictor) -> None:
    batch = copper_oxides(4, seed=5)

    def begin() -> Lbfgs:
        return Lbfgs(predictor, batch, 1e-9, 9, cell=True)

    def go(run: Lbfgs, evaluations: int) -> Lbfgs:
        for _ in range(evaluations):
            run.evaluate()
            if len(run.active):
                run.step()
        return run

    whole, first = go(begin(), 12).result, go(begin(), 5)
    again = begin()
    again.restore({name: array.copy() for name, array in first.state().items()})
    found = go(again, 7).result
    for name in ("energy", "steps", "forces"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))
    assert (found.reason == Stop.STEPS).all() and np.array_equal(found.batch.cell, whole.batch.cell)


def test_pressure_is_that_of_ase(predictor) -> None:
    atoms = bulk("Cu", a=3.7, cubic=True)
    batch = StructureBatch.from_ase([atoms])
    for pressure in (4 * GPa, -2 * GPa):
        own = relax(predictor, batch, fmax=1e-9, steps=3, cell=True, pressure=pressure, limits=None)
        peer = atoms.copy()
        peer.calc = GFMCalculator(predictor)
        from ase.optimize import FIRE

        FIRE(FrechetCellFilter(peer, scalar_pressure=pressure), logfile=None).run(fmax=1e-9, steps=3)
        assert own.batch.cell[0] == pytest.approx(np.array(peer.cell), abs=1e-7)
    with pytest.raises(UsageError, match="a pressure acts on the cell"):
        relax(predictor, batch, pressure=0.1)
    with pytest.raises(UsageError, match="unknown optimizer 'bfgs'"):
        relax(predictor, batch, optimizer="bfgs")


@pytest.mark.nightly
def test_same_minima_as_ase_with_fewer_steps(copper_gfm) -> None:
    predictor = Predictor.load(copper_gfm, precision="fp64")
    images = []
    for seed in range(4):
        atoms = bulk("Cu", a=3.59, cubic=seed % 2 == 0)
        atoms.rattle(0.1, seed=seed)
        images.append(atoms)
    batch = StructureBatch.from_ase(images)
    found = relax(predictor, batch, fmax=0.01, steps=300, cell=True, optimizer="lbfgs")
    by_fire = relax(predictor, batch, fmax=0.01, steps=300, cell=True)
    assert found.converged.all() and found.steps.sum() < by_fire.steps.sum()
    for s, atoms in enumerate(images):
        atoms.calc = GFMCalculator(predictor)
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=300)
        assert abs(found.energy[s] - atoms.get_potential_energy()) < 1e-4 * len(atoms)
