"""The guard warns, stops and writes exactly when a limit is passed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from atomsieve.calculators import GFMCalculator, Guard, GuardStop, GuardWarning
from atomsieve.errors import UsageError
from atomsieve.gfm import load_gfm, save_gfm
from atomsieve.predict import Predictor
from atomsieve.uncertainty.calibration import parse_calibration

SCALE_E, SCALE_F = 2.0, 3.0


@pytest.fixture(scope="module")
def calibrated(gfm: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The same ensemble with a calibration of one of its heads."""
    scales = {"energy_per_atom": SCALE_E, "force_component": SCALE_F}
    entry = {name: {"scale": s, "n": 50, "coverage_90": 0.9} for name, s in scales.items()}
    folder = tmp_path_factory.mktemp("guard") / "gfm"
    known = parse_calibration({"heads": {"metal": entry}})
    save_gfm(folder, load_gfm(gfm)[0], default_head="metal", calibration=known)
    return Predictor.load(folder, precision="fp64")


@pytest.fixture
def hot(calibrated: Predictor, copper: Atoms) -> tuple[Atoms, VelocityVerlet]:
    copper.calc = GFMCalculator(calibrated)
    MaxwellBoltzmannDistribution(copper, temperature_K=900, rng=np.random.default_rng(0))
    return copper, VelocityVerlet(copper, 2 * units.fs)


def test_calibrated_sigmas_are_given(calibrated: Predictor, copper: Atoms) -> None:
    calc = GFMCalculator(calibrated)
    assert {"sigma_energy", "sigma_forces"} <= set(calc.implemented_properties)
    sigma, spread = (calc.get_property(n, copper) for n in ("sigma_forces", "forces_std"))
    assert np.allclose(sigma, SCALE_F * np.sqrt((spread**2).mean(1)))
    assert np.isclose(calc.get_property("sigma_energy"), SCALE_E * calc.get_property("energy_std"))
    calc.set(head="organic")
    assert "sigma_energy" not in calc.implemented_properties


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ("max_sigma_energy", "sigma_energy"),
        ("max_sigma_force", "sigma_forces"),
        ("max_energy_std", "energy_std"),
        ("max_force_std", "forces_std"),
    ],
)
def test_each_limit_bites_just_above_its_value(calibrated: Predictor, copper: Atoms, limit: str, name: str) -> None:
    copper.calc = GFMCalculator(calibrated)
    value = copper.calc.get_property(name, copper)
    if "energy" in name:
        value = value / len(copper)
    else:
        value = (np.sqrt((value**2).mean(1)) if value.ndim == 2 else value).max()
    Guard(copper, in_domain=False, **{limit: value * 1.001})()
    with pytest.raises(GuardStop, match=f"check 1 .*{limit[4:]}.* above"):
        Guard(copper, in_domain=False, **{limit: float(value * 0.999)})()


def test_stop_ends_a_run_at_the_first_passing(hot) -> None:
    """The run ends at the very step whose sigma is the first above the limit."""
    atoms, dynamics = hot
    twin = atoms.copy()
    twin.calc = GFMCalculator(atoms.calc.predictor)
    sigmas: list[float] = []
    free = VelocityVerlet(twin, 2 * units.fs)
    free.attach(lambda: sigmas.append(twin.calc.get_property("sigma_forces", twin).max()))
    free.run(30)
    limit = float(np.quantile(sigmas, 0.7))
    expected = int(np.argmax(np.array(sigmas) > limit))
    assert 0 < expected < 30
    guard = Guard(atoms, max_sigma_force=limit)
    dynamics.attach(guard)
    assert guard.run(dynamics, 30) is False
    assert dynamics.nsteps == expected and guard.checks == expected + 1 and guard.passed == 1
    assert "sigma_force" in guard.reasons[0]
    assert np.isfinite(atoms.get_forces()).all(), "the atoms stay usable"
    assert Guard(atoms, max_sigma_force=1e3).run(dynamics, 2) is False, "the first guard is still attached"


def test_warning_goes_on(hot) -> None:
    atoms, dynamics = hot
    guard = Guard(atoms, max_sigma_energy=1e-9, action="warn")
    dynamics.attach(guard, interval=2)
    with pytest.warns(GuardWarning, match=r"check \d: sigma_energy per atom .* above 1e-09 eV") as seen:
        assert guard.run(dynamics, 6)
    assert guard.checks == guard.passed == 4 and sum(w.category is GuardWarning for w in seen) == 4


def test_frames_are_written_for_labelling(hot, tmp_path: Path) -> None:
    atoms, dynamics = hot
    atoms.set_constraint(FixAtoms([0]))
    guard = Guard(atoms, max_sigma_force=1e-9, action="write", file=tmp_path / "odd.extxyz", every=3)
    counts: list[int] = []
    dynamics.attach(guard)
    dynamics.attach(lambda: counts.append(len(read(guard.file, ":")) if guard.file.exists() else 0))
    dynamics.run(9)
    assert counts == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4], "a frame is on the disk at once, at most each third check"
    frames = read(guard.file, ":")
    assert [f.info["guard_check"] for f in frames] == [1, 4, 7, 10] and guard.written == 4
    last = frames[-1]
    assert np.allclose(last.positions, atoms.positions, atol=1e-7) and np.allclose(last.cell, atoms.cell)
    assert "sigma_force" in last.info["guard"] and last.info["predicted_head"] == "metal"
    assert np.isclose(last.info["predicted_energy"], atoms.get_potential_energy())
    assert np.allclose(last.arrays["sigma_forces"], atoms.calc.get_property("sigma_forces", atoms), atol=1e-6)
    assert last.calc is None, "nothing in it can be taken for a label"
    last.calc = EMT()  # what a labelling code does
    assert np.isfinite(last.get_potential_energy())


