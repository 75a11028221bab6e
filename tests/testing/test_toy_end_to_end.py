"""An encoder from outside, one file and one entry point, goes the whole way: training, exports, screening."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from atomsieve.structures.dataset.writer import write_structures
from tests.models.entry_points import TOY, install
from tests.train.train_samples import SOURCES, labelled

ROOT = Path(__file__).resolve().parents[2]


def atomsieve(folder: Path, *arguments: object) -> str:
    """Run the command in a process of its own, which sees the toy as an installed package."""
    paths = [str(folder / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "atomsieve", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.nightly
@pytest.mark.slow
def test_the_toy_trains_exports_and_screens(tmp_path, monkeypatch):
    install(tmp_path / "site", TOY)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    write_structures(tmp_path / "data.bp", labelled(30, 40), SOURCES)
    write_structures(tmp_path / "candidates.bp", labelled(12, 1, seed=5).slice(0, 12), SOURCES)
    config = {
        "data": [{"path": "data.bp"}],
        "output": "run",
        "default_head": "emt",
        "model": {"encoder": "toy", "toy": {"edge_hidden": 10}, "hidden": 16, "layers": 1, "cutoff": 4.0},
        "ensemble": {"members": 2},
        "split": {"train": 0.55, "val": 0.15, "test": 0.15, "calibration": 0.15},
        "batch": {"atoms": 40},
        "budget": {"steps": 6},
        "device": "cpu",
        "tensorboard": False,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    gfm = tmp_path / "run" / "gfm"
    atomsieve(tmp_path, "train", tmp_path / "train.yaml", "--quiet")
    written = yaml.safe_load((gfm / "members" / "000" / "model.yaml").read_text())
    assert written["encoder"] == "toy" and written["toy"] == {"edge_hidden": 10}
    atomsieve(tmp_path, "export", gfm, "--format", "onnx", "--precision", "fp32")
    found = {}
    for backend in ("native", "onnx"):
        out = tmp_path / backend
        screening = ("screen", "run", tmp_path / "candidates.bp", "-e", gfm, "--out", out)
        atomsieve(tmp_path, *screening, "--backend", backend, "--quiet")
        found[backend] = np.load(out / "rows.npy")
    native, onnx = found["native"], found["onnx"]
    assert len(native) == 12 and np.isfinite(native["energy"]).any()
    assert np.array_equal(native["status"], onnx["status"])
    np.testing.assert_allclose(onnx["energy"], native["energy"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(onnx["max_force"], native["max_force"], rtol=0, atol=1e-3)
