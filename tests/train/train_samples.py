"""Two small labelled sources that take no time to make: EMT crystals, and molecules with energies only."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from atomsieve.structures import StructureBatch
from atomsieve.structures.source import SourceInfo

SOURCES = [SourceInfo("emt", "EMT"), SourceInfo("springs", "harmonic bonds, energies only")]


def crystals(n: int, seed: int) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=3.6 * rng.uniform(0.95, 1.05), cubic=True)
        atoms.numbers[rng.random(4) < 0.4] = 47
        atoms.rattle(0.12, rng=rng)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(atoms)
    return out


def molecules(n: int, seed: int) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        length = rng.uniform(0.9, 1.5)
        atoms = Atoms("CO", [[0, 0, 0], [length, 0, 0]])
        energy = -1000.0 + 5 * (length - 1.13) ** 2
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        out.append(atoms)
    return out


def labelled(n_crystals: int, n_molecules: int, seed: int = 0) -> StructureBatch:
    both = StructureBatch.concatenate(
        [StructureBatch.from_ase(crystals(n_crystals, seed)), StructureBatch.from_ase(molecules(n_molecules, seed))]
    )
    head = np.repeat([0, 1], [n_crystals, n_molecules]).astype(np.int32)
    return both.replace(head=head, id=np.arange(len(both)))
