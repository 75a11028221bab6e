"""A PaiNN layer for inference on a CPU: compiled steps between its matrix products, with the backward pass written out.

The mathematics is that of `atomsieve.models.painn.encoder.PaiNNLayer`; comments give equations of Schuett, Unke and
Gastegger (ICML 2021). The general path takes a dozen operations over arrays of atoms
times channels, each with its gradient, is here one pass over memory.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from atomsieve.graphs.graph import Graph
from atomsieve.models.basis import Geometry
from atomsieve.models.encoder import Wanted
from atomsieve.models.layers import StackedLinear, StackedMLP, product
from atomsieve.models.messages import message as messages
from atomsieve.models.messages.buffers import SUFFIX, call_kernel, pointer
from atomsieve.native import kernels


class LayerWeights(Protocol):
    """The parameters of a PaiNN layer, as `atomsieve.models.painn.encoder.PaiNNLayer` holds them."""

    payload: StackedMLP
    filters: nn.Parameter
    mix: StackedLinear
    update: StackedMLP


def layer_serves(s: Tensor, graph: Graph, wanted: Wanted) -> bool:
    """Return whether `layer_on_cpu` can be used: compiled kernels, a complete list, no gradients of weights."""
    learning = wanted.twice or (wanted.parameters and torch.is_grad_enabled())
    if learning or not messages.native_serves(s, graph):
        return False
    return hasattr(kernels(), "message_pull_f32")


def layer_on_cpu(
    layer: LayerWeights, s: Tensor, v: Tensor | None, graph: Graph, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Apply `layer` to scalars [K,N,F] and vectors [K,N,3,F] (None: zero); differentiable once.

    Gradients are those by s, v, and of the geometry by unit and stretch; weights get none.
    """
    found: tuple[Tensor, Tensor] = _Layer.apply(s, v, geometry.unit, geometry.stretch, geometry, graph, layer)
    return found


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        s: Tensor,
        v: Tensor | None,
        unit: Tensor,
        stretch: Tensor,
        geometry: Geometry,
        graph: Graph,
        layer: LayerWeights,
    ) -> tuple[Tensor, Tensor]:
        basis = geometry.basis.detach()
        members, atoms, width = s.shape
        s, v = s.contiguous(), None if v is None else v.contiguous()

        def array(*shape: int) -> Tensor:
            return s.new_empty(members, atoms, *shape)

        payload, slope = _mlp(layer.payload, s)
        x, received = array(5, width), array(4, width)
        _step("payload", s, payload, v, x)  # phi(s) and phi_vv(s) v of eqs. 7, 8
        call_kernel("forward", x, basis, unit, layer.filters.contiguous(), graph, received)  # sums of eqs. 7, 8
        joined, v1 = array(2 * width), array(3, width)
        _step("receive", s, received, s, v, joined, v1)  # s + eq. 7, v + eq. 8
        lr = _map(layer.mix, v1.view(members, 3 * atoms, width)).view(members, atoms, 3, 2 * width)  # U v, V v
        _step("norm", s, lr, joined)  # [s, |V v|]
        gates, slope2 = _mlp(layer.update, joined)  # a_ss, a_sv, a_vv
        s2, v2 = torch.empty_like(s), torch.empty_like(v1)
        _step("update", s, gates, lr, joined, v1, s2, v2)  # eqs. 9, 10
        ctx.graph, ctx.layer, ctx.first, ctx.geometry = graph, layer, v is None, geometry
        ctx.set_materialize_grads(False)
        own = () if v is None else (v,)
        ctx.save_for_backward(s, *own, unit, payload, slope, x, joined, lr, gates, slope2)
        return s2, v2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_s: Tensor | None, by_v: Tensor | None) -> tuple[Tensor | None, ...]:
        graph, layer = ctx.graph, ctx.layer
        s, *rest = ctx.saved_tensors
        v = None if ctx.first else rest.pop(0)
        unit, payload, slope, x, joined, lr, gates, slope2 = rest
        members, atoms, width = s.shape
        by_s = torch.zeros_like(s) if by_s is None else by_s.contiguous()
        by_v = None if by_v is None else by_v.contiguous()
        by_gates, by_lr = torch.empty_like(gates), torch.empty_like(lr)
        _step("update_back", s, by_s, by_v, gates, lr, by_gates, by_lr)  # eqs. 9, 10 transposed
        by_joined, by_s1 = _mlp_back(layer.update, by_gates, slope2), torch.empty_like(s)
        _step("norm_back", s, by_joined, joined, lr, by_s, by_lr, by_s1)
        by_mixed = _map_back(layer.mix, by_lr.view(members, 3 * atoms, 2 * width))
        by_received = s.new_empty(members, atoms, 4, width)
        _step("receive_back", s, by_s1, by_v, by_mixed, by_received)  # by the sums of eqs. 7, 8
        by_x, by_unit = torch.empty_like(x), s.new_empty(unit.shape)
        by_stretch = s.new_empty(members, graph.n_edges)
        basis, rates = ctx.geometry.basis.detach(), ctx.geometry.slope.contiguous()
        call_kernel(
            "pull", x, basis, unit, layer.filters.contiguous(), graph, rates, by_received, by_x, by_stretch, by_unit
        )
        by_payload = torch.empty_like(payload)
        by_vectors = None if v is None else by_received[:, :, 1:].contiguous()
        _step("payload_back", s, by_x, payload, v, by_payload, by_vectors)  # by phi(s) and v
        by_s1 += _mlp_back(layer.payload, by_payload, slope)
        return by_s1, by_vectors, by_unit, by_stretch, None, None, None


def _step(name: str, like: Tensor, *arrays: Tensor | None) -> None:
    """Call a compiled step over all atoms of all members; `like [K,N,F]`."""
    members, atoms, width = like.shape
    _call(name, like.dtype, (members * atoms, width), *arrays)


def _call(name: str, dtype: torch.dtype, sizes: tuple[int, ...], *arrays: Tensor | None) -> None:
    assert all(t is None or t.is_contiguous() for t in arrays)
    function = getattr(kernels(), f"painn_{name}_{SUFFIX[dtype]}")
    function(*(ctypes.c_int64(n) for n in sizes), *(pointer(t) for t in arrays))


def _map(linear: StackedLinear, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = linear(x)
    return found.contiguous()


def _map_back(linear: StackedLinear, grad: Tensor) -> Tensor:
    """Return the gradient by the input of `linear`."""
    return product(grad, linear.weight.detach().transpose(1, 2), linear.low_precision)


def _mlp(mlp: StackedMLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of an MLP for `x`, and the derivative of its nonlinearity."""
    slope = _map(mlp.first, x)
    hidden = torch.empty_like(slope)
    _call("silu", x.dtype, (slope.numel(),), slope, hidden)
    return _map(mlp.second, hidden), slope


def _mlp_back(mlp: StackedMLP, grad: Tensor, slope: Tensor) -> Tensor:
    by_hidden = _map_back(mlp.second, grad)
    _call("scale", grad.dtype, (slope.numel(),), slope, by_hidden)
    return _map_back(mlp.first, by_hidden)
