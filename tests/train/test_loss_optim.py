"""The loss masks and normalises exactly; clipping and running means act on each member by itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from atomsieve.models import EnsembleOutput
from atomsieve.train.config import LossSection, OptimizerSection
from atomsieve.train.data.batches import Labels
from atomsieve.train.loss import batch_loss, penalty
from atomsieve.train.optim import RunningMean, clip_members, gradient_norms, learning_rate


def batch(structure=(0, 0, 1, 2), has_energy=(1, 1, 0), has_forces=(1, 0, 1), weight=None, **counts):
    """Three structures of 2, 1 and 1 atoms."""
    rng = np.random.default_rng(1)
    t = lambda x, d=torch.float64: torch.as_tensor(np.asarray(x), dtype=d)  # noqa: E731
    atoms = np.bincount(structure)
    mask = np.repeat(has_forces, atoms)
    totals = {"n_energy": sum(has_energy), "n_forces": int(mask.sum()), "n_stress": 0} | counts
    return SimpleNamespace(
        graph=SimpleNamespace(structure=t(structure, torch.int64)),
        energy=t([1.0, 2.0, 0.0]),
        energy_size=t([0.5, 0.25, 1.0]),
        n_atoms=t(atoms),
        has_energy=t(has_energy),
        forces=t(rng.normal(size=(4, 3))),
        force_size=t([1.0, 1.0, 2.0, 4.0]),
        has_forces=t(mask),
        virial=t(np.zeros((3, 3, 3))),
        virial_size=t([1, 1, 1]),
        has_stress=t([0, 0, 0]),
        weight=weight,
        **totals,
    )


def output(b, energy_error=0.0, force_error=0.0, members=2):
    energy = (b.energy + energy_error).expand(members, -1).clone().requires_grad_()
    forces = (b.forces + force_error).expand(members, -1, -1).clone().requires_grad_()
    nothing = energy.new_zeros(members, 0)
    return EnsembleOutput(energy, forces, None, nothing, nothing.unsqueeze(2))


def test_a_perfect_prediction_costs_nothing_and_its_gradient_is_zero_not_nan():
    b = batch()
    out = output(b)
    parts = batch_loss(out, b, LossSection())
    assert parts.total.tolist() == [0.0, 0.0]
    parts.total.sum().backward()
    assert torch.equal(out.forces.grad, torch.zeros_like(out.forces))


def test_values_by_hand():
    b = batch()
    out = output(b, energy_error=torch.tensor([1.0, 1.0, 7.0]), force_error=torch.tensor([3.0, 0.0, 4.0]))
    parts = batch_loss(out, b, LossSection(energy=2.0, force=3.0))
    # energies: 1/(2*0.5) and 1/(1*0.25), the third has no label; forces: 5/1, 5/1 and 5/4, the second has none.
    assert parts.energy.tolist() == pytest.approx([(1 + 4) / 2] * 2)
    assert parts.force.tolist() == pytest.approx([(5 + 5 + 1.25) / 3] * 2)
    assert parts.total.tolist() == pytest.approx([2 * 2.5 + 3 * 3.75] * 2)


def test_weights_of_members_count_structures_as_often_as_drawn():
    b = batch(weight=torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]], dtype=torch.float64))
    parts = batch_loss(output(b, 1.0, torch.tensor([3.0, 0.0, 4.0])), b, LossSection())
    assert parts.energy.tolist() == pytest.approx([2 * 1 / 2, 4 / 2])
    assert parts.force.tolist() == pytest.approx([(2 * 10 + 1.25) / 3, 3 * 1.25 / 3])


def test_parts_of_two_ranks_add_up_to_the_mean():
    whole = batch(n_energy=4, n_forces=8)
    half = batch_loss(output(whole, 0.3, 0.1), whole, LossSection())
    alone = batch_loss(output(batch(), 0.3, 0.1), batch(), LossSection())
    assert (2 * half.energy).tolist() == pytest.approx(alone.energy.tolist())
    assert half.force.tolist() == pytest.approx((3 / 8 * alone.force).tolist())


def test_penalties_meet_where_they_should():
    size = torch.linspace(0, 2, 50, dtype=torch.float64)
    huber = penalty(size, LossSection(kind="huber", huber_delta=0.5))
    assert torch.equal(penalty(size, LossSection(kind="mae")), size)
    torch.testing.assert_close(huber[size > 0.5], size[size > 0.5] - 0.25)
    assert float(huber.diff().diff().min()) > -1e-12  # convex, no jump in slope
    torch.testing.assert_close(penalty(size, LossSection(kind="mse")), size**2)


def test_each_member_is_clipped_by_its_own_norm():
    p = torch.nn.Parameter(torch.zeros(3, 2, 2))
    p.grad = torch.stack([torch.full((2, 2), v) for v in (1.0, 10.0, 0.1)])
    norms = gradient_norms([p], 3)
    assert norms.tolist() == pytest.approx([2, 20, 0.2])
    clip_members([p], norms, 4.0)
    assert gradient_norms([p], 3).tolist() == pytest.approx([2, 4, 0.2])


def test_the_learning_rate_rises_falls_and_ends_where_stated():
    rules = OptimizerSection(lr=1.0, min_lr_ratio=0.1, warmup=0.1)
    values = [learning_rate(x, rules) for x in np.linspace(0, 1, 101)]
    assert values[0] == pytest.approx(0.01)
    assert max(values) == values[10] == pytest.approx(1.0)
    assert np.all(np.diff(values[10:]) < 0)
    assert values[-1] == pytest.approx(0.1)
    plateau = OptimizerSection(lr=1.0, warmup=0.0, schedule="plateau")
    assert learning_rate(0.5, plateau, 0.25) == 0.25


@pytest.mark.parametrize(
    ("schedule", "expected"), [("linear", [0.55, 0.325, 0.1]), ("stable", [1.0, 1.0, 0.1]), ("constant", [1, 1, 1])]
)
def test_schedules_pass_through_their_values_and_never_rise(schedule, expected):
    rules = OptimizerSection(lr=1.0, min_lr_ratio=0.1, warmup=0.0, schedule=schedule, decay=0.25)
    assert [learning_rate(x, rules) for x in (0.5, 0.75, 1.0)] == pytest.approx(expected)
    values = [learning_rate(x, rules) for x in np.linspace(0, 1, 101)]
    assert np.all(np.diff(values) <= 0)
    assert values[0] == 1.0


def test_a_running_mean_over_a_part_of_the_run_weighs_the_steps_of_that_part():
    part, steps = 0.05, 4000
    module = torch.nn.Linear(1, 1, bias=False).double()
    mean, total = RunningMean(module, 0.9, part), 0.0
    with torch.no_grad():
        for step in range(1, steps + 1):
            module.weight.fill_(float(step))
            mean.update(module, step)
            total = float(mean.values[0])
    # weights (step / steps)**(1 / part - 1): their mean is that of step under a power law
    assert total == pytest.approx(steps / (1 + part), rel=2e-3)


def test_the_running_mean_swaps_in_and_out_exactly():
    module = torch.nn.Linear(3, 2)
    mean = RunningMean(module, 0.9)
    start = [p.detach().clone() for p in module.parameters()]
    with torch.no_grad():
        for p in module.parameters():
            p += 1.0
    mean.update(module, 1)
    decay = min(0.9, 2 / 11)
    moved = [p.detach().clone() for p in module.parameters()]
    mean.swap(module)
    for p, s in zip(module.parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), s + (1 - decay))
    mean.swap(module)
    assert all(torch.equal(p, m) for p, m in zip(module.parameters(), moved, strict=True))


def test_energies_count_by_their_atoms_where_the_configuration_asks():
    """Errors of 1 eV: per atom 1/2 and 1 eV over sizes of 0.5 and 0.25 eV, by 2 atoms and 1."""
    heads = [SimpleNamespace(energy_size=0.5, force_size=1.0, stress_size=1.0)]
    residual, atoms, no = np.array([1.0, 2.0, np.nan]), np.array([2, 1, 1]), np.zeros(3, bool)
    labels = Labels.build(residual, no, no, atoms, heads, "atoms")
    assert labels.energy_weight.tolist() == [2, 1, 0]
    assert Labels.build(residual, no, no, atoms, heads).energy_weight.tolist() == [1, 1, 0]
    b = batch(has_energy=(2, 1, 0))
    parts = batch_loss(output(b, energy_error=torch.tensor([1.0, 1.0, 7.0])), b, LossSection(energy=1.0, force=0.0))
    np.testing.assert_allclose(parts.energy.tolist(), [(2 * 1.0 + 1 * 4.0) / 3] * 2)
