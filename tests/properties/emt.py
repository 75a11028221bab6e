"""A predictor over ASE's EMT: members are the potential times a factor, so that every spread is known."""

from __future__ import annotations

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT, parameters
from ase.data import atomic_numbers
from ase.stress import voigt_6_to_full_3x3_stress

from atomsieve.predict import Prediction, Status
from atomsieve.predict.base import PredictorBase
from atomsieve.predict.interface import Capabilities
from atomsieve.predict.status import check_inputs
from atomsieve.structures import StructureBatch

FACTORS = np.array([0.9, 1.0, 1.1])
KNOWN = sorted(atomic_numbers[symbol] for symbol in parameters)


class EMTPredictor(PredictorBase):
    """EMT times `FACTORS`; their mean is EMT itself. `calls` counts structures evaluated."""

    def __init__(self, apart: bool = True):
        self.heads, self.default_head, self.head = ["emt"], "emt", "emt"
        self.ensemble_id, self.cutoff, self.members = "e" * 64, 6.0, len(FACTORS)
        self.apart, self.calls = apart, 0

    @property
    def capabilities(self):
        outputs = {"forces", "stress"} | ({"forces_members"} if self.apart else set())
        return Capabilities(choices=("emt",), precisions=("fp64",), outputs=frozenset(outputs))

    def elements(self, head):
        return KNOWN

    def __call__(self, batch, want, head=None, *, max_structure_atoms=None, build=None):
        seen = np.zeros(256, bool)
        seen[KNOWN] = True
        status = check_inputs(batch, seen, charge_spin=False, max_atoms=max_structure_atoms)
        many, atoms = len(batch), batch.n_atoms
        energy, forces, stress = np.full(many, np.nan), np.full((atoms, 3), np.nan), np.full((many, 3, 3), np.nan)
        for s in np.flatnonzero(status == Status.OK):
            self.calls += 1
            image = batch.slice(int(s), int(s) + 1).to_ase()[0]
            image.calc = EMT()
            energy[s] = image.get_potential_energy()
            forces[batch.ptr[s] : batch.ptr[s + 1]] = image.get_forces()
            if image.pbc.all():
                stress[s] = voigt_6_to_full_3x3_stress(image.get_stress())
        each = "members" in want
        return Prediction(
            head="emt",
            calibrated=frozenset(),
            status=status,
            outside=np.zeros(many, np.uint8),
            in_domain=status == Status.OK,
            energy=energy,
            forces=forces if "forces" in want else None,
            stress=stress if "stress" in want else None,
            energy_members=np.multiply.outer(FACTORS, energy) if each else None,
            forces_members=np.multiply.outer(FACTORS, forces) if each and self.apart and "forces" in want else None,
            stress_members=np.multiply.outer(FACTORS, stress) if "stress_members" in want else None,
        )


def crystal(symbol: str, a: float):
    """An fcc crystal, ready for EMT."""
    atoms = bulk(symbol, "fcc", a=a)
    atoms.calc = EMT()
    return atoms


METALS = {"Cu": 3.59, "Al": 3.995, "Ni": 3.49}
"""Symbols and lattice constants near EMT's minimum."""


def metals() -> StructureBatch:
    return StructureBatch.from_ase([bulk(s, "fcc", a=a) for s, a in METALS.items()])
