"""Predictors of this package go through the public kit; one that breaks its promises does not."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from atomsieve.predict import Predictor
from atomsieve.predict.base import ForwardingPredictor
from atomsieve.testing import PredictorTests, predictors
from tests.helpers import copper_oxides, tiny_gfm


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    room = tmp_path_factory.mktemp("kit")
    return {"deep": tiny_gfm(room / "deep"), "one": tiny_gfm(room / "one", members=1, charge_spin=True)}


class OfFolder(PredictorTests):
    """Tests of a predictor that is loaded from a folder."""

    folder: str
    options: ClassVar = {}

    @pytest.fixture(autouse=True)
    def _load(self, folders):
        self.predictor = Predictor.load(folders[self.folder], **self.options)

    def make_predictor(self):
        return self.predictor


class TestNative(OfFolder):
    folder = "deep"


class TestNativeWithCharges(OfFolder):
    folder = "one"
    options: ClassVar = {"head": "organic", "precision": "fp64"}


class TestForwarding(OfFolder):
    folder = "deep"

    def make_predictor(self):
        return ForwardingPredictor(self.predictor)


class Unordered(ForwardingPredictor):
    """Gives energies in the wrong order."""

    def __call__(self, *arguments, **named):
        out = self.inner(*arguments, **named)
        return dataclasses.replace(out, energy=np.sort(out.energy))


class Silent(ForwardingPredictor):
    """Gives bad structures an energy."""

    def __call__(self, *arguments, **named):
        out = self.inner(*arguments, **named)
        return dataclasses.replace(out, energy=np.nan_to_num(out.energy))


class Greedy(ForwardingPredictor):
    """Ignores heads and limits."""

    def __call__(self, batch, want, head=None, **named):
        return self.inner(batch, want)


@pytest.mark.parametrize(
    ("kind", "check", "said"),
    [
        (Unordered, predictors.check_independence, "energ"),
        (Silent, predictors.check_bad_structures, "not finite"),
        (Greedy, predictors.check_heads, "unknown head"),
        (Greedy, predictors.check_graph_builder, "builder was not used"),
    ],
)
def test_the_kit_finds_what_is_wrong(folders, kind, check, said):
    predictor = kind(Predictor.load(folders["deep"]))
    with pytest.raises(AssertionError, match=said):
        check(predictor, copper_oxides(6))
