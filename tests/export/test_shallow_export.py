"""Exports of a shallow ensemble: energies of all members, forces of their mean."""

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.export.functional import Functional
from atomsieve.export.run import ExportOptions, export_gfm
from atomsieve.gfm import save_gfm
from atomsieve.models import Ensemble
from atomsieve.predict import Predictor
from tests.export.export_checks import assert_close, call, eager_outputs, given_arrays
from tests.helpers import copper_oxides, tiny_ensemble

MEMBERS = 3


def shallow(**config):
    plain = tiny_ensemble(MEMBERS, **config)
    return Ensemble(plain.config, plain.heads, plain.seeds, "shallow")


@pytest.mark.parametrize(
    "config",
    [{}, {"max_neighbors": 6}, {"charge_spin": True}, {"forces": "direct"}],
    ids=["plain", "truncated", "conditioned", "direct"],
)
@pytest.mark.parametrize("moments", [False, True])
def test_the_function_is_the_ensemble(config, moments):
    model, batch = shallow(**config).double(), copper_oxides(4)
    if model.config.charge_spin:
        batch = batch.replace(charge=np.array([0, 1, -1, 2], np.float32), spin=np.array([1, 2, 1, 3], np.float32))
    functional = Functional(model, precision="fp64", kind="forces", moments=moments)
    heads = [1, 1, 1, 1]
    found = call(functional, given_arrays(model, batch, heads), functional)
    assert "forces_std" not in found
    assert found["energy_members"].shape == (MEMBERS, 4)
    assert_close(found, eager_outputs(model, batch, heads), 1e-11)
    assert np.abs(found["forces"]).max() > 1e-3


@pytest.mark.parametrize("format_name", ["onnx", pytest.param("torchscript", marks=pytest.mark.nightly)])
def test_an_artefact_is_made_checked_and_answers_like_the_ensemble(tmp_path, format_name):
    pytest.importorskip("onnxruntime" if format_name == "onnx" else "torch")
    folder = save_gfm(tmp_path / "gfm", shallow(layers=1), default_head="metal")
    (outcome,) = export_gfm(folder, ExportOptions(formats=(format_name,)), lambda text: None)
    assert (outcome.state, outcome.reason) == ("written", "")
    assert outcome.entry.fidelity["varied"]["force"]["max"] > 0
    assert "forces_std" not in outcome.entry.outputs
    batch = copper_oxides(6)
    native = Predictor.load(folder)
    exported = Predictor.load(folder, backend=format_name)
    want = {"energy", "forces", "stress", "spread"}
    exact, found = native(batch, want), exported(batch, want)
    for name in ("energy", "energy_std", "forces", "stress"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=2e-5, err_msg=name)
    assert found.forces_std is None
    with pytest.raises(UsageError, match=r"gives no spread of forces; use --backend native"):
        exported(batch, {"energy", "forces", "force_spread"})


def test_forces_of_members_are_not_to_be_had():
    with pytest.raises(UsageError, match="gives the forces of the mean alone; leave --members out"):
        Functional(shallow(), precision="fp32", kind="forces", members=True)
