"""The calculator in ASE's own workflows: optimisers, filters, MD, bands, phonons, elastic constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.fd import FiniteDifferenceCalculator
from ase.eos import calculate_eos
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.phonons import Phonons
from ase.vibrations import Vibrations

from atomsieve.calculators import GFMCalculator


@pytest.fixture(scope="module")
def copper_calc(copper_gfm: Path) -> GFMCalculator:
    return GFMCalculator(copper_gfm)


def test_relaxed_cell_has_no_stress(copper_calc: GFMCalculator) -> None:
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = copper_calc
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=100)
    assert np.abs(atoms.get_stress()).max() < 1e-3 and np.abs(atoms.get_forces()).max() < 1e-3
    volumes, energies = (x for x in zip(*[(v, e) for v, e in _curve(atoms)], strict=True))
    assert np.argmin(energies) == 2, "the relaxed volume is the lowest of its neighbours"
    assert volumes[2] == pytest.approx(atoms.get_volume())


def _curve(atoms: Atoms):
    for scale in (0.98, 0.99, 1.0, 1.01, 1.02):
        strained = atoms.copy()
        strained.set_cell(atoms.cell * scale, scale_atoms=True)
        strained.calc = atoms.calc
        yield strained.get_volume(), strained.get_potential_energy()


def test_bulk_modulus_from_energies_and_from_stress(copper_calc: GFMCalculator) -> None:
    """B = V d2E/dV2 of an equation of state = (C11 + 2 C12)/3 of finite strains, all with the same calculator."""
    atoms = bulk("Cu", a=3.59, cubic=True)
    atoms.calc = copper_calc
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=60)
    bulk_modulus = calculate_eos(atoms, npoints=7, eps=0.004).fit(warn=False)[2]

    def stress(strain: np.ndarray) -> np.ndarray:
        strained = atoms.copy()
        strained.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = copper_calc
        return strained.get_stress()

    h = 2e-3
    e11 = np.diag([h, 0, 0])
    c11, c12 = ((stress(e11) - stress(-e11)) / (2 * h))[:2]
    assert (c11 + 2 * c12) / 3 == pytest.approx(bulk_modulus, rel=0.03)
    assert 0.4 < bulk_modulus / units.GPa / 134 < 1.8, "EMT copper has 134 GPa"


def test_molecular_dynamics_conserves_energy(copper_calc: GFMCalculator) -> None:
    """The error of velocity Verlet falls with the square of the step, as only exact forces let it."""
    swings = []
    for step in (4.0, 2.0):
        atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
        atoms.calc = copper_calc
        MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
        energies: list[float] = []
        run = VelocityVerlet(atoms, step * units.fs)
        run.attach(lambda atoms=atoms, kept=energies: kept.append(atoms.get_total_energy()))
        run.run(int(160 / step))
        swings.append(np.std(energies))
    assert swings[1] < 0.4 * swings[0] and swings[1] < 2e-3


def test_langevin_writes_a_trajectory(make, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = make()
    with Trajectory(tmp_path / "md.traj", "w", atoms) as trajectory:
        run = Langevin(atoms, units.fs, temperature_K=300, friction=0.02, fixcm=False, rng=np.random.default_rng(0))
        run.attach(trajectory, interval=2)
        run.run(4)
    frames = read(tmp_path / "md.traj", ":")
    assert len(frames) == 3 and np.isclose(frames[-1].get_potential_energy(), atoms.get_potential_energy())
    assert frames[-1].calc.name == "gfm"


def test_a_band_shares_one_calculator(copper_calc: GFMCalculator) -> None:
    first = bulk("Cu", a=3.6, cubic=True)[1:]
    last = first.copy()
    last.positions[0] = 0
    images = [first, first.copy(), last]
    for image in images:
        image.calc = copper_calc
    band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate(mic=True)
    FIRE(band, logfile=None).run(fmax=0.1, steps=5)
    own = [GFMCalculator(copper_calc.predictor).get_property("energy", image) for image in images]
    assert np.allclose([image.get_potential_energy() for image in images], own)
    assert own[0] == pytest.approx(own[2], abs=1e-6) and own[1] > own[0]


def test_phonons_and_vibrations(copper_calc: GFMCalculator, make, tmp_path: Path) -> None:
    atoms = bulk("Cu", a=3.59)
    phonons = Phonons(atoms, copper_calc, supercell=(3, 3, 3), delta=0.02, name=str(tmp_path / "phonons"))
    phonons.run()
    phonons.read(acoustic=True)
    at_gamma = phonons.get_band_structure(atoms.cell.bandpath("G", npoints=1)).energies[0, 0]
    assert np.allclose(at_gamma, 0, atol=1e-4), "acoustic modes"
    water = molecule("H2O")
    water.calc = make("organic")
    vibrations = Vibrations(water, name=str(tmp_path / "vib"))
    vibrations.run()
    hessian = vibrations.get_vibrations().get_hessian_2d()
    assert np.allclose(hessian, hessian.T, atol=1e-6)
    assert np.allclose(hessian @ np.tile(np.eye(3), (3, 1)), 0, atol=1e-2), "a shift of the molecule costs nothing"


def test_ase_finite_differences(make, copper: Atoms) -> None:
    """ASE's own check of a calculator."""
    copper.calc = make()
    numeric = copper.copy()
    numeric.calc = FiniteDifferenceCalculator(make(), eps_disp=1e-4, eps_strain=1e-5)
    assert np.allclose(numeric.get_forces(), copper.get_forces(), atol=1e-6)
    assert np.allclose(numeric.get_stress(), copper.get_stress(), atol=1e-7)
