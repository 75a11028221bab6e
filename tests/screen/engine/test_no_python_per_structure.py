"""The hot path does not know of single structures: ten times as many execute no more lines of Python."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from atomsieve.predict import Predictor
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.selection.top_k import TopK
from atomsieve.structures import StructureBatch
from tests.helpers import tiny_gfm


def oxides(n: int) -> StructureBatch:
    """Return `n` dimers of copper and oxygen in a large cell, all different, three of them without result."""
    ptr = np.arange(n + 1, dtype=np.int64) * 2
    positions = np.zeros((2 * n, 3))
    positions[1::2, 0] = 1.6 + np.arange(n) % 97 / 200
    positions[1::2, 1] = 0.3 * np.sin(np.arange(n))
    positions[2, 0], positions[5], positions[9] = np.nan, positions[4], 1e6
    cell = np.broadcast_to(np.eye(3) * 9.0, (n, 3, 3)).copy()
    numbers = np.tile(np.array([29, 8], np.uint8), n)
    return StructureBatch(ptr, numbers, positions, cell, np.ones((n, 3), bool), np.arange(n, dtype=np.int64)).validate()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Compute a chunk as one batch, keep its best rows, and return the number of lines of Python that took."""
    predictor = Predictor.load(tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm"))
    head = next(h for h in predictor.heads if {8, 29} <= set(predictor.elements(h)))
    runner = Runner(predictor, [head], True, 10**9, 10**9, 1, 10**9)

    def counted(n):
        lines = 0

        def note(frame, event, argument):
            nonlocal lines
            lines += event == "line"
            return note

        batch, best = oxides(n), TopK(10, "energy_per_atom")
        before = sys.gettrace()  # of coverage
        sys.settrace(note)
        try:
            rows, *_ = runner(batch, 0)
            best.add(rows)
            best.rows()
        finally:
            sys.settrace(before)
        return lines, rows

    counted(20)  # imports and caches
    return counted


def test_ten_times_as_many_structures_execute_no_more_lines(run):
    few, rows = run(200)
    many, more = run(2000)
    assert 0 < (rows["status"] != 0).sum() == (more["status"] != 0).sum() < 10
    assert few > 1000  # it does count
    assert abs(many - few) <= 20
