"""Training a shallow ensemble: likelihoods are what they say, runs resume exactly, configurations are checked."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from atomsieve.errors import Interrupted, UsageError
from atomsieve.gfm import load_gfm
from atomsieve.models import EnsembleOutput
from atomsieve.train import loop
from atomsieve.train.checkpoint import load_tensors
from atomsieve.train.config import LossSection, parse_config
from atomsieve.train.likelihood import energy_likelihood, fair_crps, fair_energy_score, force_likelihood, gaussian_nll
from atomsieve.train.loss import batch_loss
from atomsieve.train.run import train

SHALLOW = {"kind": "shallow", "members": 4}


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# -- the likelihoods -----------------------------------------------------------------------------------------------


def test_the_fair_crps_is_that_of_its_definition():
    error = normal(5, 7)
    pairs = sum((error[i] - error[j]).abs() for i, j in itertools.combinations(range(5), 2)) / 10
    assert torch.allclose(fair_crps(error), error.abs().mean(0) - pairs / 2, atol=1e-14)
    alike = normal(1, 7).expand(5, -1)
    assert torch.allclose(fair_crps(alike), alike[0].abs(), atol=1e-14)


def test_along_a_line_the_energy_score_is_the_crps():
    error = normal(6, 4)
    along = error.unsqueeze(2) * torch.tensor([2 / 3, -1 / 3, 2 / 3], dtype=torch.float64)
    assert torch.allclose(fair_energy_score(along), fair_crps(error), atol=1e-14)


@pytest.mark.parametrize("likelihood", ["crps", "nll"])
def test_scores_of_forces_do_not_depend_on_how_the_structure_is_turned(likelihood):
    error, rules = normal(4, 6, 3), LossSection(likelihood=likelihood)
    turn, _ = torch.linalg.qr(normal(3, 3, seed=1))
    here, there = force_likelihood(error, rules, of=8), force_likelihood(error @ turn, rules, of=8)
    assert torch.allclose(here, there, atol=1e-12)


def test_the_gaussian_is_that_of_torch():
    error = normal(6, 9, 1)
    scale = (error[..., 0].var(0) + 0.01).sqrt()
    exact = -torch.distributions.Normal(0.0, scale).log_prob(error[..., 0].mean(0))
    found = gaussian_nll(error, 0.01) + 0.5 * math.log(2 * math.pi)
    assert torch.allclose(found, exact, atol=1e-13)


@pytest.mark.parametrize("likelihood", ["crps", "nll"])
def test_gradients_are_those_of_differences(likelihood):
    rules = LossSection(likelihood=likelihood)
    for function in (lambda e: energy_likelihood(e[..., 0], rules), lambda e: force_likelihood(e, rules, of=9)):
        assert torch.autograd.gradcheck(function, normal(4, 3, 3).requires_grad_(), atol=1e-7)


def test_no_gradient_is_nan_where_members_agree_and_are_right():
    for likelihood in ("crps", "nll"):
        error = torch.zeros(3, 2, 3, dtype=torch.float64, requires_grad=True)
        rules = LossSection(likelihood=likelihood)
        (force_likelihood(error, rules, of=9).sum() + energy_likelihood(error[..., 0], rules).sum()).backward()
        assert torch.isfinite(error.grad).all()


@pytest.mark.parametrize("likelihood", ["crps", "nll"])
@pytest.mark.parametrize("drawn", [3, 8])
def test_the_best_spread_is_the_size_of_the_error_however_many_are_draw_force_decoders(likelihood, drawn):
    """Members drawn from a Gaussian around the mean: of all widths, that of the errors has the best expected score."""
    rng = np.random.default_rng(0)
    n, rules = 20_000, LossSection(likelihood=likelihood, variance_floor=1e-9)
    label = torch.from_numpy(rng.normal(size=(1, n, 3)))
    draws = torch.from_numpy(rng.normal(size=(drawn, n, 3)))
    widths = [0.7, 0.85, 1.0, 1.15, 1.3]
    scores = [float(force_likelihood(w * draws - label, rules, of=16).mean()) for w in widths]
    assert widths[int(np.argmin(scores))] == 1.0, scores


# -- the loss of a batch -------------------------------------------------------------------------------------------


def tiny_batch():
    t = lambda x: torch.as_tensor(x, dtype=torch.float64)  # noqa: E731
    return SimpleNamespace(
        energy=t([1.0, 2.0, 0.0]),
        energy_size=t([0.5, 0.25, 1.0]),
        n_atoms=t([2, 1, 1]),
        has_energy=t([1, 1, 0]),
        forces=normal(4, 3),
        force_size=t([1.0, 1.0, 2.0, 4.0]),
        has_forces=t([1, 1, 0, 1]),
        virial=t(0),
        weight=None,
        n_energy=2,
        n_forces=3,
        n_stress=0,
    )


def output(batch, energy, forces):
    nothing = energy.new_zeros(0)
    return EnsembleOutput(batch.energy + energy, batch.forces + forces, None, nothing, nothing, shared=True)


def test_before_the_likelihood_members_are_right_about_energies_and_their_mean_about_forces():
    batch = tiny_batch()
    energy = torch.tensor([[1.0, -1.0, 9.0], [3.0, 1.0, 9.0]], dtype=torch.float64)
    parts = batch_loss(
        output(batch, energy, torch.tensor([[[3.0, 0.0, 4.0]]], dtype=torch.float64)),
        batch,
        LossSection(likelihood="crps", energy=2.0).at(0.2),
    )
    # per atom and size: 1 and 3 of the first, 4 and 4 of the second
    assert parts.energy.tolist() == pytest.approx([(2 + 4) / 2])
    assert parts.force.tolist() == pytest.approx([(5 + 5 + 1.25) / 3])
    assert parts.total.tolist() == pytest.approx([2 * 3 + 3 * 3.75])


def test_afterwards_both_are_scored_and_forces_of_the_mean_alone_are_not():
    batch, rules = tiny_batch(), LossSection(likelihood="crps")
    energy, forces = normal(5, 3), normal(3, 4, 3, seed=1)
    parts = batch_loss(output(batch, energy, forces), batch, rules.at(0.9))
    scaled = energy / (batch.n_atoms * batch.energy_size)
    assert float(parts.energy) == pytest.approx(float(fair_crps(scaled)[:2].sum() / 2))
    scores = fair_energy_score(forces / batch.force_size.view(1, -1, 1))
    assert float(parts.force) == pytest.approx(float(scores[[0, 1, 3]].sum() / 3))
    of_mean = batch_loss(output(batch, energy, forces[:1]), batch, rules.at(0.9))
    plain = batch_loss(output(batch, energy, forces[:1]), batch, rules.at(0.0))
    assert float(of_mean.force) == float(plain.force) > 0


# -- whole runs ----------------------------------------------------------------------------------------------------


def rows(config, kind):
    lines = (config.output / "runs/000/log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.mark.parametrize("likelihood", ["crps", "nll"])
def test_training_learns_and_the_spread_of_energies_comes_to_the_size_of_the_errors(small, likelihood):
    config = small(
        budget={"steps": 150, "eval_every": 30},
        optimizer={"lr": 1e-2, "ema": 0.9},
        ensemble={**SHALLOW, "members": 6},
        loss={"likelihood": likelihood, "likelihood_from": 0.4},
        batch={"balance": 0.2},
    )
    result = train(config)
    test = result.metrics["test"]["emt"]
    assert test["force_ratio"] < 0.6
    assert test["spread_error_force"] is not None
    found = result.validations["test"]
    error, spread = np.abs(found.energy_error), found.energy_spread
    own = found.head == 0
    assert 0.2 < np.sqrt((error[own] ** 2).mean() / (spread[own] ** 2).mean()) < 5
    assert (found.force_spread[own] > 0).all()
    model, manifest = load_gfm(result.gfm)
    assert (manifest.kind, model.members, len(model.encoder.embedding)) == ("shallow", 6, 1)
    assert manifest.training["config"]["loss"]["likelihood"] == likelihood
    before = [len(row["score"]) for row in rows(config, "validation")]
    assert set(before) == {1}
    state = load_tensors(config.output / "runs/000/last.safetensors")[1]
    assert state["likelihood"]
    late = [h["score"][0] for h in state["history"] if h["step"] > 60]
    assert state["best"] == [min(late)]  # what came before the likelihood no longer counts


def test_an_interrupted_run_goes_on_to_the_same_bits(small, monkeypatch):
    options = {
        "budget": {"steps": 13, "eval_every": 3},
        "ensemble": SHALLOW,
        "loss": {"force_decoders": 2, "likelihood_from": 0.3},
    }
    whole, broken = small("whole", **options), small("broken", **options)
    drawn = []
    plain, chosen = loop.Run.step, loop.Run._draw_force_decoders

    def remembered(run, rules):
        drawn.append((run.progress.step, chosen(run, rules)))
        return drawn[-1][1]

    monkeypatch.setattr(loop.Run, "_draw_force_decoders", remembered)
    train(whole)
    once = list(drawn)
    drawn.clear()
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "step", lambda r, b, stop, part: plain(r, b, stop or r.progress.step + 1 == 8, part))
        with pytest.raises(Interrupted, match="step 8"):
            train(broken)
    train(broken)
    assert drawn == once
    assert [d for s, d in once if s < 4] == [None] * 4
    late = [tuple(d) for s, d in once if s >= 4]
    assert all(len(set(d)) == 2 for d in late)
    assert len(set(late)) > 1
    last = [load_tensors(c.output / "runs/000/last.safetensors") for c in (whole, broken)]
    assert all(torch.equal(last[0][0][name], t) for name, t in last[1][0].items())
    best = [load_tensors(c.output / "runs/000/best.safetensors") for c in (whole, broken)]
    assert all(torch.equal(best[0][0][name], t) for name, t in best[1][0].items())


def test_the_best_weights_are_kept_as_a_whole(small):
    """Decoders of one moment on the encoder of another would be no ensemble at all."""
    config = small(
        ensemble=SHALLOW,
        budget={"steps": 9, "eval_every": 3},
        loss={"likelihood_from": 0.0},
        optimizer={"lr": 3e-2, "ema": 0.0, "schedule": "constant", "warmup": 0.0},
    )
    train(config)
    best, said = load_tensors(config.output / "runs/000/best.safetensors")
    state = load_tensors(config.output / "runs/000/last.safetensors")[1]
    assert said["score"] == state["best"] == [min(h["score"][0] for h in state["history"])]
    written = dict(load_gfm(config.output / "gfm")[0].named_parameters())
    assert all(torch.equal(written[name], t) for name, t in best.items())
    if state["history"][-1]["score"] == state["best"]:
        last = load_tensors(config.output / "runs/000/last.safetensors")[0]
        assert all(torch.equal(last[f"model/{name}"], t) for name, t in best.items())


def test_patience_does_not_end_a_run_before_its_likelihood(small):
    config = small(
        ensemble=SHALLOW,
        optimizer={"lr": 1e-12, "warmup": 0.0, "schedule": "constant"},
        budget={"steps": 40, "eval_every": 2, "patience": 2},
    )
    train(config)
    state = load_tensors(config.output / "runs/000/last.safetensors")[1]
    assert 20 < state["step"] < 40


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"ensemble": {"kind": "shalow"}}, "ensemble.kind: Input should be 'deep' or 'shallow', got 'shalow'"),
        ({"ensemble": {**SHALLOW, "mode": "spread"}}, "mode: spread cannot part them; use mode: together"),
        ({"ensemble": {**SHALLOW, "mode": "separate"}}, "mode: separate cannot part them; use mode: together"),
        ({"ensemble": {**SHALLOW, "bootstrap": True}}, "bootstrap has no use; leave it out"),
        ({"loss": {"likelihood": "nll"}}, "loss.likelihood: nll is for ensemble.kind: shallow"),
        ({"ensemble": {**SHALLOW, "members": 1}}, "needs ensemble.members of 2 or more, got 1"),
        ({"ensemble": SHALLOW, "loss": {"force_decoders": 5}}, "from 2 to ensemble.members (4), got 5"),
        ({"ensemble": SHALLOW, "loss": {"force_decoders": 1}}, "from 2 to ensemble.members (4), got 1"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(sections, said):
    with pytest.raises(UsageError) as caught:
        parse_config({"data": [{"path": "x.bp"}], **sections})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_likelihood_is_settled_by_the_kind():
    one = {"data": [{"path": "x.bp"}]}
    assert parse_config(one).loss.likelihood == "none"
    assert parse_config({**one, "ensemble": SHALLOW}).loss.likelihood == "nll"
    again = parse_config(parse_config({**one, "ensemble": SHALLOW, "loss": {"likelihood": "none"}}).model_dump())
    assert again.loss.likelihood == "none"
    assert parse_config({**one, "ensemble": {**SHALLOW, "members": 1}, "loss": {"likelihood": "none"}})


def test_decoders_alone_learn_the_spread_when_the_schedule_has_ended(small, monkeypatch):
    """The encoder stays as it is from `likelihood_from` on, the decoders go on, each by itself."""
    config = small(
        ensemble=SHALLOW,
        budget={"steps": 20},
        loss={"likelihood": "nll", "likelihood_from": 0.5, "likelihood_trains": "decoders"},
    )
    seen, rates, plain = [], [], loop.Run.step

    def step(run, *args):
        found = plain(run, *args)
        seen.append({n: p.detach().clone() for n, p in run.ensemble.named_parameters()})
        rates.append(run.optimizer.param_groups[0]["lr"])
        return found

    monkeypatch.setattr(loop.Run, "step", step)
    train(config)
    for name, value in seen[9].items():
        moved = not torch.equal(value, seen[19][name])
        assert moved == (name.startswith("readout.") and "gate" not in name), name
        assert not torch.equal(value, seen[0][name])
    assert rates[9] < 0.05 * config.optimizer.lr < rates[10] < 0.25 * config.optimizer.lr
    assert rates[19] < rates[10]


def test_a_spread_taught_apart_gives_the_mean_no_gradient():
    error = normal(4, 5, 3).requires_grad_()
    gaussian_nll(error, 1e-4, apart=True).sum().backward()
    assert error.grad.sum(0).abs().max() < 1e-12
    assert error.grad.abs().max() > 0.1
