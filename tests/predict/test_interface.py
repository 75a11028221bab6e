"""The interface of predictors: each kind of predictor, and each base class, has all members of the Protocol."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.predict import AnyPredictor, Predictor
from atomsieve.predict.base import ForwardingPredictor
from tests.helpers import copper_oxides, tiny_gfm
from tests.screen.screen_fakes import FakePredictor, candidates


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(tiny_gfm(tmp_path_factory.mktemp("interface") / "gfm"))


def test_every_kind_of_predictor_offers_the_whole_interface(predictor):
    for kind in (predictor, FakePredictor(), ForwardingPredictor(predictor)):
        assert isinstance(kind, AnyPredictor)
    assert not isinstance(object(), AnyPredictor)


def test_a_wrapper_is_the_other_predictor_in_all_that_it_does_not_override(predictor):
    wrapper, batch = ForwardingPredictor(predictor), copper_oxides(3)
    for name in ("heads", "default_head", "head", "ensemble_id", "members", "kind", "cutoff", "precision", "device"):
        assert getattr(wrapper, name) == getattr(predictor, name)
    assert wrapper.capabilities == predictor.capabilities and wrapper.describe() == predictor.describe()
    assert wrapper.elements(wrapper.head) == predictor.elements(predictor.head)
    np.testing.assert_array_equal(wrapper(batch, {"energy"}).energy, predictor(batch, {"energy"}).energy)
    small = wrapper(batch, {"energy"}, max_structure_atoms=0)
    assert np.isnan(small.energy).all(), "limits and graph builders are passed on"


def test_a_submitted_batch_is_evaluated_once_and_only_if_its_result_is_asked_for():
    fake, batch = FakePredictor(), candidates(5, bad=False)
    pending, forgotten = (fake.submit(batch, {"energy"}) for _ in range(2))
    assert fake.calls == 0 and not fake.capabilities.asynchronous
    np.testing.assert_array_equal(pending.result().energy, fake(batch, {"energy"}).energy)
    assert pending.result(0.1) is pending.result() and fake.calls == 2
    forgotten.cancel()
    assert fake.calls == 2


def test_capabilities_of_a_folder_follow_the_ensemble_and_the_backend(predictor):
    known = predictor.capabilities
    assert known.choices == tuple(predictor.heads) and known.precisions == ("fp32",)
    assert {"forces", "stress", "energies", "energy_members", "forces_members"} == known.outputs
    assert known.graphs and known.fallback and known.artefact is None and not known.endpoints
    assert known.max_atoms == 20_000 and predictor.costliest() is predictor and predictor.lost_endpoints() == {}
