"""The heads of HydraGNN's model as batched products, with the gradient of their mixture by the pooled features."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from atomsieve.errors import AtomSieveError
from atomsieve.models.hydragnn.fast.weights import is_head

CHUNK = 256
"""Structures whose hidden layers are held at a time."""
_NAMES = (
    re.compile(r"graph_shared\.branch-(\d+)\.(\d+)\.(weight|bias)"),
    re.compile(r"heads_NN\.0\.branch-(\d+)\.(\d+)\.(weight|bias)"),
)


class _Stage(NamedTuple):
    weight: Tensor
    """[B,out,in]"""
    bias: Tensor
    """[B,1,out]"""


class FastHeads:
    """All heads of a state dict: multilayer perceptrons with ReLU between maps, one energy each; never in BF16."""

    def __init__(self, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        stacked = [stage for pattern in _NAMES for stage in _stack(state, pattern, dtype)]
        self.stages = [_Stage(*(part.to(device) for part in stage)) for stage in stacked]
        known = sum(2 * len(stage.weight) for stage in self.stages)
        if known != sum(map(is_head, state)) or not self.stages or self.stages[-1].weight.shape[1] != 1:
            raise AtomSieveError(
                "the heads of the state dict are not what the fast path knows: graph_shared.branch-i and "
                "heads_NN.0.branch-i, of the same shape for every branch, one output"
            )
        self.count = len(self.stages[0].weight)

    def __call__(
        self, features: Tensor, mix: Tensor, gradients: bool, branch: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return energies `[S,B]` in float64 and the gradient `[S,F]` of their sum weighted by `mix [S,B]`.

        branch : evaluate this head alone, the only one that has weight; energies of the others are zero.
        """
        own = slice(None) if branch is None else slice(branch, branch + 1)
        stages = [_Stage(stage.weight[own], stage.bias[own]) for stage in self.stages]
        energies = torch.zeros(len(features), self.count, dtype=torch.float64, device=features.device)
        grad = torch.empty_like(features) if gradients else None
        for k in range(0, len(features), CHUNK):
            rows = slice(k, k + CHUNK)
            weights = mix[rows, own].to(self.dtype) if gradients else None
            energies[rows, own], found = self._chunk(stages, features[rows], weights)
            if grad is not None and found is not None:
                grad[rows] = found
        return energies, grad

    def _chunk(self, stages: list[_Stage], features: Tensor, mix: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = features.unsqueeze(0).expand(len(stages[0].weight), -1, -1)
        hidden: list[Tensor] = []
        for stage in stages[:-1]:
            x = torch.bmm(x, stage.weight.transpose(1, 2)).add_(stage.bias).relu_()
            hidden.append(x)
        end = stages[-1]
        energy = torch.bmm(x, end.weight.transpose(1, 2)).add_(end.bias).squeeze(2).t()
        if mix is None:
            return energy, None
        g = mix.t().unsqueeze(2) * end.weight
        for stage, after in zip(reversed(stages[:-1]), reversed(hidden), strict=True):
            g = torch.bmm(torch.where(after > 0, g, 0), stage.weight)
        return energy, g.sum(0)


def _stack(state: Mapping[str, Tensor], pattern: re.Pattern[str], dtype: torch.dtype) -> list[_Stage]:
    """Return the maps of one part of the heads in their order, all branches of each stacked."""
    found: dict[int, dict[tuple[int, str], Tensor]] = {}
    for name, value in state.items():
        if match := pattern.fullmatch(name):
            branch, place, kind = match.groups()
            found.setdefault(int(place), {})[int(branch), kind] = value.detach().to("cpu", torch.float64)
    stages = []
    for _, entries in sorted(found.items()):
        branches = range(max(branch for branch, _ in entries) + 1)
        try:
            weight = torch.stack([entries[b, "weight"] for b in branches])
            bias = torch.stack([entries[b, "bias"] for b in branches]).unsqueeze(1)
        except (KeyError, RuntimeError) as error:
            raise AtomSieveError(f"branches of the state dict differ in their layers: {error}") from error
        stages.append(_Stage(weight.to(dtype), bias.to(dtype)))
    return stages
