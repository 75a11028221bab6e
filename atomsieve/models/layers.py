"""Layers of a stack of members: every parameter has a leading member axis, and every member its own seed."""

from __future__ import annotations

import functools
import math
import platform
from typing import TypeVar

import torch
from torch import Tensor, nn

from atomsieve.models.precision import check_precision

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Seeds:
    """One random stream per member, so that a member's weights do not depend on how many others there are."""

    def __init__(self, seeds: list[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def first(self) -> Seeds:
        """Return the stream of the first member alone; drawing from it moves it on here too."""
        alone = Seeds([])
        alone.generators = self.generators[:1]
        return alone

    def uniform(self, *shape: int, bound: float) -> nn.Parameter:
        """Return a parameter [K, *shape], uniform in (-bound, bound)."""
        draws = [(torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1) * bound for g in self.generators]
        return nn.Parameter(torch.stack(draws).float())

    def zeros(self, *shape: int) -> nn.Parameter:
        """Return a parameter [K, *shape] of zeros."""
        return nn.Parameter(torch.zeros(len(self), *shape))


@functools.cache
def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies matrices faster in BF16 than in FP32.

    Of x86 processors only those with AMX tiles count. The others multiply in BF16 slowly if at all: AVX-512's dot
    product of BF16 pairs reaches half the rate of FP32 on Intel's.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return platform.machine().lower() not in ("x86_64", "amd64") or torch.cpu._is_amx_tile_supported()


def product(x: Tensor, weight: Tensor, low_precision: bool = False) -> Tensor:
    """Multiply `x [K,M,F]` by `weight [K,F,G]`; factors are rounded to BF16 if `low_precision`.

    They are multiplied in BF16 where the device can, else in x's dtype. The result has x's dtype.
    """
    if not low_precision:
        return torch.bmm(x, weight)
    if multiplies_bf16(x.device):
        return torch.bmm(x.bfloat16(), weight.bfloat16()).to(x.dtype)
    return torch.bmm(x.bfloat16().to(x.dtype), weight.bfloat16().to(x.dtype))


class StackedLinear(nn.Module):
    """K linear maps of `[K,M,inputs]` to `[K,M,outputs]` (Glorot-uniform weights, zero bias)."""

    def __init__(self, inputs: int, outputs: int, seeds: Seeds, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = seeds.uniform(inputs, outputs, bound=math.sqrt(6.0 / (inputs + outputs)))
        self.bias = seeds.zeros(outputs) if bias else None
        self.low_precision = False

    def forward(self, x: Tensor) -> Tensor:
        """Apply member k's map to x[k]."""
        if self.bias is None:
            return product(x, self.weight, self.low_precision)
        if self.low_precision:
            return product(x, self.weight, True) + self.bias.unsqueeze(1)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight)


class StackedMLP(nn.Module):
    """Linear, SiLU, linear, for each member."""

    def __init__(self, inputs: int, hidden: int, outputs: int, seeds: Seeds) -> None:
        super().__init__()
        self.first = StackedLinear(inputs, hidden, seeds)
        self.second = StackedLinear(hidden, outputs, seeds)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K,M,inputs]` to `[K,M,outputs]`."""
        return self.second(torch.nn.functional.silu(self.first(x)))


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of parameters, features and edges."""
    return torch.float64 if precision == "fp64" else torch.float32


def set_precision(module: AnyModule, precision: str) -> AnyModule:
    """Cast a module for fp64, fp32 or bf16 work and return it.

    bf16 means: parameters and everything else in FP32, and only matrix products in BF16.
    """
    check_precision(precision)
    module.to(dtype_of(precision))
    for layer in module.modules():
        if isinstance(layer, StackedLinear):
            layer.low_precision = precision == "bf16"
    return module
