"""Use an ensemble on a server: `python examples/remote.py grpc://127.0.0.1:8001`, after `atomsieve serve start gfm/`.

The structures are copper, so the head must know this element.
"""

import sys

import numpy as np
from ase.build import bulk
from ase.calculators.calculator import CalculatorError
from ase.optimize import BFGS

from atomsieve.calculators import RemoteCalculator
from atomsieve.remote import RemotePredictor
from atomsieve.structures import StructureBatch

if len(sys.argv) < 2:
    sys.exit("usage: python examples/remote.py grpc://HOST:PORT [HEAD]   (a head that knows copper)")
endpoint = sys.argv[1]
head = sys.argv[2] if len(sys.argv) > 2 else None

with RemotePredictor.connect(endpoint, head=head) as predictor:
    print(f"{predictor.members} members, heads: {', '.join(predictor.heads)}")
    print(f"head {predictor.head}, {predictor.precision} on {predictor.device}, ensemble {predictor.ensemble_id[:12]}")
    lengths = np.linspace(3.4, 3.9, 6)
    crystals = StructureBatch.from_ase([bulk("Cu", a=a, cubic=True) for a in lengths])
    found = predictor(crystals, want={"energy", "spread"})
    for a, energy, spread in zip(lengths, found.energy, found.energy_std, strict=True):
        print(f"a = {a:.2f} Angstrom: {energy / 4:9.4f} +- {spread / 4:.4f} eV per atom")

atoms = bulk("Cu", cubic=True)
atoms.rattle(0.05, seed=1)
atoms.calc = RemoteCalculator(endpoint, head=head)
before = atoms.get_potential_energy()
BFGS(atoms, logfile=None).run(fmax=0.05, steps=10)
print(f"10 steps of BFGS: {before:.4f} -> {atoms.get_potential_energy():.4f} eV")
try:
    RemoteCalculator(endpoint, head="no such head")
except CalculatorError as error:
    print(f"refused: {error}")
