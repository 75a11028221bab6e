"""Energies of atoms of many heads for training: groups of atoms, with first and second derivatives written out.

An atom of head h has the energy e = scale_h (w_h . silu(z) + c_h), z = s W_h + b_h. A loss on forces differentiates
this twice; autograd through each head by itself takes hundreds of small operations where two dozen suffice.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atomsieve.models.encoder import Wanted
from atomsieve.models.messages.buffers import SUFFIX, pointer
from atomsieve.native import kernels


@dataclass(frozen=True)
class Groups:
    """Atoms in the order of their heads.

    Attributes
    ----------
    spans : (head, first, stop) of each head that is present; the spans follow each other.
    places : the spans, [S,3] int64.
    head : [N] int64, the head of each atom.
    scales : [H], the scale of each head.
    """

    spans: list[tuple[int, int, int]]
    places: Tensor
    head: Tensor
    scales: Tensor

    @staticmethod
    def build(head: Tensor, scales: Sequence[float], dtype: torch.dtype) -> Groups:
        """Group atoms whose heads `[N]` ascend."""
        heads, counts = torch.unique_consecutive(head, return_counts=True)
        stops = counts.cumsum(0).tolist()
        spans = list(zip(heads.tolist(), [0, *stops[:-1]], stops, strict=True))
        return Groups(spans, torch.tensor(spans), head, torch.tensor(scales, dtype=dtype, device=head.device))


def read_groups(
    s: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    groups: Groups,
    wanted: Wanted,
) -> Tensor:
    """Return the energies `[K,N]` of atoms with features `s [K,N,F]`, or `[1,N,F]` that all members share.

    weight : [K,H,F,D]; bias : [K,H,1,D]; out_weight : [K,H,D,1]; out_bias : [K,H,1,1].
    Differentiable twice, by everything but the scales; `wanted` tells which gradients the next backward pass needs.
    """
    z = _Hidden.apply(s, weight, bias, groups, wanted)
    energy: Tensor = _Energy.apply(z, out_weight, out_bias, groups, wanted)
    return energy


def _multiply(
    x: Tensor, matrices: Tensor, groups: Groups, bias: Tensor | None = None, transposed: bool = False
) -> Tensor:
    """Return `[K,N,B]`: x `[K or 1,N,A]` times the matrix of each atom's head, `[K,H,A,B]`.

    bias : [K,H,1,B], added; of what is not transposed.
    transposed : x is `[K or 1,N,B]` and the result `[K,N,A]`.
    """
    members, heads, *shape = matrices.shape
    if _serves(x, shape):
        out = x.new_empty(members, x.shape[1], shape[0] if transposed else shape[1])
        x, step = _contiguous(x)
        matrices, bias = matrices.contiguous(), None if bias is None else bias.contiguous()
        sizes = members, x.shape[1], *shape, heads, len(groups.spans), int(transposed), step
        _call("multiply", x, sizes, groups.places, x, matrices, bias, out)
        return out
    x, matrices = x.expand(members, -1, -1), matrices.mT if transposed else matrices
    parts = [torch.bmm(x[:, first:stop], matrices[:, head]) for head, first, stop in groups.spans]
    product = torch.cat(parts, 1)
    return product if bias is None else product + bias.squeeze(2).index_select(1, groups.head)


def _outer(x: Tensor, y: Tensor, groups: Groups, heads: int) -> Tensor:
    """Return `[K,H,A,B]`: for each head the sum over its atoms of x `[K or 1,N,A]` times y `[K,N,B]`."""
    members, atoms, width = y.shape
    if _serves(x, (width,)):
        (x, step), y = _contiguous(x), y.contiguous()
        out = y.new_empty(members, heads, x.shape[2], width)
        sizes = members, atoms, x.shape[2], width, heads, len(groups.spans), step
        _call("outer", x, sizes, groups.places, x, y, out)
        return out
    x = x.expand(members, -1, -1)
    out = y.new_zeros(members, heads, x.shape[2], width)
    for head, first, stop in groups.spans:
        out[:, head] = torch.bmm(x[:, first:stop].mT, y[:, first:stop])
    return out


def _serves(x: Tensor, widths: Sequence[int]) -> bool:
    """Return whether the compiled products (`native/readout.cpp`) take these widths: pairs of registers."""
    if x.device.type != "cpu" or x.dtype not in SUFFIX or any(width % 32 for width in widths):
        return False
    return kernels() is not None and hasattr(kernels(), "readout_multiply_f32")


def _contiguous(x: Tensor) -> tuple[Tensor, int]:
    """Return x `[K or 1,N,A]` as kernels take it, and its step from member to member, 0 where they share it."""
    x = x.contiguous()
    return x, x.stride(0) if x.shape[0] > 1 else 0


def _call(name: str, like: Tensor, sizes: Sequence[int], *arrays: Tensor | None) -> None:
    function = getattr(kernels(), f"readout_{name}_{SUFFIX[like.dtype]}")
    function(*(ctypes.c_int64(n) for n in sizes), *(pointer(t) for t in arrays))


class _Hidden(torch.autograd.Function):
    """z = s W_h + b_h."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, bias: Tensor, groups: Groups, wanted: Wanted) -> Tensor:
        ctx.groups, ctx.wanted = groups, wanted
        ctx.save_for_backward(s, weight)
        return _multiply(s, weight, groups, bias)

    @staticmethod
    def backward(ctx: Any, by_z: Tensor) -> tuple[Tensor | None, ...]:
        s, weight = ctx.saved_tensors
        by_s = _HiddenBack.apply(by_z, weight, ctx.groups, s.shape[0]) if ctx.needs_input_grad[0] else None
        if not ctx.wanted.parameters:
            return by_s, None, None, None, None
        by_z = by_z.detach()
        by_weight = _outer(s.detach(), by_z, ctx.groups, weight.shape[1])
        by_bias = _outer(torch.ones_like(by_z[:1, :, :1]), by_z, ctx.groups, weight.shape[1])
        return by_s, by_weight, by_bias, None, None


