"""The Pareto front: the same as by comparing all pairs, in any order and pieces, ties and missing values included."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import UsageError
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.columns import blank_rows
from atomsieve.screen.results.record import open_results
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection import pareto
from atomsieve.screen.selection.pareto import Front, is_non_dominated, parse_objectives
from atomsieve.screen.selection.select import Selection, select
from atomsieve.structures import write_structures
from tests.screen.screen_fakes import FakePredictor, candidates


def plainly(points):
    """Compare all pairs."""
    return np.array([not any((q <= p).all() and (q < p).any() for q in points) for p in points], bool)


def anti_correlated(rng, n, d):
    """Return points near a plane that falls in every direction: many are on the front."""
    points = rng.random((n, d))
    return points / points.sum(axis=1, keepdims=True) + 0.02 * rng.random((n, d))


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize("kind", ["uniform", "ties", "falling", "equal"])
def test_points_are_those_of_all_pairs(d, kind, monkeypatch):
    monkeypatch.setattr(pareto, "BLOCK", 37)
    monkeypatch.setattr(pareto, "ROOM", 500)
    rng = np.random.default_rng(d)
    points = {
        "uniform": rng.random((400, d)),
        "ties": rng.integers(0, 6, (400, d)).astype(float),
        "falling": anti_correlated(rng, 400, d),
        "equal": np.ones((50, d)),
    }[kind]
    found = is_non_dominated(points)
    assert np.array_equal(found, plainly(points))
    assert found.any()


def test_no_points():
    assert is_non_dominated(np.zeros((0, 3))).tolist() == []


def made_up(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = blank_rows(n)
    rows["position"] = np.arange(n)
    rows["energy_per_atom"] = rng.normal(size=n).round(1)
    rows["energy_std"] = np.exp(rng.normal(size=n) - 0.5 * rows["energy_per_atom"]).round(1)
    rows["natoms"] = rng.integers(1, 30, n)
    rows["status"] = rng.random(n) < 0.1
    rows["energy_std"][rng.random(n) < 0.1] = np.nan
    return rows


@pytest.mark.parametrize("text", ["energy_per_atom,energy_std", "energy_std:max, energy_per_atom,natoms:max"])
def test_rows_in_any_order_and_pieces(text):
    rows = made_up(2000)
    columns = parse_objectives(text)
    able = rows[(rows["status"] == 0) & np.isfinite(rows["energy_std"]) & (rows["natoms"] > 3)]
    points = np.stack([sign * able[name].astype(float) for name, sign in columns], axis=1)
    expected = able[plainly(points)]["position"]
    rng = np.random.default_rng(1)
    for _ in range(3):
        front = Front(columns, where=lambda r: r["natoms"] > 3)
        for part in np.split(rng.permutation(len(rows)), np.sort(rng.integers(0, len(rows), 15))):
            front.add(rows[part])
        found = front.rows()
        assert sorted(found["position"].tolist()) == expected.tolist()
        value = front.points(found)
        assert np.array_equal(np.lexsort((found["position"], *value.T[::-1])), np.arange(len(found)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy", "takes 2 to 4 columns"),
        ("energy,energy_std,max_force,natoms,distance", "takes 2 to 4 columns"),
        ("energy,energie_std", "unknown column 'energie_std' .did you mean 'energy_std'"),
        ("energy,energy:max", "names 'energy' twice"),
        ("energy,natoms:big", "ends in 'big'; allowed are :min"),
        ("energy,status", "cannot be ranked by 'status'"),
    ],
)
def test_columns_are_refused_with_a_reason(text, message):
    with pytest.raises(UsageError, match=message):
        parse_objectives(text)


def test_a_front_that_is_too_large(monkeypatch):
    monkeypatch.setattr(pareto, "LARGEST", 20)
    rows = blank_rows(21)
    rows["energy"], rows["max_force"] = np.arange(21), -np.arange(21)
    with pytest.raises(UsageError, match="more than 20 rows are not dominated in energy, max_force"):
        Front(parse_objectives("energy,max_force")).add(rows)


def test_the_command_line(tmp_path):
    write_structures(tmp_path / "c.bp", candidates(500), [])
    run_screen(
        tmp_path / "c.bp",
        "gfm",
        ScreenOptions(head="all", chunk_size=64),
        out=tmp_path / "out",
        predictor=FakePredictor(),
    )
    wanted = "max_force,natoms:max"
    front = select(open_results(tmp_path / "out"), Selection(pareto=wanted, head="scan")).rows
    rows = np.load(tmp_path / "out" / "rows.npy")
    rows = rows[(rows["status"] == 0) & (rows["head"] == 1)]
    points = np.stack([rows["max_force"].astype(float), -rows["natoms"].astype(float)], axis=1)
    assert np.array_equal(front["position"], np.sort(rows[plainly(points)], order=["max_force"])["position"])
    shown = CliRunner().invoke(app, ["top", str(tmp_path / "out"), "--pareto", wanted, "--head", "scan", "-k", "3"])
    assert f"3 of {len(front)} rows that no other beats in max_force and natoms" in shown.output
    out = tmp_path / "front.npz"
    assert CliRunner().invoke(app, ["export", str(tmp_path / "out"), str(out), "--pareto", wanted, "--head", "scan"])
    assert np.array_equal(np.load(out)["position"], front["position"])
    with pytest.raises(UsageError, match="has several heads"):
        select(open_results(tmp_path / "out"), Selection(pareto=wanted))
    with pytest.raises(UsageError, match="exclude each other"):
        Selection(pareto=wanted, per="formula")
