"""Liquid water at constant temperature, monitored by a guard: python examples/water_nvt.py --ensemble gfm/ --data DATA.

The run starts from the first test frame of `water_pbe0ts` (64 molecules). When the calibrated force error of a frame
exceeds its limit, or the frame leaves the domain, the guard writes it to water_guard.extxyz for labelling and ends the
run. This prevents an ensemble with little training data on water from letting atoms collide; with `--go-on` the guard
only warns. The script needs an ensemble with that head and the folder of labelled sources.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from atomsieve.calculators import GFMCalculator, Guard

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ensemble", type=Path)
parser.add_argument("--data", type=Path)
parser.add_argument("--head", default="water_pbe0ts")
parser.add_argument("--precision", default="fp32")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--max-sigma-force", type=float, default=1.2, help="eV/Angstrom")
parser.add_argument("--go-on", action="store_true", help="warn and write when a limit is exceeded, but continue")
given = parser.parse_args()
if given.ensemble is None or given.data is None:
    raise SystemExit("water_nvt.py: give --ensemble gfm/ with a water head and --data, the folder of labelled sources")

atoms = read(given.data / "water_pbe0ts" / "test.extxyz.gz", 0, format="extxyz")
atoms.calc = GFMCalculator(given.ensemble, given.head, given.precision)
calibrated = "sigma_forces" in atoms.calc.implemented_properties
limit = {"max_sigma_force" if calibrated else "max_force_std": given.max_sigma_force}
print(f"head {given.head} is {'calibrated' if calibrated else 'not calibrated: the raw spread is watched'}")
guard = Guard(atoms, **limit, action=("write", "warn" if given.go_on else "stop"), file="water_guard.extxyz", every=5)

rng = np.random.default_rng(0)
MaxwellBoltzmannDistribution(atoms, temperature_K=330, rng=rng)
run = Langevin(atoms, 0.5 * units.fs, temperature_K=330, friction=0.01 / units.fs, rng=rng, fixcm=False)
run.attach(guard, interval=20)
start = time.perf_counter()


def report() -> None:
    """Print time, temperature and largest force error."""
    what = "sigma_forces" if calibrated else "forces_std"
    error = atoms.calc.get_property(what, atoms).max()
    print(f"{run.get_time() / units.fs:7.1f} fs  {atoms.get_temperature():5.0f} K  largest {what} {error:.3f} eV/A")


run.attach(report, interval=max(given.steps // 5, 1))
if not guard.run(run, given.steps):
    print(f"the guard ended the run after {run.get_time() / units.fs:.1f} fs: {'; '.join(guard.reasons)}")
oxygen, hydrogen = atoms.symbols == "O", np.flatnonzero(atoms.symbols == "H")
closest = [np.sort(atoms.get_distances(i, hydrogen, mic=True))[:2] for i in np.flatnonzero(oxygen)]
print(f"O-H bonds {np.mean(closest):.3f} A on average, longest {np.max(closest):.3f} A")
print(f"guard: {guard.checks} checks, {guard.passed} limits passed, {guard.written} frames written")
print(f"{1e3 * (time.perf_counter() - start) / max(run.nsteps, 1):.0f} ms a step")
