"""Ensembles for the calculators: an untrained one, and its calculator."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk

from atomsieve.calculators import GFMCalculator
from tests.helpers import tiny_gfm


@pytest.fixture(scope="session")
def gfm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three untrained members; heads `organic` (H C N O) and `metal` (O Cu)."""
    return tiny_gfm(tmp_path_factory.mktemp("calculators") / "gfm")


@pytest.fixture(scope="session")
def predictor(gfm: Path):
    from atomsieve.predict import Predictor

    return Predictor.load(gfm, precision="fp64")


@pytest.fixture
def make(predictor) -> Callable[..., GFMCalculator]:
    """Return a calculator; what it is made of is loaded once."""

    def calculator(head: str = "metal", **kwargs) -> GFMCalculator:
        return GFMCalculator(predictor, head, **kwargs)

    return calculator


@pytest.fixture
def copper() -> Atoms:
    """Eight rattled copper atoms in a strained cell."""
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.08, seed=1)
    atoms.set_cell(atoms.cell @ [[1.01, 0.02, 0], [0, 0.99, 0], [0.01, 0, 1]], scale_atoms=True)
    return atoms


@pytest.fixture(scope="session")
def copper_gfm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members trained on EMT copper; a folder of that name made before can be given."""
    made = os.environ.get("ATOMSIEVE_COPPER_GFM")
    if made:
        return Path(made)
    script = Path(__file__).parents[2] / "examples" / "train_emt_copper.py"
    spec = importlib.util.spec_from_file_location("train_emt_copper", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.train_copper(tmp_path_factory.mktemp("copper"), members=2, steps=500)
