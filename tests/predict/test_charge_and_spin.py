"""A model that is conditioned on charge and multiplicity takes no impossible values, and flags those it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import InputError

from atomsieve.calculators import GFMCalculator
from atomsieve.gfm import save_gfm
from atomsieve.models import Ensemble, HeadSpec, ModelConfig
from atomsieve.predict import Outside, Predictor, Status
from atomsieve.predict.condition_test import ConditionTest
from atomsieve.structures import StructureBatch

WATER = molecule("H2O")
METHYL = molecule("CH3")
COPPER = bulk("Cu")


def stated(atoms: Atoms, charge: float, spin: float) -> Atoms:
    out = atoms.copy()
    out.info |= {"charge": charge, "spin": spin}
    return out


def head(**statistics) -> HeadSpec:
    known = {1: -13.0, 6: -1000.0, 8: -2000.0, 29: -5.0}
    return HeadSpec(name="x", level_of_theory="y", references=known, scale=1, elements=known, statistics=statistics)


def save(folder: Path, *heads: HeadSpec, **config) -> Path:
    model = ModelConfig(**{"hidden": 16, "layers": 2, "head_hidden": 16, "charge_spin": True, **config})
    return save_gfm(folder, Ensemble(model, list(heads or [head()]), [1, 2]))


IMPOSSIBLE = [(0, 0), (0, -1), (0, 1.5), (11, 1), (-11, 2), (0, 12), (0, 1e30), (np.inf, 1), (0, np.inf)]
ODD = [(0, 2), (1, 1), (-1, 3), (0.5, 1)]
FINE = [(0, 1), (0, 3), (1, 2), (-1, 2), (10, 1), (0, 11)]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """An ensemble of a time when nothing was counted."""
    return Predictor.load(save(tmp_path_factory.mktemp("conditioned") / "gfm"))


def test_no_energy_for_what_no_electrons_have(predictor: Predictor) -> None:
    """doors: spin 0, -1, 1.5, of the wrong parity; charge 40."""
    batch = StructureBatch.from_ase([stated(WATER, q, m) for q, m in [*IMPOSSIBLE, (40, 1), *ODD, *FINE]])
    found = predictor(batch)
    bad, odd = len(IMPOSSIBLE) + 1, len(ODD)
    assert found.status.tolist() == [Status.BAD_CHARGE_OR_SPIN] * bad + [Status.OK] * (odd + len(FINE))
    assert np.isnan(found.energy[:bad]).all() and np.isfinite(found.energy[bad:]).all()
    assert found.outside.tolist() == [0] * bad + [Outside.UNSEEN_CHARGE_OR_SPIN] * odd + [0] * len(FINE)
    assert not found.in_domain[: bad + odd].any()


def test_radicals_and_cells_of_metals_fit(predictor: Predictor) -> None:
    given = [
        stated(METHYL, 0, 2),
        stated(METHYL, 0, 1),
        stated(METHYL, 1, 1),
        stated(COPPER, 0, 1),
        stated(COPPER, 0, 2),
    ]
    assert predictor(StructureBatch.from_ase(given)).outside.tolist() == [0, 16, 0, 0, 0]
    missing = stated(WATER, np.nan, 0)
    assert predictor(StructureBatch.from_ase(missing)).status[0] == Status.MISSING_CHARGE_OR_SPIN


def test_what_training_saw_counts() -> None:
    counted = head(charge_range=[-1, 1], spin_range=[1, 3], spin_fits_electrons=True)
    loose = head(charge_range=[0, 0], spin_range=[0, 1], spin_fits_electrons=False)
    pairs = [(0, 1), (2, 1), (-2, 1), (0, 5), (1, 2), (0, 0), (1, 1)]
    batch = StructureBatch.from_ase([stated(WATER, q, m) for q, m in pairs])
    test = ConditionTest([counted, loose], raw=False)
    assert test.find_impossible(batch, 0).tolist() == [False] * 5 + [True, False]
    assert not test.find_impossible(batch, 1).any(), "0 is what this head was trained on"
    assert test.find_outside(batch, 0).tolist() == [False, True, True, True, False, True, True]
    assert test.find_outside(batch, 1).tolist() == [False, True, True, True, True, False, True]
    each = np.array([0, 1, 0, 1, 0, 1, 0])
    assert test.find_impossible(batch, each).tolist() == [False] * 7
    assert test.find_outside(batch, each).tolist() == [False, True, True, True, False, False, True]
    raw = ConditionTest([head()], raw=True)
    assert not raw.find_impossible(batch, 0).any() and raw.find_outside(batch, 0)[5], "HydraGNN's 0 is flagged"


def test_a_model_without_condition_refuses_charges_beyond_rounding(tmp_path: Path) -> None:
    predictor = Predictor.load(save(tmp_path / "gfm", charge_spin=False))
    batch = StructureBatch.from_ase([WATER] * 4)
    charge = np.array([-1.776e-15, 1e-3, 0, np.nan], np.float32)
    found = predictor(batch.replace(charge=charge, spin=np.array([1, 1, 2, 0], np.float32)))
    assert found.status.tolist() == [0, Status.CHARGE_NOT_MODELLED, Status.CHARGE_NOT_MODELLED, 0]
    assert (found.outside == 0).all()


def test_the_calculator_says_what_zero_stands_for(predictor: Predictor) -> None:
    for charge, spin, message in (
        (
            0,
            0,
            r"spin multiplicity 0 is no whole number of 1 or more; 0 usually stands for one that .* singlet",
        ),
        (0, 1.5, r"spin multiplicity 1.5 is no whole number of 1 or more: give 2S\+1"),
        (40, 1, "charge 40 is beyond the 10 electrons of H2O; give it in units of e"),
        (0, 99, "spin multiplicity 99 needs more than the 10 electrons of H2O"),
    ):
        atoms = stated(WATER, charge, spin)
        atoms.calc = GFMCalculator(predictor)
        with pytest.raises(InputError, match=message):
            atoms.get_potential_energy()
    radical = stated(METHYL, 0, 1)
    radical.calc = GFMCalculator(predictor)
    assert np.isfinite(radical.get_potential_energy())
    assert radical.calc.outside == Outside.UNSEEN_CHARGE_OR_SPIN and not radical.calc.get_property("in_domain", radical)
