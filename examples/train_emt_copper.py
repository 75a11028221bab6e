"""Train a small ensemble on copper with labels of ASE's EMT potential: python examples/train_emt_copper.py copper/.

The script writes copper/run/gfm, in about one and a half minutes on one core. The structures are strained and rattled
crystals, a vacancy with a neighbour on its way into it, and frames of hot copper. The other examples use this ensemble
if you give none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from atomsieve.structures import SourceInfo, StructureBatch, write_structures
from atomsieve.train.config import parse_config
from atomsieve.train.run import train

LATTICE = 3.59
"""Lattice constant of EMT copper, Angstrom."""


def crystals(n: int, rng: np.random.Generator) -> list[Atoms]:
    """Return strained, rattled cells of 1 to 16 atoms."""
    images = []
    for k in range(n):
        atoms = bulk("Cu", a=LATTICE, cubic=k % 2 == 0).repeat((2, 2, 1) if k % 3 == 0 else 1)
        strain = rng.uniform(-0.06, 0.08) * np.eye(3) + rng.normal(scale=0.015, size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += rng.normal(scale=rng.choice([0.0, 0.05, 0.1]), size=atoms.positions.shape)
        images.append(atoms)
    return images


def vibrating(n: int, rng: np.random.Generator) -> list[Atoms]:
    """Return cells of 27 or 32 atoms near equilibrium, which determine the phonons."""
    images = []
    for k in range(n):
        atoms = bulk("Cu", a=LATTICE).repeat(3) if k % 2 else bulk("Cu", a=LATTICE, cubic=True).repeat(2)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.004, size=(3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=rng.choice([0.02, 0.06]), size=atoms.positions.shape)
        images.append(atoms)
    return images


def vacancies(n: int, rng: np.random.Generator) -> list[Atoms]:
    """Return cells of 31 atoms with a vacancy and a neighbour somewhere on its way into it."""
    images = []
    for _ in range(n):
        atoms = bulk("Cu", a=LATTICE, cubic=True).repeat(2)
        atoms.positions[1] += rng.uniform(0, 1) * (atoms.positions[0] - atoms.positions[1])
        del atoms[0]
        atoms.set_cell(atoms.cell * (1 + rng.uniform(-0.01, 0.015)), scale_atoms=True)
        atoms.positions += rng.normal(scale=rng.choice([0.01, 0.05, 0.1]), size=atoms.positions.shape)
        images.append(atoms)
    return images


def trajectory(n: int, kelvin: float, expand: float, seed: int) -> list[Atoms]:
    """Return frames of an EMT run of 32 atoms, 40 fs apart."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", a=LATTICE * expand, cubic=True).repeat(2)
    atoms.calc = EMT()
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * kelvin, rng=rng)
    run = Langevin(atoms, 4 * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, rng=rng, fixcm=False)
    images = []
    for _ in range(n):
        run.run(10)
        images.append(atoms.copy())
    return images


def label(images: list[Atoms]) -> list[Atoms]:
    """Attach EMT energies, forces and stresses."""
    for atoms in images:
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()
    return images


def make_structures(seed: int = 0, scale: float = 1.0) -> StructureBatch:
    """Return labelled structures; `scale` multiplies their number (300)."""
    rng = np.random.default_rng(seed)
    images = crystals(int(80 * scale), rng) + vibrating(int(80 * scale), rng) + vacancies(int(80 * scale), rng)
    for kelvin, expand in ((500.0, 1.005), (1200.0, 1.02)):
        images += trajectory(int(30 * scale), kelvin, expand, seed + int(kelvin))
    batch = StructureBatch.from_ase(label(images))
    return batch.replace(head=np.zeros(len(batch), np.int32))


def train_copper(folder: Path, members: int = 4, steps: int = 1500, seed: int = 0) -> Path:
    """Make the data, train on them, and return the gfm/ folder; an existing folder is returned unchanged."""
    gfm = folder / "run" / "gfm"
    if gfm.is_dir():
        return gfm
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "copper.bp"
    if not data.exists():
        write_structures(data, make_structures(seed), [SourceInfo("emt", "EMT of ASE")])
    config = parse_config(
        {
            "data": [{"path": str(data)}],
            "output": str(folder / "run"),
            "default_head": "emt",
            "model": {"hidden": 16, "layers": 2, "cutoff": 5.0, "n_basis": 8, "head_hidden": 16},
            "ensemble": {"members": members, "seed": seed},
            "split": {"train": 0.8, "val": 0.05, "test": 0.0, "calibration": 0.15},
            "batch": {"atoms": 128},
            "loss": {"force": 3.0, "stress": 1.0, "force_floor": 0.3, "energy_end": 3.0},
            "optimizer": {"lr": 6e-3, "ema": 0.98, "warmup": 0.03},
            "budget": {"steps": steps},
            "device": "cpu",
            "tensorboard": False,
        }
    )
    return train(config).gfm


def ensemble_or_copper(ensemble: Path | None) -> Path:
    """Return the given ensemble, or the one in ./copper, which is trained if it does not exist yet."""
    return train_copper(Path("copper")) if ensemble is None else ensemble


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("copper"))
    parser.add_argument("--steps", type=int, default=1500, help="steps of training")
    given = parser.parse_args()
    print(train_copper(given.folder, steps=given.steps))
