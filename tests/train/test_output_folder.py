"""The output folder of a training: other configurations are named, and only files of a training are deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from atomsieve.errors import UsageError
from atomsieve.train.config import TrainConfig, parse_config
from atomsieve.train.distributed import ProcessGroup
from atomsieve.train.run import claim_output


def make_config(output: Path, **changes) -> TrainConfig:
    return parse_config({"data": [{"path": "a.bp"}], "output": str(output), **changes})


def claim(config: TrainConfig, digests=("d",), overwrite=False) -> None:
    claim_output(config, list(digests), ProcessGroup(0, 1, torch.device("cpu")), overwrite)


def test_a_training_is_continued_only_with_its_configuration_and_data(tmp_path):
    out = tmp_path / "training"
    claim(make_config(out))
    assert os.listdir(out) == ["config.yaml"]
    before = (out / "config.yaml").read_bytes()
    claim(make_config(out, tensorboard=True))  # free to change
    with pytest.raises(UsageError, match=r"changed: data_sha256\.0, precision\); give another output"):
        claim(make_config(out, precision="fp64"), ["e"])
    many = {"precision": "fp64", "ensemble": {"members": 2, "seed": 7}, "budget": {"epochs": 3, "hours": 1.0}}
    with pytest.raises(UsageError, match=r"changed: (\S+, ){5}\S+ and \d+ more\)"):
        claim(make_config(out, **many, default_head="x"), ["e", "f"])
    assert (out / "config.yaml").read_bytes() == before


def test_overwrite_deletes_the_files_of_a_training_alone(tmp_path):
    claim(make_config(tmp_path))
    for folder in ("runs", "gfm", "mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f").touch()
    for name in ("data.json", "parity.png", "notes.txt"):
        (tmp_path / name).touch()
    claim(make_config(tmp_path, precision="fp64"), overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "mine", "notes.txt"]
    assert "fp64" in (tmp_path / "config.yaml").read_text()


def test_overwrite_deletes_nothing_where_there_was_no_training(tmp_path):
    (tmp_path / "gfm").mkdir()
    (tmp_path / "data.json").touch()
    claim(make_config(tmp_path), overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "data.json", "gfm"]


def test_a_folder_of_other_files_and_a_file_are_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty and holds no run; give another output folder"):
        claim(make_config(tmp_path))
    with pytest.raises(UsageError, match=r"thesis\.tex is a file, no folder for results; choose another output"):
        claim(make_config(tmp_path / "thesis.tex"))
    assert os.listdir(tmp_path) == ["thesis.tex"]
