"""Compare energy-volume curves with reference data: python examples/equation_of_state.py --ensemble gfm/ --data DATA.

With the folder of labelled sources, the script evaluates all polymorphs of `--oxide` in `--source` (a DFT functional;
the head has the same name). Without it, the script compares an ensemble trained on EMT copper with EMT. It writes
equation_of_state.png.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from ase.io import read
from ase.units import GPa
from train_emt_copper import LATTICE, ensemble_or_copper

from atomsieve.calculators import GFMCalculator

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ensemble", type=Path)
parser.add_argument("--data", type=Path, help="folder with one subfolder per source")
parser.add_argument("--source", default="oxides_pbe")
parser.add_argument("--oxide", default="TiO2")
given = parser.parse_args()


def oxides(folder: Path) -> dict[str, list[Atoms]]:
    """Return the points of each polymorph, by volume; energies are the reference."""
    curves = defaultdict(list)
    for part in ("train", "test"):
        for atoms in read(folder / f"{part}.extxyz.gz", ":", format="extxyz"):
            name, polymorph, *_ = atoms.info["upstream_id"].split("-")
            if name == given.oxide:
                curves[polymorph].append(atoms)
    return {name: sorted(points, key=lambda a: a.get_volume()) for name, points in sorted(curves.items())}


def copper() -> dict[str, list[Atoms]]:
    """Return strained copper in two structures with EMT energies."""
    curves = {}
    for name, a in (("fcc", LATTICE), ("bcc", LATTICE / 2 ** (1 / 3))):
        points = [bulk("Cu", name, a=a * s, cubic=True) for s in np.linspace(0.95, 1.06, 9)]
        for atoms in points:
            atoms.calc = EMT()
        curves[name] = points
    return curves


real = given.ensemble is not None and given.data is not None
curves = oxides(given.data / given.source) if real else copper()
calc = GFMCalculator(ensemble_or_copper(given.ensemble), given.source if real else None)
per = "formula" if real else "atom"

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
name = given.oxide if real else "Cu"
print(f"{name} by head {calc.head}: V0 (A^3/{per}) and bulk modulus (GPa), reference in brackets")
for k, (name, points) in enumerate(curves.items()):
    units_of = np.array([len(a) / (3 if real else 1) for a in points])
    volumes = np.array([a.get_volume() for a in points]) / units_of
    reference = np.array([a.get_potential_energy() for a in points]) / units_of
    ours, spread = np.array([[calc.get_property(n, a) for n in ("energy", "energy_std")] for a in points]).T / units_of
    fits = [EquationOfState(volumes, e, eos="birchmurnaghan").fit(warn=False) for e in (ours, reference)]
    (v, _, b), (v_ref, _, b_ref) = fits
    error = 1e3 * np.abs((ours - ours.mean()) - (reference - reference.mean())).mean()
    print(f"{name:10s} {v:7.2f} ({v_ref:7.2f})  {b / GPa:6.0f} ({b_ref / GPa:6.0f})  shape {error:5.1f} meV/{per}")
    axes.errorbar(volumes, ours, yerr=spread, color=f"C{k}", marker=".", capsize=2, label=name)
    axes.plot(volumes, reference, "o", mfc="none", color=f"C{k}")
axes.set(xlabel=f"volume (Å³/{per})", ylabel=f"energy (eV/{per})")
axes.set_title(f"{given.oxide if real else 'Cu'}: ensemble (lines, bars: spread) and reference (circles)", fontsize=10)
axes.legend(frameon=False)
figure.savefig("equation_of_state.png", dpi=120)
