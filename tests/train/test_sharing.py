"""Hidden units that heads have in common: alike after training, the gradient that of one set of weights."""

from __future__ import annotations

import pytest
import torch

from atomsieve.errors import UsageError
from atomsieve.gfm.folder import load_gfm
from atomsieve.models.layers import Seeds
from atomsieve.models.readout import PooledReadout
from atomsieve.train.run import train
from atomsieve.train.sharing import CommonUnits


def test_common_units_are_alike_after_training_and_the_others_are_not(small):
    config = small(
        budget={"steps": 12},
        ensemble={"members": 2, "common_units": 5},
        model={"hidden": 16, "layers": 1, "cutoff": 3.5, "head_hidden": 8},
    )
    train(config)
    ensemble, _ = load_gfm(config.output / "gfm")
    first, second = (ensemble.readout.hidden_weight[:, head] for head in (0, 1))
    assert torch.equal(first[..., :5], second[..., :5])
    assert not torch.equal(first[..., 5:], second[..., 5:])
    assert not torch.equal(first[0], first[1])  # members
    out = ensemble.readout.out_weight
    assert torch.equal(out[:, 0, :5], out[:, 1, :5])
    assert not torch.equal(out[:, 0, 5:], out[:, 1, 5:])
    assert len({head.scale for head in ensemble.heads}) == 1


def test_heads_that_read_sums_over_atoms_have_no_common_units():
    pooled = PooledReadout(8, (4,), 2, Seeds([0]))
    CommonUnits(pooled, 0).sum_gradients()
    with pytest.raises(UsageError, match="common_units is for heads that read atoms"):
        CommonUnits(pooled, 2)


def test_bad_numbers_of_common_units_are_refused(small):
    with pytest.raises(UsageError, match=r"at most model.head_hidden \(8\), got 9"):
        small(ensemble={"common_units": 9})
    with pytest.raises(UsageError, match="only if the heads start alike"):
        small(ensemble={"common_units": 3, "alike_heads": False})
