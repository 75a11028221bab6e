"""Compute energies, forces and uncertainties of a few structures: python examples/predict.py demo/gfm."""

import sys

from ase.build import bulk

from atomsieve.predict import Predictor
from atomsieve.predict.status import Status
from atomsieve.structures import StructureBatch

predictor = Predictor.load(sys.argv[1], precision="fp64")
metals = ["Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al"]
strained = [bulk(name) for name in metals]
for atoms in strained:
    atoms.set_cell(atoms.cell * 1.03, scale_atoms=True)

prediction = predictor(StructureBatch.from_ase(strained), want={"energy", "forces", "stress", "spread"})
print(f"head {predictor.head}, {predictor.members} members, cutoff {predictor.cutoff} Angstrom")
for k, name in enumerate(metals):
    pressure = -prediction.stress[k].trace() / 3
    print(
        f"{name:3s} {Status(prediction.status[k]).name:4s} {prediction.energy[k]:8.4f} "
        f"+- {prediction.energy_std[k]:.4f} eV, pressure {160.2177 * pressure:7.2f} GPa"
    )
