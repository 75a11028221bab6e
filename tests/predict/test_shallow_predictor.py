"""A shallow ensemble behind the Predictor: the spread of energies always, that of forces on request."""

import numpy as np
import pytest

from atomsieve.gfm import save_gfm
from atomsieve.models import Ensemble
from atomsieve.predict import Predictor
from tests.helpers import copper_oxides, tiny_ensemble

MEMBERS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same weights as a shallow ensemble, and as a deep one whose members hold the same encoder."""
    place = tmp_path_factory.mktemp("kinds")
    plain = tiny_ensemble(MEMBERS)
    shallow = Ensemble(plain.config, plain.heads, plain.seeds, "shallow")
    state = {n: t.expand(MEMBERS, *t.shape[1:]) if shallow.is_shared(n) else t for n, t in shallow.state_dict().items()}
    plain.load_state_dict(state)
    return [save_gfm(place / m.kind, m, default_head="metal") for m in (shallow, plain)]


def test_it_says_what_it_is(folders):
    shallow, deep = (Predictor.load(folder) for folder in folders)
    assert (shallow.kind, shallow.describe()["kind"], shallow.members) == ("shallow", "shallow", MEMBERS)
    assert deep.describe()["kind"] == "deep"


def test_forces_have_a_spread_if_asked_for_and_then_it_is_that_of_the_deep_one(folders):
    shallow, deep = (Predictor.load(folder, precision="fp64") for folder in folders)
    batch = copper_oxides(6)
    every = {"energy", "forces", "stress", "spread", "force_spread", "members", "energies", "features"}
    exact = deep(batch, every)
    np.testing.assert_allclose(deep(batch).forces_std, exact.forces_std)  # implied
    plain = shallow(batch)
    assert plain.forces_std is None
    assert plain.sigma_forces is None
    found = shallow(batch, every)
    for name, values in exact.arrays().items():
        np.testing.assert_allclose(getattr(found, name), values, atol=1e-10, err_msg=name)
    for name in ("energy", "energy_std", "forces"):
        np.testing.assert_allclose(getattr(plain, name), getattr(exact, name), atol=1e-10, err_msg=name)
    assert float(np.nanmax(exact.forces_std)) > 1e-3
    assert exact.stress_members is None  # not asked for
    for predictor in (shallow, deep):
        each = predictor(batch, {"energy", "forces", "stress", "members", "stress_members"})
        assert each.stress_members.shape == (MEMBERS, len(batch), 3, 3)
        np.testing.assert_allclose(each.stress_members.mean(0), exact.stress, atol=1e-12)
        assert float(each.stress_members.std(0).max()) > 1e-6
    alone = shallow(batch, {"energy", "forces", "force_spread"})
    np.testing.assert_allclose(alone.forces_std, exact.forces_std, atol=1e-10)
    assert alone.energy_std is None
    stress = shallow(batch, {"energy", "stress"})
    np.testing.assert_allclose(stress.stress, exact.stress, atol=1e-10)
    assert stress.forces is None


def test_members_bring_their_forces(folders):
    shallow, deep = (Predictor.load(folder, precision="fp64") for folder in folders)
    batch, want = copper_oxides(3), {"energy", "forces", "members"}
    found, exact = shallow(batch, want), deep(batch, want)
    assert found.forces_members.shape == (MEMBERS, batch.n_atoms, 3)
    np.testing.assert_allclose(found.forces_members, exact.forces_members, atol=1e-10)
    np.testing.assert_allclose(found.energy_members, exact.energy_members, atol=1e-10)
