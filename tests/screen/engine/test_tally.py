"""Tallies of parts of the rows, merged in any order, are the tally of all rows."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from atomsieve.predict.status import Status
from atomsieve.screen.engine.poisoned import PoisonedSpan
from atomsieve.screen.engine.tally import Tally
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.selection.row_filter import compile_row_filter
from atomsieve.screen.selection.top_k import TopK


def random_rows(n: int = 400) -> np.ndarray:
    """Return rows with many ties in the ranked column, some bad and some poisoned."""
    rng, rows = np.random.default_rng(3), np.zeros(n, ROW)
    rows["position"], rows["energy_per_atom"] = np.arange(n), rng.integers(0, 20, n)
    rows["max_force"] = rng.random(n)
    rows["status"] = rng.choice([Status.OK, Status.NAN_INPUT, Status.POISONED], n, p=[0.8, 0.15, 0.05])
    return rows


def new_tally(descending: bool) -> Tally:
    where = compile_row_filter("max_force < 0.7", ["pbe"], {int(s): s.name for s in Status})
    return Tally(TopK(30, "energy_per_atom", descending=descending, where=where))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_merged_tallies_are_the_tally_of_all_rows(descending, seed):
    rows, rng = random_rows(), np.random.default_rng(seed)
    whole = new_tally(descending)
    chunks = np.array_split(rows, 16)
    for chunk in chunks:
        whole.add(chunk)
    parts = [new_tally(descending) for _ in range(5)]
    for k in rng.permutation(len(chunks)):
        parts[rng.integers(5)].add(chunks[k])
    merged = reduce(Tally.merge, [parts[k] for k in rng.permutation(5)])
    assert merged.best.rows().tobytes() == whole.best.rows().tobytes() and len(whole.best.rows()) == 30
    assert merged.status == whole.status and merged.status.total() == len(rows)
    assert sorted(merged.poisoned) == sorted(whole.poisoned) and whole.poisoned


def test_a_merge_leaves_both_as_they_were():
    one, other = new_tally(False), new_tally(False)
    one.add(random_rows()[:100])
    other.add(random_rows()[100:])
    before = one.best.rows().tobytes(), dict(one.status), list(other.poisoned)
    merged = one.merge(other)
    merged.add(random_rows())
    assert (one.best.rows().tobytes(), dict(one.status), list(other.poisoned)) == before


def test_a_span_holds_the_poisoned_rows_of_a_chunk():
    tally, rows = new_tally(False), np.zeros(6, ROW)
    rows["position"] = np.arange(10, 16)
    tally.add(rows)
    assert tally.poisoned == []
    rows["status"][[1, 4]] = Status.POISONED
    tally.add(rows)
    assert tally.poisoned == [PoisonedSpan(11, 14, 2)]
