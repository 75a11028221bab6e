"""The calculator of an endpoint gives what the local one gives, as an ASE calculator does; guard and relaxation too."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import (
    CalculationFailed,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
)
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from atomsieve.calculators import GFMCalculator, Guard, RemoteCalculator, relax
from atomsieve.errors import UsageError
from atomsieve.predict import AnyPredictor
from atomsieve.remote.predictor import RemotePredictor
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides
from tests.serve.spoiled import proxy


@pytest.fixture(scope="module")
def calc(server):
    return RemoteCalculator(server.grpc, head="metal")


@pytest.fixture
def cold(local):
    return GFMCalculator(local, "metal")


def rattled(seed=1):
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.08, seed=seed)
    return atoms


def test_every_property_is_that_of_the_local_calculator(calc, cold):
    atoms = rattled()
    assert calc.implemented_properties == cold.implemented_properties
    for name in calc.implemented_properties:
        found, truth = (np.asarray(c.get_property(name, atoms), float) for c in (calc, cold))
        np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-9, err_msg=name)
    assert calc.outside == cold.outside
    assert calc.parameters == {"endpoint": calc._given.capabilities.endpoints[0], "model": "gfm", "head": "metal"}


def test_bad_atoms_fail_as_with_the_local_calculator(calc, cold):
    flat = Atoms("Cu", cell=[2, 0, 0], pbc=True)
    for atoms in (Atoms(), molecule("CH4"), flat, Atoms("Cu2", [[0, 0, 0], [0, 0, 1e-3]])):
        with pytest.raises((InputError, CalculationFailed)) as there:
            calc.get_property("energy", atoms)
        with pytest.raises((InputError, CalculationFailed)) as here:
            cold.get_property("energy", atoms)
        assert type(there.value) is type(here.value) and str(there.value) == str(here.value)
    with pytest.raises(InputError, match="charge"):
        calc.get_property("energy", Atoms("Cu", info={"charge": "much"}))
    with pytest.raises(PropertyNotImplementedError, match="periodic"):
        calc.get_property("stress", molecule("O2"))


def test_the_head_can_be_changed_and_nothing_else(calc, cold):
    atoms, other = molecule("O2"), copy.deepcopy(calc)
    other.set(head="organic")
    cold.set(head="organic")
    assert other.get_potential_energy(atoms) == pytest.approx(cold.get_potential_energy(atoms), abs=1e-9)
    assert calc.head == "metal" and other.head == "organic"
    with pytest.raises(CalculatorSetupError, match="make a new RemoteCalculator with model="):
        other.set(model="other")
    with pytest.raises(CalculatorSetupError, match="did you mean 'head'"):
        other.set(heads="metal")


def test_copies_and_pickles(calc):
    atoms = rattled()
    energy = calc.get_property("energy", atoms)
    shared, again = copy.deepcopy(calc), pickle.loads(pickle.dumps(calc))
    assert shared.predictor is calc.predictor and again.predictor is not calc.predictor
    assert shared.get_property("energy", atoms) == pytest.approx(energy, rel=1e-12)
    assert again.get_property("energy", atoms) == pytest.approx(energy, rel=1e-12) and again.head == "metal"
    again.close()
    rebuild, ((given, head, _), own) = calc.__reduce__()
    with pytest.raises(CalculatorSetupError, match="another ensemble"):
        rebuild((given, head, "0" * 64), own)


def test_what_cannot_be_set_up(server):
    with pytest.raises(CalculatorSetupError, match="no endpoint given"):
        RemoteCalculator()
    with pytest.raises(CalculatorSetupError, match="is no endpoint"):
        RemoteCalculator("grcp://x")
    with pytest.raises(CalculatorSetupError, match="did you mean 'metal'"):
        RemoteCalculator(server.grpc, head="metals")
    with pytest.raises(CalculatorSetupError, match="gfmm"):
        RemoteCalculator(server.grpc, model="gfmm")
    with pytest.raises(CalculatorSetupError, match="unknown parameter 'precision'"):
        RemoteCalculator(server.grpc, precision="fp64")
    with RemotePredictor.connect(server.grpc) as given:
        with pytest.raises(CalculatorSetupError, match="no neighbour lists"):
            GFMCalculator(given, skin=1.0)
        with pytest.raises(CalculatorSetupError, match="deadline, alone with a predictor that is connected already"):
            RemoteCalculator(given, deadline=1.0, alone=False)
        RemoteCalculator(given, head="metal").close()
        assert len(given(copper_oxides(1)).energy) == 1, "who was given it must not close it"


def test_a_server_that_is_gone_is_a_failed_calculation(server):
    with proxy(server.options.http) as between:
        calc = RemoteCalculator(f"http://{between.address}", patience=0.2)
        own = GFMCalculator(RemotePredictor.connect(f"http://{between.address}", patience=0.2))
        assert calc.get_property("energy", rattled()) == own.get_property("energy", rattled())
    for one in (calc, own):
        with pytest.raises(CalculationFailed, match=r"cannot be reached.*patience"):
            one.get_property("energy", rattled(4))


def test_dynamics_and_optimization_follow_the_local_path(calc, cold):
    there, here = rattled(2), rattled(2)
    there.calc, here.calc = calc, cold
    for atoms in (there, here):
        VelocityVerlet(atoms, 1.0).run(5)
        BFGS(atoms, logfile=None).run(fmax=1e-3, steps=3)
    np.testing.assert_allclose(there.positions, here.positions, atol=1e-7)
    assert there.get_potential_energy() == pytest.approx(here.get_potential_energy(), abs=1e-8)


def test_the_guard_watches_both_alike(calc, cold):
    reasons = []
    for c in (calc, cold):
        atoms = rattled(3)
        atoms.calc = c
        guard = Guard(atoms, max_energy_std=1e-9, max_force_std=1e-9)
        dynamics = VelocityVerlet(atoms, 1.0)
        dynamics.attach(guard)
        assert not guard.run(dynamics, 1)
        reasons.append(guard.reasons)
    assert reasons[0] == reasons[1] != []


def test_relaxation_takes_a_remote_predictor(calc, local):
    batch = copper_oxides(4, seed=5)
    for cell in (False, True):
        there = relax(calc.predictor, batch, steps=4, cell=cell, head="metal")
        here = relax(local, batch, steps=4, cell=cell, head="metal")
        np.testing.assert_allclose(there.batch.positions, here.batch.positions, atol=1e-7)
        np.testing.assert_allclose(there.energy, here.energy, atol=1e-8)
        np.testing.assert_array_equal(there.reason, here.reason)
    assert isinstance(calc.predictor, AnyPredictor) and not isinstance(rattled(), AnyPredictor)
    with pytest.raises(UsageError, match="loaded predictor"):
        relax("gfm/", StructureBatch.from_ase([rattled()]))
