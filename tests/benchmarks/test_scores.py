"""The arithmetic of benchmarks/accuracy.py against numbers found by hand."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

BASE = {
    "steel": {"energy_mae": 10.0, "energy_baseline": 100.0, "force_mae": 80.0, "force_baseline": 400.0, "crps": 8.0},
    "water": {"energy_mae": 4.0, "energy_baseline": 16.0, "force_mae": 5.0, "force_baseline": 30.0, "crps": 3.0},
    "acid": {"energy_mae": 2.0, "energy_baseline": 10.0, "crps": 1.5},
}
RUN = {
    "steel": {"energy_mae": 5.0, "energy_baseline": 100.0, "force_mae": 60.0, "crps": 8.5, "z": -1.0, "z_fitted": -0.7},
    "water": {"energy_mae": 16.0, "energy_baseline": 16.0, "force_mae": 50.0, "crps": 2.0, "z": 2.0, "z_fitted": 1.0},
    "acid": {"energy_mae": 0.5, "energy_baseline": 10.0, "crps": 0.5, "z": -3.0, "z_fitted": -2.0},
}


@pytest.fixture(autouse=True)
def beside_the_benchmarks() -> Iterator[None]:
    """Import as a program in benchmarks/ does."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def result(name: str, seed: int, heads: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "seed": seed, "heads": heads, "members": 4, "core_minutes": 48, **more}


def test_a_geometric_mean_refuses_what_has_no_logarithm() -> None:
    scores = load("judge.scores")
    assert scores.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert math.isnan(scores.geometric_mean([]))
    with pytest.raises(ValueError, match=r"got 0\.0"):
        scores.geometric_mean([1.0, 0.0])


def test_the_z_score_of_a_coverage_is_binomial() -> None:
    scores = load("judge.scores")
    # 100 errors: standard deviation sqrt(0.9 * 0.1 / 100) = 0.03
    assert scores.coverage_z(0.84, 100) == pytest.approx(-2.0)
    assert scores.coverage_z(0.96, 100) == pytest.approx(2.0)
    # as many errors in the calibration: the variance doubles
    assert scores.coverage_z(0.84, 100, 100) == pytest.approx(-math.sqrt(2.0))


def test_a_run_is_compared_head_by_head() -> None:
    scores = load("judge.scores")
    found = scores.compare(RUN, BASE)
    # energies: 1/2 * 4 * 1/4; forces: only steel has zero-force errors above 50
    assert found["energy"] == pytest.approx(0.5 ** (1 / 3))
    assert (found["energies"], found["forces"]) == (3, 1)
    assert found["force"] == pytest.approx(0.75)
    assert found["fifth"] == 2  # steel 1/20 and acid 1/20; water is at 1
    assert (found["crps"], found["crps_of"]) == (2, 3)
    assert (found["z"], found["z_fitted"]) == (-3.0, -2.0)


def test_a_run_of_some_heads_is_compared_by_them() -> None:
    scores = load("judge.scores")
    found = scores.compare({"water": {"energy_mae": 2.0, "energy_baseline": 16.0}}, BASE)
    assert found["energy"] == pytest.approx(0.5)
    assert math.isnan(found["force"])
    assert found["crps"] is None and found["z"] is None


def test_a_spread_over_seeds_needs_every_seed() -> None:
    scores = load("judge.scores")
    assert scores.over_seeds([1.0, 2.0, 3.0]).format(".2f") == "2.00 ± 1.00"
    assert scores.over_seeds([1.5]).format(".1f") == "1.5"
    assert scores.over_seeds([1.0, None]) is None


def test_the_table_has_a_row_per_name_and_means_over_seeds() -> None:
    report = load("judge.report")
    half = {name: row | {"energy_mae": row["energy_mae"] / 2} for name, row in BASE.items()}
    same = {name: dict(row) for name, row in BASE.items()}
    timed = {"structures_per_second": 900.0, "cpu_ms": 1.1, "cost": 0.5, "base": "base"}
    runs = [result("base", 0, BASE), result("new", 0, half, inference=timed), result("new", 1, same)]
    summary = report.summarise_groups(runs, "base")
    assert summary["new"]["energy"].mean == pytest.approx(0.75)
    assert summary["new"]["energy"].deviation == pytest.approx(math.sqrt(0.125))
    assert summary["new"]["cost"].mean == 0.5 and summary["base"]["cost"] is None
    rows = [line for line in report.format_table(runs, "base").splitlines() if line.startswith("| new ")]
    assert len(rows) == 1 and "0.750 ± 0.354" in rows[0]
    with pytest.raises(SystemExit, match="no run is called 'old'; there are base, new"):
        report.summarise_groups(runs, "old")


def test_the_figures_stairs_are_what_nothing_beats() -> None:
    report = load("judge.report")
    points = {"slow": (4.0, 0.5), "fast": (1.0, 0.9), "worse": (2.0, 1.0), "twin": (1.0, 0.9)}
    assert report.find_pareto(points) == ["slow", "fast", "twin"]


def test_a_configuration_is_laid_over_and_reduced_to_sources() -> None:
    training = load("judge.training")
    base = {
        "data": [{"path": "a", "sources": ["x", "y"]}, {"path": "a", "sources": ["z"]}, {"path": "t", "use": "test"}],
        "default_head": "z",
        "model": {"hidden": 64, "layers": 2},
    }
    assert training.lay_over(base, {"model": {"hidden": 32}})["model"] == {"hidden": 32, "layers": 2}
    found = training.choose_sources(base, ["y"])
    assert found["data"] == [{"path": "a", "sources": ["y"]}, {"path": "t", "use": "test", "sources": ["y"]}]
    assert found["default_head"] == "y" and base["default_head"] == "z"
    with pytest.raises(SystemExit, match="no source is called 'w'"):
        training.choose_sources(base, ["w"])
