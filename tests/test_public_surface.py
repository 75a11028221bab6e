"""`import atomsieve`: a few names, loaded when they are used, and two packages that are verbs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import atomsieve
from atomsieve.errors import UsageError
from atomsieve.structures import write_structures
from tests.helpers import copper_oxides, tiny_gfm

HEAVY = ("torch", "numpy", "ase", "adios2", "pydantic", "rich", "mpi4py")


def test_importing_the_package_loads_no_library():
    code = f"import sys, atomsieve; print([name for name in {HEAVY} if name in sys.modules], atomsieve.__version__)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"[] {atomsieve.__version__}"


def test_every_public_name_is_there_and_no_other():
    assert dir(atomsieve) == sorted(atomsieve.__all__)
    for name in atomsieve.__all__:
        assert getattr(atomsieve, name) is not None
    with pytest.raises(AttributeError, match=r"no attribute 'load_ensembel' .did you mean 'load_ensemble'"):
        atomsieve.load_ensembel  # noqa: B018


def test_an_ensemble_is_loaded_and_screens_by_these_names_alone(tmp_path):
    gfm = tiny_gfm(tmp_path / "gfm", hidden=8, layers=1)
    batch = copper_oxides(20, seed=1)
    write_structures(tmp_path / "candidates.bp", batch)
    predictor = atomsieve.load_ensemble(gfm)
    assert isinstance(predictor, atomsieve.Predictor)
    assert isinstance(batch, atomsieve.StructureBatch)
    result = atomsieve.screen(tmp_path / "candidates.bp", gfm, out=tmp_path / "results", top=5)
    assert (result.structures, len(result.top)) == (20, 5)
    best = predictor(batch, want={"energy"}).energy / np.diff(batch.ptr)
    assert result.top["position"].tolist() == best.argsort(kind="stable")[:5].tolist()


def test_options_that_a_screening_does_not_have_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"unknown option 'tops'.*did you mean 'top'"):
        atomsieve.screen(tmp_path / "candidates.bp", "gfm", tops=5)


def test_training_takes_keys_and_values_and_names_a_wrong_one():
    with pytest.raises(UsageError, match=r"optimiser.*did you mean 'optimizer'"):
        atomsieve.train({"data": [{"path": "x.bp"}], "optimiser": {}})
