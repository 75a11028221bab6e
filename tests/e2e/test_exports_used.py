"""The user's way: export an ensemble with the command, look at the report, screen with what was made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atomsieve.gfm import read_manifest
from atomsieve.structures import write_structures
from tests.helpers import copper_oxides, tiny_gfm

BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def run(*command, code=0, ranks=0):
    line = [str(BIN / command[0]), *map(str, command[1:])]
    if ranks:
        line = [str(BIN / "mpirun"), "-n", str(ranks), *line]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=500, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An ensemble with ONNX and TorchScript exports, and candidates."""
    folder = tmp_path_factory.mktemp("export")
    tiny_gfm(folder / "gfm", members=2, layers=1)
    write_structures(folder / "candidates.bp", copper_oxides(300), [])
    said = run(
        "atomsieve", "export", folder / "gfm", "--format", "onnx", "--format", "torchscript", "--precision", "fp32"
    )
    assert "onnx-fp32" in said
    assert "torchscript-fp32" in said
    return folder


def test_exports_are_recorded_with_their_error(place):
    manifest = read_manifest(place / "gfm")
    assert sorted(manifest.exports) == ["onnx-fp32", "torchscript-fp32"]
    for entry in manifest.exports.values():
        assert entry.versions
        assert entry.machine
        assert entry.speed["structures_per_s"] > 0
        assert entry.fidelity
    report = (place / "gfm" / "exports" / "report.md").read_text()
    card = (place / "gfm" / "README.md").read_text()
    for key in manifest.exports:
        assert key in report
        assert key in card
    assert run("atomsieve", "export", "report", place / "gfm").count("onnx-fp32") >= 1


def test_exporting_again_changes_nothing(place):
    files = [p for p in (place / "gfm").rglob("*") if p.is_file()]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files if p.name != "report.md"}
    run("atomsieve", "export", place / "gfm", "--format", "onnx", "--precision", "fp32")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before


def screen(place, backend):
    """Return the rows of a screening with a backend."""
    out = place / f"out-{backend}"
    run("screen", "run", place / "candidates.bp", "--ensemble", place / "gfm", "--backend", backend, "-o", out, "-q")
    return np.load(out / "rows.npy")


@pytest.fixture(scope="module")
def native(place):
    return screen(place, "native")


@pytest.mark.parametrize("backend", ["onnx", "torchscript", pytest.param("auto", marks=pytest.mark.nightly)])
def test_screening_with_an_export_gives_the_same_rows(place, native, backend):
    a, b = native, screen(place, backend)
    assert np.array_equal(a["status"], b["status"])
    assert np.abs(a["energy_per_atom"] - b["energy_per_atom"]).max() < 5e-6
    assert np.abs(a["max_force"] - b["max_force"]).max() < 1e-4
    assert np.abs(a["energy_std"] - b["energy_std"]).max() < 1e-4


@pytest.mark.mpi
@pytest.mark.skipif(not (BIN / "mpirun").exists(), reason="no mpirun: pip install mpich")
def test_two_ranks_with_an_export_give_the_same_bytes(place):
    files = []
    for ranks in (1, 2):
        out = place / f"ranks-{ranks}"
        run(
            "screen",
            "run",
            place / "candidates.bp",
            "--ensemble",
            place / "gfm",
            "--backend",
            "onnx",
            "-o",
            out,
            "-q",
            "--chunk-size",
            40,
            ranks=ranks,
        )
        files.append((out / "rows.npy").read_bytes())
    assert files[0] == files[1]


def test_auto_goes_on_with_what_it_began_with(place):
    out = place / "auto"
    command = ("screen", "run", place / "candidates.bp", "--ensemble", place / "gfm", "-o", out, "-q", "--backend")
    run(*command, "torchscript")
    run(*command, "auto")
    assert json.loads((out / "run.json").read_text())["ensemble"]["backend"] == "torchscript"
    assert "backend" in run(*command, "onnx", code=1)


def test_wrong_input_ends_in_one_line(place, tmp_path):
    copied = shutil.copytree(place / "gfm", tmp_path / "gfm")
    said = run("atomsieve", "export", copied, "--format", "onxx", code=2)
    assert "onnx" in said
    assert "Traceback" not in said
    path = copied / "exports" / "onnx-fp32" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    said = run(
        "screen",
        "run",
        place / "candidates.bp",
        "--ensemble",
        copied,
        "--backend",
        "onnx",
        "-o",
        tmp_path / "out",
        code=1,
    )
    assert "is damaged or was changed" in said
    assert "atomsieve export" in said
    assert "Traceback" not in said
    said = run(
        "screen", "run", place / "candidates.bp", "--ensemble", copied, "--backend", "pt2", "-o", tmp_path / "o", code=1
    )
    assert "no pt2 export in fp32" in said
    (tmp_path / "empty").mkdir()
    assert run("atomsieve", "export", tmp_path / "empty", code=1).startswith("error:")
