"""What a run learns from a batch that did not fit: the budget is lowered, and the pieces stay those of the failure."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.predict.packing import Limit, pack, run_halving_on_oom


class Machine:
    """Notes which pieces are computed; one above `room` atoms is out of memory."""

    def __init__(self, counts, room):
        self.counts, self.room, self.done, self.failed = counts, room, [], 0

    def __call__(self, index):
        if self.counts[index].sum() > self.room:
            self.failed += 1
            raise MemoryError
        self.done.append(index.tolist())


def run(machine, batches, edges=None, limit=None):
    return [k for batch in batches for k in run_halving_on_oom(machine, batch, machine.counts, edges, limit)]


@pytest.fixture
def batches():
    counts = np.random.default_rng(0).integers(1, 40, 400)
    edges = counts * 30.0
    return counts, edges, pack(edges, counts, 500, 10**9)


def test_after_a_failure_later_batches_are_halved_before_they_are_tried(batches):
    counts, edges, groups = batches
    naive, careful = Machine(counts, 300), Machine(counts, 300)
    limit = Limit(500, 10**9)
    assert run(naive, groups) == [] == run(careful, groups, edges, limit)
    assert naive.failed > 5 and careful.failed == limit.failures == 1
    assert naive.done == careful.done, "the same pieces, so the same bytes, as if every batch had failed first"
    assert np.sort(np.concatenate(careful.done)).tolist() == list(range(400))


def test_the_limit_falls_again_when_memory_shrinks_further(batches):
    counts, edges, groups = batches
    machine, limit = Machine(counts, 300), Limit(500, 10**9)
    run(machine, groups[:5], edges, limit)
    first = limit.part
    machine.room = 120
    run(machine, groups[5:], edges, limit)
    assert limit.part < first < 1 and 2 <= limit.failures <= 4
    assert np.sort(np.concatenate(machine.done)).tolist() == list(range(400))


def test_edges_count_like_atoms(batches):
    _, edges, _ = batches
    limit = Limit(10**9, int(edges.sum()))
    limit.lower(0, edges.sum() / 2)
    assert limit.part == pytest.approx(0.3)
    assert not limit.allows(1, 0.31 * edges.sum()) and limit.allows(1, 0.29 * edges.sum())


def test_a_structure_too_large_alone_is_given_back_and_does_not_stop_the_rest():
    counts = np.array([5, 900, 5, 5])
    machine, limit = Machine(counts, 100), Limit(500, 10**9)
    assert run(machine, [np.arange(4)], None, limit) == [1]
    assert np.sort(np.concatenate(machine.done)).tolist() == [0, 2, 3]
    before = machine.failed
    assert run(machine, [np.array([1])], None, limit) == [1] and machine.failed == before + 1


def test_one_that_is_large_alone_does_not_lower_the_budget_of_others():
    counts = np.array([2000, 5])
    machine, limit = Machine(counts, 1000), Limit(500, 10**9)
    assert run(machine, [np.array([0])], None, limit) == [0]
    assert limit.failures == 1 and limit.part == 1.0 and limit.allows(500, 0)