class _HiddenBack(torch.autograd.Function):
    """The gradient by s of z: g W_h^T, summed over members that share s."""

    @staticmethod
    def forward(ctx: Any, by_z: Tensor, weight: Tensor, groups: Groups, encoders: int) -> Tensor:
        ctx.groups = groups
        ctx.save_for_backward(by_z, weight)
        by_s = _multiply(by_z, weight, groups, transposed=True)
        return by_s if encoders == len(by_s) else by_s.sum(0, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        by_z, weight = ctx.saved_tensors
        return _multiply(u, weight, ctx.groups), _outer(u, by_z, ctx.groups, weight.shape[1]), None, None


class _Energy(torch.autograd.Function):
    """e = scale_h (w_h . silu(z) + c_h)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, out_weight: Tensor, out_bias: Tensor, groups: Groups, wanted: Wanted) -> Tensor:
        ctx.groups, ctx.wanted = groups, wanted
        ctx.save_for_backward(z, out_weight)
        if _serves(z, z.shape[2:]):
            e = z.new_empty(z.shape[:2])
            _call_energy("energy", z, out_weight, groups, out_bias.contiguous(), e)
            return e
        bias = (out_bias.view(out_bias.shape[:2]) * groups.scales).index_select(1, groups.head)
        return torch.linalg.vecdot(torch.nn.functional.silu(z), _slopes(out_weight, groups)) + bias

    @staticmethod
    def backward(ctx: Any, by_e: Tensor) -> tuple[Tensor | None, ...]:
        z, out_weight = ctx.saved_tensors
        by_z = _EnergyBack.apply(by_e, z, out_weight, ctx.groups)
        if not ctx.wanted.parameters:
            return by_z, None, None, None, None
        groups, heads, z = ctx.groups, out_weight.shape[1], z.detach()
        amount = (by_e.detach() * groups.scales.index_select(0, groups.head)).unsqueeze(2)
        if _serves(z, z.shape[2:]):
            by_weight = torch.empty_like(out_weight)
            _call_energy("energy_weights", z, out_weight, groups, by_e.detach().contiguous(), by_weight)
        else:
            by_weight = _outer(amount, torch.nn.functional.silu(z), groups, heads).mT
        by_bias = amount.new_zeros(len(out_weight), heads, 1).index_add(1, groups.head, amount).unsqueeze(3)
        return by_z, by_weight, by_bias, None, None


class _EnergyBack(torch.autograd.Function):
    """The gradient by z of e: g scale_h w_h silu'(z)."""

    @staticmethod
    def forward(ctx: Any, by_e: Tensor, z: Tensor, out_weight: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        ctx.save_for_backward(by_e, z, out_weight)
        if _serves(z, z.shape[2:]):
            by_z = torch.empty_like(z)
            _call_energy("energy_back", z, out_weight, groups, by_e.contiguous(), by_z)
            return by_z
        sigma = torch.sigmoid(z)
        return by_e.unsqueeze(2) * _slopes(out_weight, groups) * (sigma * (1 + z * (1 - sigma)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        by_e, z, out_weight = ctx.saved_tensors
        groups = ctx.groups
        if _serves(z, z.shape[2:]):
            by_by_e, by_z, by_weight = z.new_empty(z.shape[:2]), torch.empty_like(z), torch.empty_like(out_weight)
            given = by_e.contiguous(), u.contiguous()
            _call_energy("energy_twice", z, out_weight, groups, *given, by_by_e, by_z, by_weight)
            return by_by_e, by_z, by_weight, None
        slopes, sigma = _slopes(out_weight, groups), torch.sigmoid(z)
        first = sigma * (1 + z * (1 - sigma))  # silu'
        second = sigma * (1 - sigma) * (2 + z * (1 - 2 * sigma))  # silu''
        along = u * slopes
        by_by_e = torch.linalg.vecdot(along, first)
        amount = (by_e * groups.scales.index_select(0, groups.head)).unsqueeze(2)
        by_weight = _outer(amount, u * first, groups, out_weight.shape[1]).mT
        return by_by_e, along * second * by_e.unsqueeze(2), by_weight, None


def _slopes(out_weight: Tensor, groups: Groups) -> Tensor:
    """Return scale_h w_h of each atom, `[K,N,D]`."""
    return (out_weight.squeeze(3) * groups.scales.view(1, -1, 1)).index_select(1, groups.head)


def _call_energy(name: str, z: Tensor, out_weight: Tensor, groups: Groups, *arrays: Tensor) -> None:
    """Call a compiled step over the hidden units z `[K,N,D]`, contiguous, of all atoms."""
    members, heads = out_weight.shape[:2]
    sizes = members, *z.shape[1:], heads, len(groups.spans)
    _call(name, z, sizes, groups.places, groups.scales, z, out_weight.contiguous(), *arrays)