def test_the_domain_is_watched(make, tmp_path: Path) -> None:
    """The untrained ensemble holds no statistics; the flag is put in by hand."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = make()
    guard = Guard(atoms, action=("write", "stop"), file=tmp_path / "f.extxyz")
    guard()
    atoms.calc.outside = 4
    with pytest.raises(GuardStop, match="outside of the domain: short contact"):
        guard()
    assert guard.written == 1
    Guard(atoms, max_energy_std=1e3, in_domain=False)()


def test_in_relaxation_with_a_filter(calibrated: Predictor, copper: Atoms) -> None:
    copper.calc = GFMCalculator(calibrated)
    both = FrechetCellFilter(copper)
    guard = Guard(both, max_sigma_force=1e-9)
    optimizer = FIRE(both, logfile=None)
    optimizer.attach(guard)
    assert guard.run(optimizer, fmax=1e-3, steps=5) is False and optimizer.nsteps == 0


def test_construction_errors(make, calibrated: Predictor, predictor: Predictor, copper: Atoms, tmp_path: Path) -> None:
    from tests.helpers import tiny_gfm

    plain = copper.copy()
    with pytest.raises(UsageError, match=r"these have NoneType; set atoms.calc"):
        Guard(plain)
    plain.calc = make()
    for arguments, said in (
        ({"max_sigma_force": 0.1}, r"'metal' is not calibrated for forces; run `atomsieve calibrate`.*max_force_std"),
        ({"max_sigma_energy": 0.1}, r"not calibrated for energy.*max_energy_std"),
        ({"max_force_std": -1.0}, "max_force_std must be a number above 0, got -1"),
        ({"max_force_std": "1"}, "max_force_std must be a number above 0, got '1'"),
        ({"action": "write", "file": "nowhere/f.extxyz"}, "there is no folder nowhere"),
        ({"action": "write", "file": "f.cif"}, "writes extxyz"),
        ({"max_force_std": float("nan")}, "got nan"),
        ({"in_domain": False}, "watches nothing"),
        ({"action": "halt"}, "unknown action 'halt'"),
        ({"action": ()}, "needs an action"),
        ({"every": 0}, "every=0"),
    ):
        with pytest.raises(UsageError, match=said):
            Guard(plain, **arguments)
    with pytest.raises(UsageError, match="unknown head 'x'"):
        Guard(calibrated, max_sigma_force=1.0, head="x")
    with pytest.raises(UsageError, match="head 'organic' is not calibrated"):
        Guard(calibrated, max_sigma_force=1.0, head="organic")
    single = Predictor.load(tiny_gfm(tmp_path / "one", members=1))
    with pytest.raises(UsageError, match="1 member and no spread"):
        Guard(single, max_force_std=1.0)
    with pytest.raises(UsageError, match="made for a Predictor"):
        Guard(predictor)()


def limit_of(calibrated: Predictor, **limits: float) -> Guard:
    return Guard(calibrated, in_domain=False, **limits)


def test_what_is_not_a_number_is_not_within_a_limit(calibrated: Predictor) -> None:
    guard = limit_of(calibrated, max_sigma_force=1.0, max_energy_std=1.0)
    ptr, outside = np.array([0, 2, 3, 4]), np.zeros(3, np.uint8)
    values = {"sigma_forces": np.array([0.5, np.nan, 0.5, np.nan]), "energy_std": np.array([0.1, np.nan, np.nan])}
    found = guard.judge(values, ptr, outside, np.array([True, True, False]))
    assert found == [
        ["sigma_force is not a number, limit 1 eV/A"],
        ["energy_std per atom is not a number, limit 1 eV"],
        [],
    ]


def test_structures_without_atoms_are_judged_apart(calibrated: Predictor) -> None:
    """Empty ones at the start, in the middle and at the end leave the maxima of their neighbours alone."""
    guard = limit_of(calibrated, max_sigma_force=1.0)
    for counts in ([0, 2, 0, 0, 1, 3, 0], [2, 1], [0], []):
        ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        sigma = np.random.default_rng(3).uniform(0, 2, ptr[-1])
        found = guard.judge({"sigma_forces": sigma}, ptr, np.zeros(len(counts), np.uint8))
        assert [bool(r) for r in found] == [bool((sigma[a:b] > 1).any()) for a, b in pairwise(ptr)]


def test_another_head_of_the_calculator_is_noticed(calibrated: Predictor, tmp_path: Path) -> None:
    atoms = Atoms("O2", [[0, 0, 0], [0, 0, 1.3]])  # an element of both heads
    atoms.calc = GFMCalculator(calibrated)
    raw = Guard(atoms, max_force_std=1e-9, in_domain=False, action="write", file=tmp_path / "f.extxyz")
    sigma = Guard(atoms, max_sigma_force=1e3, in_domain=False)
    raw(), sigma()
    atoms.calc.set(head="organic")
    raw()
    assert [f.info["predicted_head"] for f in read(raw.file, ":")] == ["metal", "organic"]
    for _ in range(2):
        with pytest.raises(UsageError, match="head 'organic' is not calibrated for forces"):
            sigma()
