"""`atomsieve train`: the example, the short form, and what a mistake looks like."""

from __future__ import annotations

import yaml

from atomsieve.cli.main import run
from atomsieve.train.config import TrainConfig


def test_init_writes_an_example_and_does_not_overwrite(tmp_path, capsys):
    path = tmp_path / "train.yaml"
    assert run("atomsieve", ["train", "init", str(path)]) == 0
    assert set(yaml.safe_load(path.read_text())) == set(TrainConfig.model_fields)
    assert max(map(len, path.read_text().splitlines())) <= 120
    assert run("atomsieve", ["train", "init", str(path)]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_typing_mistake_is_one_line_and_exit_code_2(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("data: [{path: x.bp}]\noptimiser: {lr: 1}\n")
    assert run("atomsieve", ["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'optimizer'" in said
    assert said.count("\n") == 1


def test_settings_may_stand_before_or_after_the_file(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("data: [{path: x.bp}]\n")
    for line in (["--set", "model.hiden=1", str(path)], [str(path), "--set", "model.hiden=1"]):
        assert run("atomsieve", ["train", *line]) == 2
        assert "did you mean 'hidden'" in capsys.readouterr().err


def test_data_that_are_not_there_are_said(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("data: [{path: nowhere.bp}]\n")
    assert run("atomsieve", ["train", str(path), "--quiet"]) == 1
    assert "nowhere.bp" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
