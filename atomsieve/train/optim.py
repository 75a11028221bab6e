"""Optimiser, schedule, clipping and running means, all per member: stacked parameters have a leading member axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atomsieve.train.config import OptimizerSection


def make_optimizer(module: nn.Module, rules: OptimizerSection) -> torch.optim.AdamW:
    """Return AdamW; weight decay acts on matrices only (biases and scalars are left alone)."""
    # A stacked matrix is [K, in, out]; a stacked bias is [K, 1, out] or [K, out].
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for p in module.parameters():
        plain = p.dim() >= 3 and min(p.shape[-2:]) > 1
        (matrices if plain else others).append(p)
    groups = [{"params": matrices, "weight_decay": rules.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    fused = all(p.is_floating_point() for p in module.parameters())
    return torch.optim.AdamW(groups, lr=rules.lr, betas=rules.betas, fused=fused)


def learning_rate(progress: float, rules: OptimizerSection, plateau: float = 1.0) -> float:
    """Return the learning rate when a part `progress` (0..1) of the run is done.

    plateau : factor that the plateau schedule has reached.
    """
    progress = min(max(progress, 0.0), 1.0)
    lowest = rules.lr * rules.min_lr_ratio
    if rules.warmup and progress < rules.warmup:
        # The very first step must move too, or a run of few steps would waste it.
        return max(rules.lr * progress / rules.warmup, 1e-2 * rules.lr)
    if rules.schedule == "cosine":
        done = (progress - rules.warmup) / (1 - rules.warmup)
        return lowest + 0.5 * (rules.lr - lowest) * (1 + math.cos(math.pi * done))
    return max(rules.lr * plateau, lowest) if rules.schedule == "plateau" else rules.lr


def gradient_norms(parameters: Sequence[nn.Parameter], members: int) -> Tensor:
    """Return the gradient norm of each member, [K] float64."""
    device = parameters[0].device
    square = torch.zeros(members, dtype=torch.float64, device=device)
    for p in parameters:
        if p.grad is not None:
            square += p.grad.detach().reshape(members, -1).double().pow(2).sum(1)
    return square.sqrt()


def clip_members(parameters: Sequence[nn.Parameter], norms: Tensor, limit: float | None) -> None:
    """Scale each member's gradient to at most `limit`, in place."""
    if limit is None or not bool((norms > limit).any()):
        return
    factor = (limit / norms.clamp_min(1e-12)).clamp_max(1.0)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor.to(p.grad.dtype).view(-1, *[1] * (p.dim() - 1)))


class RunningMean:
    """Exponential running mean of parameters (EMA); its decay grows from zero so that early weights are forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, _ in module.named_parameters()]
        self.values = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the parameters after step `step` (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in module.parameters()], 1 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the module's parameters with the means (call twice to return)."""
        for value, p in zip(self.values, module.parameters(), strict=True):
            own = p.detach().clone()
            p.copy_(value)
            value.copy_(own)
