"""The order of data is a pure function of seed and epoch; budgets and shares hold."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.train.config import BatchSection
from atomsieve.train.data.sampler import Order, Sizes, bootstrap_weights, deal, pack


def order(balance: float = 1.0, weights=(1.0, 1.0), block: int = 1, seed: int = 0, **limits) -> Order:
    rng = np.random.default_rng(5)
    head = np.repeat([0, 1], [300, 60])
    atoms = np.where(head == 0, 4, 20) + rng.integers(0, 3, 360)
    index = np.arange(1000, 1360)
    everywhere = np.zeros(1360, np.int64)
    everywhere[index] = atoms
    batch = BatchSection(balance=balance, **({"atoms": 100} | limits))
    return Order(index, head, atoms, list(weights), batch, Sizes(everywhere, 10 * everywhere), seed, block)


def test_with_balance_one_every_structure_comes_once_in_an_epoch():
    for block in (1, 16):
        epoch = np.concatenate(order(block=block).epoch(3))
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1000, 1360))


def test_epochs_differ_and_are_reproducible():
    first, again, other = order().epoch(0), order().epoch(0), order().epoch(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))
    assert not np.array_equal(np.concatenate(first), np.concatenate(order(seed=1).epoch(0)))


def test_shares_follow_the_rule_in_atoms_and_structures_of_a_source_come_equally_often():
    for balance, weights, share in ((1.0, (1, 1), None), (0.0, (1, 1), 0.5), (0.0, (3, 1), 0.75)):
        plan = order(balance, weights)
        seen = np.concatenate([np.concatenate(plan.epoch(e)) for e in range(12)])
        times = np.bincount(seen, minlength=1360)[1000:]
        atoms = plan.sizes.atoms[1000:]
        drawn = times[:300] @ atoms[:300] / (times @ atoms)
        expected = atoms[:300].sum() / atoms.sum() if share is None else share
        assert drawn == pytest.approx(expected, abs=0.01)
        for own in (times[:300], times[300:]):
            assert np.ptp(own) <= 1


def test_no_batch_is_above_any_budget_unless_one_structure_is():
    plan = order(structures=6, edges=900)
    for batch in plan.epoch(0):
        assert plan.sizes.atoms[batch].sum() <= 100
        assert 10 * plan.sizes.atoms[batch].sum() <= 900
        assert len(batch) <= 6
    lonely = pack(np.arange(3), Sizes(np.array([5, 500, 5])), BatchSection(atoms=10))
    assert [b.tolist() for b in lonely] == [[0], [1], [2]]


def test_batches_are_full():
    for batch, following in zip(order().epoch(0), order().epoch(0)[1:], strict=False):
        sizes = order().sizes.atoms
        assert sizes[batch].sum() + sizes[following[0]] > 100


def test_ranks_share_a_batch_without_loss_and_evenly():
    cost = np.random.default_rng(0).integers(1, 30, 200)
    index = np.arange(50, 110)
    for ranks in (1, 2, 3, 7):
        shares = deal(index, cost, ranks)
        np.testing.assert_array_equal(np.sort(np.concatenate(shares)), index)
        loads = [cost[s].sum() for s in shares]
        assert max(loads) - min(loads) <= 30
        assert all(np.all(np.diff(s) > 0) for s in shares)
    assert [len(s) for s in deal(index[:2], cost, 3)].count(0) == 1


def test_blocks_stay_together_within_a_window():
    plan = order(block=10)
    stream = [k for b in plan.epoch(0) for k in b if k < 1300]
    window = 40
    for start in range(0, 280, window):
        assert len({(k - 1000) // 10 for k in stream[start : start + window]}) <= 5


def test_bootstrap_draws_as_many_as_there_are_per_source_and_differs_between_members():
    head, index = np.repeat([0, 1], [70, 30]), np.arange(20, 120)
    weights = bootstrap_weights(head, [0, 1], 130, index)
    assert weights.shape == (2, 130)
    assert (weights[:, :20] == 1).all()
    for k in range(2):
        assert weights[k, 20:90].sum() == 70
        assert weights[k, 90:120].sum() == 30
    assert (weights[0] != weights[1]).any()
    np.testing.assert_array_equal(bootstrap_weights(head, [1], 130, index)[0], weights[1])
