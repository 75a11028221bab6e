"""Structures whose labels have known errors: what a small ensemble predicts, and noise in proportion to its spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atomsieve.predict import Predictor
from atomsieve.predict.intervals import atom_spread
from atomsieve.structures import StructureBatch
from atomsieve.structures.dataset.writer import write_structures
from atomsieve.structures.source import SourceInfo
from tests.helpers import copper_oxides

ENERGY_FACTOR, FORCE_FACTOR = 3.0, 2.0


def noisy_labels(gfm: Path, n: int, seed: int, head: str = "metal") -> StructureBatch:
    """Copper oxides whose labels differ from the predictions by ENERGY_FACTOR and FORCE_FACTOR spreads."""
    batch, rng = copper_oxides(n, seed), np.random.default_rng(seed + 1000)
    out = Predictor.load(gfm)(batch, {"energy", "forces", "spread", "force_spread"}, head)
    noise = FORCE_FACTOR * atom_spread(out.forces_std)[:, None] * rng.normal(size=(batch.n_atoms, 3))
    yes = np.ones(n, bool)
    return batch.replace(
        energy=out.energy + ENERGY_FACTOR * out.energy_std * rng.normal(size=n),
        has_energy=yes,
        forces=out.forces + noise,
        has_forces=yes,
        head=np.zeros(n, np.int32),
    )


def labelled_file(path: Path, batch: StructureBatch, source: str = "metal") -> Path:
    """Write structures as a file of one source."""
    write_structures(path, batch, [SourceInfo(source, "made up")])
    return path
