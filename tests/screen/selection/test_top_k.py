"""The best rows are exact and do not depend on how the rows were cut or ordered."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.screen.results.columns import blank_rows
from atomsieve.screen.selection.row_filter import compile_row_filter
from atomsieve.screen.selection.top_k import TopK

STATUSES = {0: "OK", 3: "UNSEEN_ELEMENT"}
REASONS = {1: "UNSEEN_ELEMENT", 2: "UNSEEN_PAIR", 4: "SHORT_CONTACT", 8: "FAR_FROM_TRAINING"}


@pytest.fixture
def rows():
    rng = np.random.default_rng(1)
    rows = blank_rows(20_000)
    rows["position"] = np.arange(20_000) // 2
    rows["head"] = np.arange(20_000) % 2
    rows["energy"] = rng.integers(0, 300, 20_000) / 7  # many ties
    rows["energy"][::50] = np.nan
    rows["max_force"] = rng.random(20_000)
    rows["status"][rng.random(20_000) < 0.1] = 3
    return rows


def oracle(rows, k, sign=1.0, keep=None):
    keep = np.ones(len(rows), bool) if keep is None else keep
    able = [i for i in range(len(rows)) if keep[i] and rows["status"][i] == 0 and np.isfinite(rows["energy"][i])]
    return rows[sorted(able, key=lambda i: (sign * rows["energy"][i], rows["position"][i], rows["head"][i]))[:k]]


@pytest.mark.parametrize("k", [1, 10, 6000, 50_000])
@pytest.mark.parametrize("descending", [False, True])
def test_against_a_full_sort(rows, k, descending):
    best = TopK(k, "energy", descending=descending)
    for part in np.array_split(rows, 13):
        best.add(part)
    assert best.rows().tobytes() == oracle(rows, k, -1.0 if descending else 1.0).tobytes()


def test_split_over_ranks_and_shuffled(rows):
    rng = np.random.default_rng(2)
    ranks = [TopK(100, "energy") for _ in range(3)]
    for part in np.array_split(rng.permutation(rows), 40):
        ranks[rng.integers(3)].add(part)
    merged = TopK(100, "energy")
    for rank in ranks:
        merged.add(rank.rows())
    assert merged.rows().tobytes() == oracle(rows, 100).tobytes()


def test_a_filter_by_number_and_by_name(rows):
    where = compile_row_filter("max_force < 0.25 and head == 'scan'", ["pbe", "scan"], STATUSES)
    best = TopK(500, "energy", where=where)
    best.add(rows)
    keep = (rows["max_force"].astype(float) < 0.25) & (rows["head"] == 1)
    assert best.rows().tobytes() == oracle(rows, 500, keep=keep).tobytes()
    bad = compile_row_filter("status == 'UNSEEN_ELEMENT'", ["pbe"], STATUSES)
    assert np.array_equal(bad(rows[:100]), rows["status"][:100] == 3)


def test_a_filter_by_reason(rows):
    rows = rows[:1000].copy()
    rows["outside"] = np.arange(1000) % 16
    one = compile_row_filter("unseen_pair and not far_from_training", ["pbe"], STATUSES, REASONS)
    assert np.array_equal(one(rows), (rows["outside"] & 10) == 2)
    exactly = compile_row_filter("outside == 'UNSEEN_PAIR+SHORT_CONTACT'", ["pbe"], STATUSES, REASONS)
    assert np.array_equal(exactly(rows), rows["outside"] == 6)
    for empty in ("outside == ''", "outside == 'none'", "'none' == outside", "outside in ['none']"):
        none = compile_row_filter(empty, ["pbe"], STATUSES, REASONS)
        assert np.array_equal(none(rows), rows["outside"] == 0)
    rows["head"] = np.arange(1000) % 2  # a head may be called so
    some = compile_row_filter(
        "outside not in ['none', 'UNSEEN_PAIR'] or head == 'none'", ["pbe", "none"], STATUSES, REASONS
    )
    assert np.array_equal(some(rows), ~np.isin(rows["outside"], [0, 2]) | (rows["head"] == 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("outside == 'FOO'", "unknown reason in the row filter 'FOO'.*allowed: .*none"),
        ("outside == 'UNSEEN_PAIR+none'", "unknown reason in the row filter 'none'; allowed: F"),
        ("outside == 'SHORT_CONTACT+UNSEEN_PAIR'", r"write 'UNSEEN_PAIR\+SHORT_CONTACT'"),
        ("outside in ['UNSEEN_PAIR', 'unseen_element']", "did you mean|allowed"),
        ("head == 'pbee'", "did you mean 'pbe'"),
        ("status != 'ok'", "unknown status in the row filter 'ok'"),
    ],
)
def test_names_that_can_never_be_there_are_refused(text, said):
    with pytest.raises(UsageError, match=said):
        compile_row_filter(text, ["pbe"], STATUSES, REASONS)


def test_no_rows_asked_for(rows):
    best = TopK(0, "energy")
    best.add(rows)
    assert len(best.rows()) == 0


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "max_force.real < 2", "[x for x in (1,)]", "().x"])
def test_a_filter_is_no_program(text):
    with pytest.raises(UsageError):
        compile_row_filter(text, ["pbe"], STATUSES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("head == 0", "head"),
        ("natoms and max_force < 2", "natoms"),
        ("status < 3", "status"),
        ("outside", "outside"),
    ],
)
def test_what_cannot_be_compared_is_refused_when_it_is_compiled(text, said):
    with pytest.raises(UsageError, match=said):
        compile_row_filter(text, ["a", "b"], STATUSES, REASONS)


def test_an_unknown_column_in_a_filter_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'max_force'"):
        compile_row_filter("max_forse < 2", ["pbe"], STATUSES)
