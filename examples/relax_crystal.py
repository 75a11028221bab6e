"""Relax one crystal and its cell with ASE, then many in one batch: python examples/relax_crystal.py [--ensemble gfm/].

Without `--ensemble` the script trains one on EMT copper. It prints the result of EMT for comparison.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from train_emt_copper import ensemble_or_copper

from atomsieve.calculators import GFMCalculator, Stop, relax
from atomsieve.structures import StructureBatch

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ensemble", type=Path)
parser.add_argument("--head")
given = parser.parse_args()

calc = GFMCalculator(ensemble_or_copper(given.ensemble), given.head)
start = bulk("Cu", a=3.75, cubic=True)
start.rattle(0.08, seed=0)
start.set_cell(start.cell @ [[1.0, 0.02, 0], [0, 0.98, 0], [0, 0.01, 1.0]], scale_atoms=True)

for name, calculator in (("ensemble", calc), ("EMT", EMT())):
    atoms = start.copy()
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=200)
    a = atoms.get_volume() ** (1 / 3)
    print(f"{name:9s} a = {a:.4f} A, E = {atoms.get_potential_energy() / len(atoms):+.4f} eV/atom")
    if name == "ensemble":
        spread = calc.get_property("energy_std", atoms) / len(atoms)
        print(f"          spread of the members {1e3 * spread:.1f} meV/atom, in domain: {calc.results['in_domain']}")

many = []
for k in range(8):
    atoms = bulk("Cu", a=3.45 + 0.05 * k, cubic=k % 2 == 0)
    atoms.rattle(0.05, seed=k)
    many.append(atoms)
result = relax(calc.predictor, StructureBatch.from_ase(many), fmax=0.01, cell=True, head=calc.head)
counts = result.batch.counts
lattice = np.cbrt(4 * np.abs(np.linalg.det(result.batch.cell)) / counts)
for k in range(len(many)):
    energy = result.energy[k] / counts[k]
    end = Stop(result.reason[k]).name
    print(f"batch {k}: a = {lattice[k]:.4f} A, {energy:+.4f} eV/atom, {result.steps[k]} steps, {end}")
