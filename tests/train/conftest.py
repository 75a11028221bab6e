"""A small dataset on disk, and configurations that train on it in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomsieve.structures.dataset.writer import write_structures
from atomsieve.train.config import TrainConfig, parse_config
from tests.train.train_samples import SOURCES, labelled


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "data.bp"
    write_structures(path, labelled(40, 60), SOURCES)
    return path


@pytest.fixture
def small(data_file: Path, tmp_path: Path):
    """Return a function that makes a small configuration; keyword sections are merged in."""

    def make(output: str = "run", **sections: dict) -> TrainConfig:
        raw = {
            "data": [{"path": str(data_file)}],
            "output": str(tmp_path / output),
            "default_head": "emt",
            "model": {"hidden": 16, "layers": 1, "cutoff": 4.0, "n_basis": 5, "head_hidden": 8},
            "ensemble": {"members": 2},
            "split": {"train": 0.55, "val": 0.15, "test": 0.15, "calibration": 0.15},
            "batch": {"atoms": 40},
            "budget": {"steps": 8},
            "device": "cpu",
            "tensorboard": False,
        }
        for name, values in sections.items():
            raw[name] = {**raw.get(name, {}), **values} if isinstance(values, dict) else values
        return parse_config(raw)

    return make
