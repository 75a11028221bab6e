"""Optimiser, schedule, clipping and running means, all per member: stacked parameters have a leading member axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atomsieve.models.layers import StackedLinear
from atomsieve.models.readout import PooledReadout, Readout
from atomsieve.train.config import OptimizerSection
from atomsieve.train.muon import JointOptimizer, StackedMuon

SMALLEST_HIDDEN = 8
"""Matrices with fewer rows or columns are left to AdamW."""


def make_optimizer(module: nn.Module, rules: OptimizerSection) -> torch.optim.AdamW | JointOptimizer:
    """Return AdamW, or Muon for hidden matrices beside AdamW for the rest.

    Weight decay acts on matrices only (biases and scalars are left alone).
    """
    hidden = list_hidden_matrices(module, rules.muon_heads) if rules.kind == "muon" else []
    by_muon = {id(p) for p in hidden}
    # A stacked matrix is [K, in, out]; a stacked bias is [K, 1, out] or [K, out].
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for p in module.parameters():
        if id(p) not in by_muon:
            plain = p.dim() >= 3 and min(p.shape[-2:]) > 1
            (matrices if plain else others).append(p)
    groups = [{"params": matrices, "weight_decay": rules.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    fused = all(p.is_floating_point() for p in module.parameters())
    adamw = torch.optim.AdamW(groups, lr=rules.lr, betas=rules.betas, fused=fused)
    if not hidden:
        return adamw
    return JointOptimizer(
        StackedMuon(hidden, rules.lr, rules.weight_decay, rules.muon_momentum, rules.muon_steps), adamw
    )


def list_hidden_matrices(module: nn.Module, heads: bool) -> list[nn.Parameter]:
    """Return the matrices that Muon updates: the weights of stacked linear maps, and of the heads' hidden layers.

    Not embeddings, filters of a few radial functions, or maps to a single number: their rows are no directions of a
    hidden space.
    """
    found = [layer.weight for layer in module.modules() if isinstance(layer, StackedLinear)]
    if heads:
        found += [
            p for layer in module.modules() if isinstance(layer, Readout | PooledReadout) for p in layer.parameters()
        ]
    return [p for p in found if p.dim() >= 3 and min(p.shape[-2:]) >= SMALLEST_HIDDEN]


def learning_rate(progress: float, rules: OptimizerSection, plateau: float = 1.0) -> float:
    """Return the learning rate when a part `progress` (0..1) of the run is done.

    plateau : factor that the plateau schedule has reached.
    """
    progress = min(max(progress, 0.0), 1.0)
    lowest = rules.lr * rules.min_lr_ratio
    if rules.warmup and progress < rules.warmup:
        # The very first step must move too, or a run of few steps would waste it.
        return max(rules.lr * progress / rules.warmup, 1e-2 * rules.lr)
    done = (progress - rules.warmup) / (1 - rules.warmup)
    if rules.schedule == "cosine":
        return lowest + 0.5 * (rules.lr - lowest) * (1 + math.cos(math.pi * done))
    if rules.schedule == "linear":
        return lowest + (rules.lr - lowest) * (1 - done)
    if rules.schedule == "stable":
        return lowest + (rules.lr - lowest) * min((1 - progress) / rules.decay, 1.0)
    return max(rules.lr * plateau, lowest) if rules.schedule == "plateau" else rules.lr


def gradient_norms(parameters: Sequence[nn.Parameter], members: int) -> Tensor:
    """Return the gradient norm of each member, [K] float64."""
    grads = [p.grad.detach().reshape(members, -1) for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(members, dtype=torch.float64, device=parameters[0].device)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dim=1) for g in grads]).double(), dim=0)


def clip_members(parameters: Sequence[nn.Parameter], norms: Tensor, limit: float | None) -> None:
    """Scale each member's gradient to at most `limit`, in place."""
    if limit is None or not bool((norms > limit).any()):
        return
    factor = (limit / norms.clamp_min(1e-12)).clamp_max(1.0)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor.to(p.grad.dtype).view(-1, *[1] * (p.dim() - 1)))


class RunningMean:
    """Exponential running mean of parameters (EMA); its decay grows from zero so that early weights are forgotten.

    part : with it the mean looks back over this part of the steps done, not over 1 / (1 - decay) steps.
    """

    def __init__(self, module: nn.Module, decay: float, part: float | None = None) -> None:
        self.decay, self.part = decay, part
        self.names = [name for name, _ in module.named_parameters()]
        self.values = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the parameters after step `step` (counted from 1)."""
        longest = self.decay if self.part is None else max(1 - 1 / (self.part * step), 0.0)
        decay = min(longest, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in module.parameters()], 1 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the module's parameters with the means (call twice to return)."""
        for value, p in zip(self.values, module.parameters(), strict=True):
            own = p.detach().clone()
            p.copy_(value)
            value.copy_(own)
