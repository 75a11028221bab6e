"""Encoders are found in this package and by entry points; their options are sections of the configuration."""

import json

import pytest
import yaml
from pydantic import ValidationError

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import build_encoder, find_encoder_class
from atomsieve.models.hydragnn.config import HydraGNNConfig
from atomsieve.models.layers import Seeds
from atomsieve.models.registry import encoder_names, encoders
from atomsieve.train.config import parse_config
from tests.helpers import tiny_ensemble
from tests.models.entry_points import TOY, install
from tests.models.toy_encoder import ToyEncoder, ToyOptions

DATA = {"data": [{"path": "x.bp"}]}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", TOY)))


def test_own_encoders_are_found_where_they_lie():
    assert encoder_names() == ["hydragnn_painn", "painn", "quadrupoles"]
    assert {name: of.name for name, of in encoders().items()} == {name: name for name in encoder_names()}


def test_an_encoder_of_another_package_is_found_by_its_entry_point(toy):
    assert encoder_names() == ["hydragnn_painn", "painn", "pooled_toy", "quadrupoles", "toy"]
    assert find_encoder_class("toy") is ToyEncoder
    config = ModelConfig(encoder="toy", toy={"edge_hidden": 7}, hidden=8)
    assert config.options == ToyOptions(edge_hidden=7) and config.basis == "gaussian"
    assert build_encoder(config, Seeds([1, 2])).layers[0].message.first.weight.shape == (2, 8 + 8 + 7, 7)


def test_a_broken_entry_point_is_named_in_one_line_and_harms_no_other(tmp_path, monkeypatch):
    points = {"gone": "no_such_package.encoder:Gone", "number": "math:pi", "alias": TOY["toy"]}
    monkeypatch.syspath_prepend(str(install(tmp_path, points, "broken")))
    for name, said in (
        ("gone", r"encoder 'gone' of broken 1.0 \(no_such_package.encoder:Gone\) cannot be loaded \(ModuleNotFound"),
        ("number", "encoder 'number' of broken .* is no subclass of atomsieve.models.encoder.Encoder"),
        ("alias", "encoder 'alias' of broken .* calls itself 'toy'"),
    ):
        with pytest.raises(AtomSieveError, match=said) as error:
            ModelConfig(encoder=name)
        assert "\n" not in str(error.value)
    assert tiny_ensemble(1).encoder.name == "painn"


@pytest.mark.parametrize("name", ["toy", "painn"])
def test_two_encoders_of_one_name_are_refused(tmp_path, monkeypatch, name):
    first = install(tmp_path / "a", {"toy": TOY["toy"]}, "first")
    second = install(tmp_path / "b", {name: TOY["toy"]}, "second")
    for folder in (first, second):
        monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(UsageError, match=f"encoder '{name}' is declared by .*second 1.0.*; uninstall all but one"):
        ModelConfig(encoder=name)


def test_one_package_twice_on_the_path_is_one(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        monkeypatch.syspath_prepend(str(install(tmp_path / folder, {"toy": TOY["toy"]})))
    assert ModelConfig(encoder="toy").options == ToyOptions()


def test_the_nearest_encoder_is_named(toy):
    with pytest.raises(UsageError, match=r"unknown encoder 'tyo' \(did you mean 'toy'\?\); allowed: hydragnn_painn"):
        ModelConfig(encoder="tyo")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"toy": {}}, "model: the section toy goes with encoder toy, got encoder 'painn'"),
        ({"encoder": "toy", "hydragnn": {"heads": [3]}}, "the section hydragnn goes with encoder hydragnn_painn, got"),
        ({"encoder": "toy", "toy": {"edge_hiden": 3}}, "key of model.toy 'edge_hiden' (did you mean 'edge_hidden'?)"),
        ({"encoder": "toy", "toy": {"edge_hidden": -3}}, "model.toy.edge_hidden: Input should be greater than 0, got"),
        ({"encoder": "toy", "tyo": {}}, "key of model 'tyo'"),
        ({"encoder": "toy", "options": {}}, "key of model 'options'"),
        ({"encoder": "toy", "basis": "sinc"}, "encoder toy and basis sinc do not go together; allowed: gaussian"),
        ({"encoder": "toy", "forces": "direct"}, "encoder toy has conservative forces, got 'direct'"),
        ({"encoder": "hydragnn_painn", "hydragnn": {"haeds": [3]}}, "model.hydragnn 'haeds' (did you mean 'heads'?)"),
    ],
)
def test_a_mistake_in_a_section_is_named_in_one_line(toy, model, said):
    with pytest.raises(UsageError) as error:
        parse_config({**DATA, "model": model})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_another_encoder_cannot_be_slipped_in(toy):
    with pytest.raises(ValidationError, match="Extra inputs"):
        ModelConfig(options=ToyOptions())
    with pytest.raises(TypeError, match="has options EncoderOptions, not ToyOptions"):
        ModelConfig().options_of(ToyOptions)


def test_configurations_are_written_as_they_always_were_and_read_back(toy):
    flat = json.loads(ModelConfig(hidden=16).model_dump_json())
    assert list(flat)[-2:] == ["typical_neighbors", "hydragnn"] and flat["hydragnn"] is None
    section = {"shared": [50, 50], "heads": [9], "vector_bias": False}
    theirs = ModelConfig(encoder="hydragnn_painn", hydragnn={"heads": [9]}).model_dump(mode="json")
    assert list(theirs)[-1] == "hydragnn" and theirs["hydragnn"] == section
    own = ModelConfig(encoder="toy", toy={"edge_hidden": 3}).model_dump(mode="json")
    assert list(own)[-1] == "toy" and own["toy"] == {"edge_hidden": 3} and "hydragnn" not in own
    for written in (flat, theirs, own):
        assert ModelConfig.model_validate(written).model_dump(mode="json") == written
        assert ModelConfig.model_validate(yaml.safe_load(yaml.safe_dump(written))).model_dump(mode="json") == written
    assert ModelConfig.model_validate(theirs).options == HydraGNNConfig(heads=(9,))
