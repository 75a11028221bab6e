"""Muon for stacked matrices: momentum, orthogonalised for each matrix of each member by Newton-Schulz iterations.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the size of an update follows
J. Liu et al., "Muon is scalable for LLM training" (arXiv:2502.16982, 2025), so that the learning rate and weight decay
of AdamW serve both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of X <- (a + b X X^T + c (X X^T)^2) X, as of Jordan; singular values end between about 0.7 and 1.2."""
SMALLEST_NORM = 1e-7
RMS_OF_ADAM = 0.2
"""Root mean square of AdamW's updates in units of the learning rate (Liu et al., sect. 2.2)."""


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Return `[M,n,m]`, n <= m, with the singular vectors of each matrix and singular values near 1."""
    a, b, c = COEFFICIENTS
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    x = matrices / norms.clamp_min(SMALLEST_NORM)  # no singular value is above 1
    if 2 * x.shape[1] <= x.shape[2]:
        return torch.bmm(_find_factor(torch.bmm(x, x.mT), steps), x)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _find_factor(gram: Tensor, steps: int) -> Tensor:
    """Return the product of all (a + b G + c G^2), by which the iterations multiply X, from G = X X^T `[M,n,n]`.

    G and its polynomials P commute, so that G <- P G P; this takes fewer operations than X itself where n is small.
    """
    a, b, c = COEFFICIENTS
    factor: Tensor | None = None
    for step in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor = polynomial if factor is None else torch.bmm(polynomial, factor)
        if step + 1 < steps:
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
    assert factor is not None
    return factor


class StackedMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for parameters `[..., inputs, outputs]`; every matrix by itself.

    The same update as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, in the arithmetic of the parameters (not in
    BF16, which most processors multiply slowly). A matrix whose gradient is zero throughout, as that of a head without
    atoms in the batch, is left alone: normalised momentum would move it by a full step.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float, steps: int
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step; `closure` is not used."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((min(p.shape[-2:]), max(p.shape[-2:])), []).append(p)
            for parameters in by_shape.values():
                self._move(parameters, group)

    def _move(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters whose matrices are alike but for transposition, in one batch."""
        momentum, lr, decay = group["momentum"], group["lr"], 1 - group["lr"] * group["weight_decay"]
        updates: list[Tensor] = []
        alive: list[Tensor | None] = []
        for p in parameters:
            grad = p.grad.flatten(0, -3)  # type: ignore[union-attr]
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"].view_as(grad)
            # Only matrices of heads can be without a gradient.
            given = (grad != 0).flatten(1).any(1).view(-1, 1, 1).to(grad.dtype) if p.dim() > 3 else None
            buffer.lerp_(grad, 1 - momentum if given is None else (1 - momentum) * given)
            update = grad.lerp(buffer, momentum)
            updates.append(update.mT if p.shape[-2] > p.shape[-1] else update)
            alive.append(given)
        moves = orthogonalize(torch.cat(updates), group["steps"])
        step = RMS_OF_ADAM * lr * math.sqrt(moves.shape[2])
        for p, move, given in zip(parameters, moves.split([len(u) for u in updates]), alive, strict=True):
            matrices = p.view_as(p.grad.flatten(0, -3))  # type: ignore[union-attr]
            matrices.mul_(decay if given is None else 1 - (1 - decay) * given)
            move = move if given is None else move * given
            matrices.add_(move.mT if p.shape[-2] > p.shape[-1] else move, alpha=-step)


class JointOptimizer:
    """Several optimisers of parameters of their own that act as one.

    Attributes
    ----------
    param_groups : the groups of all.
    state : their state by parameter, one dictionary for all.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.state = parts[0].state
        for part in parts[1:]:
            part.state = self.state

    def step(self) -> None:
        """Do one step of each."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)
