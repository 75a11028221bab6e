"""Barrier of a vacancy hop in copper, from the ensemble and from EMT: python examples/neb_vacancy.py [--ensemble gfm/].

Without `--ensemble` the script trains one on EMT labels. All images share one calculator. It writes neb_vacancy.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.mep import NEB
from ase.optimize import BFGS
from train_emt_copper import LATTICE, ensemble_or_copper

from atomsieve.calculators import GFMCalculator

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ensemble", type=Path)
parser.add_argument("--head")
parser.add_argument("--images", type=int, default=5, help="number of images between the ends")
given = parser.parse_args()

calc = GFMCalculator(ensemble_or_copper(given.ensemble), given.head)


def ends():
    """Return the cell of 31 atoms before and after the hop of the first atom."""
    full = bulk("Cu", a=LATTICE, cubic=True).repeat(2)
    hole = full.positions[0].copy()
    before = full[1:]
    after = before.copy()
    after.positions[0] = hole
    return before, after


profiles = {}
for name, calculator in (("ensemble", calc), ("EMT", EMT())):
    first, last = ends()
    for end in (first, last):
        end.calc = calculator
        BFGS(end, logfile=None).run(fmax=0.02, steps=50)
    images = [first, *(first.copy() for _ in range(given.images)), last]
    for image in images:
        image.calc = calculator
    band = NEB(images, climb=True, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate(mic=True)
    BFGS(band, logfile=None).run(fmax=0.05, steps=60)
    energies = np.array([image.get_potential_energy() for image in images])
    spread = None
    if name == "ensemble":
        member = np.array([calculator.get_property("energy_ensemble", image) for image in images])
        spread = (member - member[0]).std(1, ddof=1)
    profiles[name] = energies - energies[0], spread
    bar = "" if spread is None else f" +- {spread.max():.3f} (spread)"
    print(f"{name:9s} barrier {profiles[name][0].max():.3f} eV{bar}")

x = np.linspace(0, 1, given.images + 2)
figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
energies, spread = profiles["ensemble"]
axes.errorbar(x, energies, yerr=spread, marker="o", capsize=3, label="ensemble (bars: spread)")
axes.plot(x, profiles["EMT"][0], "s--", color="black", label="EMT")
axes.set(xlabel="image, as part of the path", ylabel="energy (eV)", title="A vacancy moves in copper")
axes.legend(frameon=False)
figure.savefig("neb_vacancy.png", dpi=120)
