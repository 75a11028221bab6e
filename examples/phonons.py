"""Phonons of copper by finite displacements: python examples/phonons.py [--ensemble gfm/].

Without `--ensemble` the script trains one on EMT copper. It plots the bands of the ensemble and of EMT in phonons.png.
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
from ase.phonons import Phonons
from train_emt_copper import LATTICE, ensemble_or_copper

from atomsieve.calculators import GFMCalculator

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ensemble", type=Path)
parser.add_argument("--head")
parser.add_argument("--repeat", type=int, default=4, help="supercell")
given = parser.parse_args()

calc = GFMCalculator(ensemble_or_copper(given.ensemble), given.head)
atoms = bulk("Cu", a=LATTICE)
path = atoms.cell.bandpath("GXWKGL", npoints=90)
x, ticks, labels = path.get_linear_kpoint_axis()

figure, axes = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
for name, calculator, style in (("ensemble", calc, {"color": "C0"}), ("EMT", EMT(), {"color": "black", "ls": "--"})):
    phonons = Phonons(atoms, calculator, supercell=(given.repeat,) * 3, delta=0.02, name=f"phonons_{name}")
    phonons.run()
    phonons.read(acoustic=True)
    thz = phonons.get_band_structure(path).energies[0] * 241.799
    for k in range(thz.shape[1]):
        axes.plot(x, thz[:, k], label=name if k == 0 else None, **style)
    at_x = thz[np.argmin(np.abs(x - ticks[1]))]
    print(f"{name:9s} at X: {', '.join(f'{f:.2f}' for f in at_x)} THz; lowest anywhere {thz.min():.2f} THz")
    phonons.clean()
axes.set(xticks=ticks, xticklabels=labels, xlim=(x[0], x[-1]), ylabel="frequency (THz)", title="Phonons of copper")
axes.axhline(0, color="0.7", lw=0.8)
axes.legend(frameon=False)
figure.savefig("phonons.png", dpi=120)
