"""Small ensembles and structures for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atomsieve.gfm import save_gfm
from atomsieve.models import Ensemble, HeadSpec, ModelConfig
from atomsieve.structures import StructureBatch


def tiny_heads() -> list[HeadSpec]:
    """Two heads: organic molecules, and copper with oxygen."""
    organic = {1: -13.6, 6: -1030.0, 7: -1480.0, 8: -2040.0}
    metal = {8: -4.5, 29: -3.5}
    return [
        HeadSpec(name=name, level_of_theory="made up", references=known, scale=scale, elements=dict.fromkeys(known, 9))
        for name, known, scale in (("organic", organic, 0.8), ("metal", metal, 1.2))
    ]


def tiny_ensemble(members: int = 3, **config: object) -> Ensemble:
    """An untrained ensemble of small members."""
    defaults: dict[str, object] = {"hidden": 16, "layers": 2, "head_hidden": 16}
    return Ensemble(ModelConfig(**{**defaults, **config}), tiny_heads(), list(range(1, members + 1)))


def tiny_gfm(path: Path, members: int = 3, default_head: str = "metal", **config: object) -> Path:
    """Write an untrained ensemble as a gfm/ folder; heads `organic` (H C N O) and `metal` (O Cu)."""
    return save_gfm(path, tiny_ensemble(members, **config), default_head=default_head)


def copper_oxides(n: int, seed: int = 0) -> StructureBatch:
    """N periodic structures of 2 to 8 atoms of copper and oxygen, no two atoms close."""
    from ase.build import bulk

    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=3.7, cubic=bool(rng.integers(2)))
        if rng.integers(2):
            atoms = atoms.repeat((2, 1, 1))
        atoms.numbers[rng.random(len(atoms)) < 0.3] = 8
        atoms.set_cell(atoms.cell * (1 + 0.05 * rng.normal()), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        images.append(atoms)
    return StructureBatch.from_ase(images)
