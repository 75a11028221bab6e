"""Columns beside `rows.npy` rank, filter and group rows as those of the rows do."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.screen.results import table
from atomsieve.screen.results.columns import COLUMNS
from atomsieve.screen.results.formulas import format_formulas, hill_formula
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.table import ResultColumn, freeze_column, list_columns
from atomsieve.screen.selection.best import best_rows
from atomsieve.screen.selection.select import Selection, select

N = 1000


@pytest.fixture
def results(screen, tmp_path, monkeypatch):
    """Return results with a column of each kind that a provider gives, and the values by position."""
    rng = np.random.default_rng(4)
    value, text = rng.integers(0, 90, N) / 7.0, np.array([f"m-{k % 40}" for k in range(N)], object)
    value[::9] = np.nan
    flag = rng.random(N) < 0.5
    calls = []

    def read(values, rows):
        calls.append(len(rows))
        return values[rows["position"]]

    def provide(found):
        return {
            "score": ResultColumn("score", "number", "eV", "a number", lambda rows: read(value, rows)),
            "family": ResultColumn("family", "text", "", "a text", lambda rows: read(text, rows)),
            "good": ResultColumn("good", "flag", "", "a flag", lambda rows: read(flag, rows)),
            "natoms": ResultColumn("natoms", "number", "", "of a taken name", lambda rows: read(value, rows)),
        }

    screen(head="all")
    monkeypatch.setattr(table, "PROVIDERS", (*table.PROVIDERS, provide))
    return open_results(tmp_path / "out"), value, text, flag, calls


def test_a_column_beside_the_rows_ranks_filters_and_groups(results):
    found, value, text, flag, _ = results
    rows = np.concatenate([np.asarray(r) for r in found.iter_rows()])
    ok = rows[(rows["status"] == 0) & (rows["head"] == 1)]
    able = [r for r in ok if np.isfinite(value[r["position"]]) and flag[r["position"]] and r["natoms"] > 2]
    able.sort(key=lambda r: (-value[r["position"]], r["position"]))
    where = "good and natoms > 2"
    chosen = select(found, Selection(top=60, by="score", descending=True, where=where, head="scan")).rows
    assert chosen["position"].tolist() == [int(r["position"]) for r in able[:60]]
    seen, expected = set(), []
    for r in able:
        if text[r["position"]] not in seen:
            seen.add(text[r["position"]])
            expected.append((int(r["position"]), text[r["position"]]))
    per = select(found, Selection(by="score", descending=True, where=where, head="scan", per="family"))
    assert list(zip(per.rows["position"].tolist(), per.groups, strict=True)) == expected
    front = select(found, Selection(pareto="score:max,max_force", head="scan")).rows
    points = np.stack([-value[front["position"]], front["max_force"]], axis=1)
    beaten = (points[None] <= points[:, None]).all(-1) & (points[None] < points[:, None]).any(-1)
    assert len(front) > 1
    assert not beaten.any()
    kept = best_rows(found, 5, "energy", where="family in ['m-3', 'm-4'] and score < 5")
    assert set(text[kept["position"]]) <= {"m-3", "m-4"}
    assert len(kept) == 5


def test_ranking_by_a_column_of_the_rows_reads_no_other(results):
    found, *_, calls = results
    select(found, Selection(top=10, where="natoms < 9"))
    assert not calls


def test_frozen_columns_are_sent_to_other_ranks(results):
    found, value, *_ = results
    rows = np.concatenate([np.asarray(r) for r in found.iter_rows()])[5:30]
    sent = pickle.loads(pickle.dumps(freeze_column(list_columns(found)["score"], rows)))
    np.testing.assert_array_equal(sent.values(rows[::-2]), value[rows[::-2]["position"]])


def test_names_that_are_wrong_or_taken(results):
    found = results[0]
    columns = list_columns(found)
    assert list(columns)[: len(COLUMNS)] == list(COLUMNS)
    assert columns["natoms"].doc == COLUMNS["natoms"].doc
    assert columns["natoms_2"].name == "natoms_2"
    assert "'natoms' is another column" in columns["natoms_2"].doc
    for wrong, message in (
        ({"by": "scor"}, "unknown column 'scor' .did you mean 'score'"),
        ({"by": "family"}, "cannot be ranked by 'family', a text; rank by one of energy, .*score"),
        ({"by": "status"}, "cannot be ranked by 'status', a code"),
        ({"where": "family < 3"}, "compares text with numbers"),
        ({"where": "familly == 'a'"}, "did you mean 'family'"),
        ({"per": "familly", "head": "pbe"}, "did you mean 'family'"),
        ({"pareto": "score,family", "head": "pbe"}, "cannot be ranked by 'family'"),
    ):
        with pytest.raises(UsageError, match=message):
            select(found, Selection(**wrong))


def test_formulas_of_many_structures_are_those_of_each():
    rng = np.random.default_rng(7)
    counts = rng.integers(0, 9, 500)
    numbers = rng.choice(np.array([1, 6, 8, 26, 3, 92, 150], np.uint8), counts.sum())
    ptr = np.concatenate([[0], np.cumsum(counts)])
    each = [numbers[a:b] for a, b in pairwise(ptr)]
    assert format_formulas(ptr, numbers).tolist() == [hill_formula(n) for n in each]
    reduced = format_formulas(ptr, numbers, "reduced_formula").tolist()
    systems = format_formulas(ptr, numbers, "chemsys").tolist()
    for own, formula, system in zip(each, reduced, systems, strict=True):
        found, times = np.unique(own, return_counts=True)
        less = np.repeat(found, times // max(np.gcd.reduce(times), 1)) if len(own) else own
        assert formula == hill_formula(less)
        assert system == "-".join(sorted(hill_formula(np.array([z], np.uint8)) for z in found))
