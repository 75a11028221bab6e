"""The examples run and say what they are meant to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, folder: Path, *words: object) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MPLCONFIGDIR": str(folder)}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def numbers(text: str, pattern: str) -> list[float]:
    return [float(x) for x in re.findall(pattern, text)]


@pytest.mark.slow
def test_relax_crystal(copper_gfm: Path, tmp_path: Path) -> None:
    said = run("relax_crystal", tmp_path, "--ensemble", copper_gfm)
    ours, emt, *batch = numbers(said, r"a = ([\d.]+)")
    assert abs(ours - emt) < 0.03 and len(batch) == 8
    assert all(abs(a - ours) < 0.01 for a in batch) and said.count("CONVERGED") == 8


@pytest.mark.slow
def test_vacancy_band_beside_emt(copper_gfm: Path, tmp_path: Path) -> None:
    said = run("neb_vacancy", tmp_path, "--ensemble", copper_gfm, "--images", 3)
    ours, emt = numbers(said, r"barrier ([\d.]+) eV")
    assert abs(ours - emt) < 0.15 and (tmp_path / "neb_vacancy.png").stat().st_size > 5000


@pytest.mark.slow
def test_phonons(copper_gfm: Path, tmp_path: Path) -> None:
    said = run("phonons", tmp_path, "--ensemble", copper_gfm, "--repeat", 3)
    lines = {line.split()[0]: line for line in said.splitlines() if " at X: " in line}
    ours, emt = (numbers(lines[name], r" (-?[\d.]+)[, ]") for name in ("ensemble", "EMT"))
    assert abs(ours[2] - emt[2]) < 0.35 * emt[2], "the longitudinal mode at X"
    assert (tmp_path / "phonons.png").stat().st_size > 5000


@pytest.mark.slow
def test_equation_of_state_of_copper(copper_gfm: Path, tmp_path: Path) -> None:
    said = run("equation_of_state", tmp_path, "--ensemble", copper_gfm)
    line = next(line for line in said.splitlines() if line.startswith("fcc"))
    volume, reference, modulus, modulus_reference = numbers(line, r"(\d+\.?\d*)")[:4]
    assert abs(volume - reference) < 0.03 * reference and abs(modulus - modulus_reference) < 0.3 * modulus_reference


def test_water_is_skipped_without_data(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "water_nvt.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "--data" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_water_with_guard(shared_data: Path, tmp_path: Path) -> None:
    """An untrained ensemble stands in: the run, the guard and the files are what is tested."""
    from atomsieve.gfm import save_gfm
    from atomsieve.models import Ensemble, HeadSpec, ModelConfig

    known = {1: -13.6, 8: -2040.0}
    head = HeadSpec(name="water_pbe0ts", level_of_theory="none", references=known, scale=0.3, elements={1: 9, 8: 9})
    model = ModelConfig(hidden=16, layers=1, head_hidden=8, cutoff=3.5)
    gfm = save_gfm(tmp_path / "gfm", Ensemble(model, [head], [1, 2]))
    words = ["--ensemble", gfm, "--data", shared_data, "--steps", 20, "--max-sigma-force", 1e-6]
    assert "the guard ended the run after 0.0 fs: force_std" in run("water_nvt", tmp_path, *words)
    (tmp_path / "water_guard.extxyz").unlink()
    said = run("water_nvt", tmp_path, *words, "--go-on")
    assert "not calibrated" in said and "guard: 2 checks, 2 limits passed, 1 frames written" in said
    assert (tmp_path / "water_guard.extxyz").read_text().startswith("192\n")
