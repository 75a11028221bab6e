"""Muon of a stack is torch's Muon of each matrix alone; it resumes, and leaves heads without atoms where they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atomsieve.errors import Interrupted, UsageError
from atomsieve.models import Ensemble
from atomsieve.models.config import HeadSpec, ModelConfig
from atomsieve.train.checkpoint import load_tensors
from atomsieve.train.config import OptimizerSection
from atomsieve.train.muon import COEFFICIENTS, StackedMuon, orthogonalize
from atomsieve.train.optim import list_hidden_matrices, make_optimizer
from atomsieve.train.run import train
from tests.train.test_training import StopAt

SHAPES = [(3, 16, 24), (3, 24, 16), (2, 16, 16), (3, 4, 16, 8)]


def small_ensemble() -> Ensemble:
    heads = [HeadSpec(name=n, level_of_theory="x", references={1: 0.0}, scale=1.0, elements={1: 1}) for n in "ab"]
    return Ensemble(ModelConfig(hidden=16, layers=2), heads, [0, 1, 2])


def test_every_matrix_moves_as_by_the_muon_of_torch(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x)  # torch iterates in BF16 alone
    torch.manual_seed(0)
    stacked = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in SHAPES]
    single = [[nn.Parameter(m.detach().clone()) for m in p.detach().flatten(0, -3)] for p in stacked]
    ours = StackedMuon(stacked, lr=1e-2, weight_decay=0.1, momentum=0.9, steps=5)
    flat = [p for many in single for p in many]
    theirs = torch.optim.Muon(flat, lr=1e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for p, many in zip(stacked, single, strict=True):
            p.grad = torch.randn_like(p)
            for own, g in zip(many, p.grad.flatten(0, -3), strict=True):
                own.grad = g.clone()
        ours.step()
        theirs.step()
    for p, many in zip(stacked, single, strict=True):
        torch.testing.assert_close(
            p.detach().flatten(0, -3), torch.stack([m.detach() for m in many]), rtol=0, atol=1e-12
        )


def test_singular_values_become_the_polynomial_of_what_they_were():
    torch.manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(5, n, 8, dtype=torch.float64)).Q for n in (8, 20))
    values = torch.rand(5, 8, dtype=torch.float64) + 0.01
    expected = values / values.norm(dim=1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(4):
        expected = a * expected + b * expected**3 + c * expected**5
    found = orthogonalize(u * values.unsqueeze(1) @ v.mT, 4)
    torch.testing.assert_close(found, u * expected.unsqueeze(1) @ v.mT, rtol=0, atol=1e-12)
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4), 5), torch.zeros(2, 3, 4))


def test_a_head_without_gradient_stays_and_the_others_move_as_if_alone():
    torch.manual_seed(2)
    p = nn.Parameter(torch.randn(2, 3, 16, 8))
    alone = nn.Parameter(p.detach()[:, 1:2].clone())
    both = [StackedMuon([q], lr=1e-2, weight_decay=0.1, momentum=0.9, steps=5) for q in (p, alone)]
    for heads in ((0, 1, 2), (1,), (1,)):
        p.grad = torch.zeros_like(p)
        p.grad[:, list(heads)] = torch.randn(2, len(heads), 16, 8)
        alone.grad = p.grad[:, 1:2].clone()
        before = p.detach().clone()
        for optimizer in both:
            optimizer.step()
        idle = [h for h in range(3) if h not in heads]
        assert torch.equal(p.detach()[:, idle], before[:, idle])
    torch.testing.assert_close(p.detach()[:, 1:2], alone.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("heads", "extra"), [(False, set()), (True, {"readout.hidden_weight"})])
def test_muon_takes_hidden_matrices_and_adamw_every_other_parameter(heads, extra):
    ensemble = small_ensemble()
    named = {id(p): name for name, p in ensemble.named_parameters()}
    hidden = {named[id(p)] for p in list_hidden_matrices(ensemble, heads)}
    per_layer = ("payload.first", "payload.second", "mix", "update.first", "update.second")
    assert hidden == {f"encoder.layers.{k}.{part}.weight" for k in (0, 1) for part in per_layer} | extra
    optimizer = make_optimizer(ensemble, OptimizerSection(kind="muon", muon_heads=heads))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(named)


def test_members_do_not_feel_each_other():
    whole = small_ensemble()
    alone = whole.take([1])
    rules = OptimizerSection(kind="muon", muon_heads=True)
    torch.manual_seed(3)
    for p, q in zip(whole.parameters(), alone.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad[1:2].clone()
    for e in (whole, alone):
        make_optimizer(e, rules).step()
    for p, q in zip(whole.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.detach()[1:2], q.detach(), rtol=0, atol=1e-6)


def test_a_run_with_muon_learns_and_resumes_to_the_same_bits(small, monkeypatch):
    rules = {"optimizer": {"kind": "muon", "muon_heads": True}, "budget": {"steps": 40, "eval_every": 20}}
    whole, broken = small("whole", **rules), small("broken", **rules)
    train(whole)
    with monkeypatch.context() as patch:
        StopAt(patch, 9)
        with pytest.raises(Interrupted, match="step 9"):
            train(broken)
    train(broken)
    last = [load_tensors(c.output / "runs/000/last.safetensors") for c in (whole, broken)]
    assert last[0][0].keys() == last[1][0].keys()
    assert all(torch.equal(value, last[1][0][name]) for name, value in last[0][0].items())
    assert any(name.startswith("optimizer/momentum_buffer/") for name in last[0][0])
    scores = [sum(h["score"]) for h in last[0][1]["history"]]
    assert scores[-1] < scores[0]


def test_whole_matrices_of_heads_do_not_go_with_units_in_common(small):
    with pytest.raises(UsageError, match="muon_heads moves each head's matrix as a whole"):
        small(optimizer={"kind": "muon", "muon_heads": True}, ensemble={"common_units": 2})
