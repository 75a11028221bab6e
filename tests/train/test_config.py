"""The configuration: strict, with units of its own mistakes named."""

from __future__ import annotations

import pytest
import yaml

from atomsieve.errors import UsageError
from atomsieve.train.config import (
    TrainConfig,
    apply_settings,
    dump_config,
    load_config,
    parse_config,
)
from atomsieve.train.example import RECIPE, example_config

MINIMAL = {"data": [{"path": "x.bp"}]}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({**MINIMAL, "modle": {}}, "'modle' (did you mean 'model'?)"),
        ({**MINIMAL, "optimizer": {"weight_decy": 1}}, "'weight_decy' (did you mean 'weight_decay'?)"),
        ({**MINIMAL, "model": {"hiden": 3}}, "'hiden' (did you mean 'hidden'?)"),
        ({"data": [{"path": "x", "wieght": 2}]}, "data.0 'wieght' (did you mean 'weight'?)"),
        ({}, "data is missing"),
        ({**MINIMAL, "optimizer": {"lr": -1}}, "optimizer.lr: Input should be greater than 0, got -1"),
        ({**MINIMAL, "loss": {"kind": "mea"}}, "loss.kind"),
        ({**MINIMAL, "split": {"train": 0.5, "val": 0.1, "test": 0.1}}, "must be 1, got 0.8"),
    ],
)
def test_a_mistake_is_named_in_one_line(raw, said):
    with pytest.raises(UsageError) as error:
        parse_config(raw)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_example_is_the_recipe_and_documents_every_key():
    raw = yaml.safe_load(example_config())
    assert parse_config(raw) == parse_config({"data": [{"path": "train.bp"}], **RECIPE})
    assert set(raw) == set(TrainConfig.model_fields)


def test_settings_reach_into_sections_and_lists(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "optimizer": {"lr": 1e-4}}))
    config = load_config(path, ["optimizer.lr=1e-3", "budget.hours=0.5", "data.0.use=train", "ensemble.bootstrap=true"])
    assert config.optimizer.lr == 1e-3
    assert config.budget.hours == 0.5
    assert config.budget.epochs is None
    assert config.data[0].use == "train"
    assert config.ensemble.bootstrap is True
    assert config.data[0].path == tmp_path / "x.bp"
    assert config.output == tmp_path / "run"


@pytest.mark.parametrize("setting", ["optimizer.lr", "=3", "data.7.path=x", "default_head.x.y=1"])
def test_a_setting_that_fits_nowhere_is_refused(setting):
    with pytest.raises(UsageError, match="--set"):
        apply_settings({**MINIMAL, "default_head": "a"}, [setting])


def test_a_dumped_configuration_reads_back_equal():
    config = parse_config({**MINIMAL, "model": {"cutoff": 4.25}, "budget": {"steps": 7}})
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_without_any_end_a_run_ends_after_a_stated_number_of_epochs():
    assert parse_config(MINIMAL).budget.epochs == 100


def test_a_missing_file_and_broken_yaml_are_said(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, ")
    with pytest.raises(UsageError, match="is not YAML"):
        load_config(tmp_path / "bad.yaml")
