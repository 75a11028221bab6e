"""The PaiNN message as fused GPU kernels (Triton): `atomsieve.models.messages.message` has the formulas.

Comments give equations of Schuett, Unke and Gastegger (ICML 2021).

One program serves one atom of one member and walks over its edges, so nothing as large as edges times channels is
stored, nothing is added atomically, and the order of every sum is fixed. The analytic backward has two kernels: one
over receivers gives the gradients of each edge's basis and direction, one over senders that of the payload.

With TRITON_INTERPRET=1 the same kernels run on the CPU, slowly: that is how they are tested.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from atomsieve.graphs.graph import Graph
from atomsieve.models.messages.buffers import edge_data


@triton.jit
def _filters(basis, weights, e, r, rows, f, lanes, F: tl.constexpr, R: tl.constexpr):
    """Return the three filters [F] of edge e: its basis [R] times weights [R,3F], which stay in registers or cache."""
    b = tl.load(basis + e * R + r, mask=rows, other=0.0)[:, None]
    place = weights + r[:, None] * (3 * F) + f[None, :]
    tile = rows[:, None] & lanes[None, :]
    w_s = tl.sum(b * tl.load(place, mask=tile, other=0.0), axis=0)
    w_a = tl.sum(b * tl.load(place + F, mask=tile, other=0.0), axis=0)
    w_b = tl.sum(b * tl.load(place + 2 * F, mask=tile, other=0.0), axis=0)
    return w_s, w_a, w_b


@triton.jit
def _forward(
    x,
    basis,
    unit,
    weights,
    sender,
    row_ptr,
    out,
    basis_stride,
    unit_stride,
    atoms,
    F: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    i, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    f, r = tl.arange(0, LANES), tl.arange(0, ROWS)
    lanes, rows = f < F, r < R
    x += k * atoms * 5 * F
    basis, unit, weights = basis + k * basis_stride, unit + k * unit_stride, weights + k * R * 3 * F
    s = tl.zeros([LANES], x.dtype.element_ty)
    v_x = tl.zeros([LANES], x.dtype.element_ty)
    v_y = tl.zeros([LANES], x.dtype.element_ty)
    v_z = tl.zeros([LANES], x.dtype.element_ty)
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        w_s, w_a, w_b = _filters(basis, weights, e, r, rows, f, lanes, F, R)
        sent = x + tl.load(sender + e) * 5 * F + f
        pushed = w_b * tl.load(sent + F, mask=lanes, other=0.0)
        s += w_s * tl.load(sent, mask=lanes, other=0.0)  # eq. 7
        v_x += w_a * tl.load(sent + 2 * F, mask=lanes, other=0.0) + pushed * tl.load(unit + e * 3)  # eq. 8
        v_y += w_a * tl.load(sent + 3 * F, mask=lanes, other=0.0) + pushed * tl.load(unit + e * 3 + 1)
        v_z += w_a * tl.load(sent + 4 * F, mask=lanes, other=0.0) + pushed * tl.load(unit + e * 3 + 2)
    here = out + (k * atoms + i) * 4 * F + f
    tl.store(here, s, mask=lanes)
    tl.store(here + F, v_x, mask=lanes)
    tl.store(here + 2 * F, v_y, mask=lanes)
    tl.store(here + 3 * F, v_z, mask=lanes)


@triton.jit
def _edge_gradients(
    grad,
    x,
    basis,
    unit,
    weights,
    sender,
    row_ptr,
    grad_basis,
    grad_unit,
    basis_stride,
    unit_stride,
    atoms,
    edges,
    F: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    i, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    f, r = tl.arange(0, LANES), tl.arange(0, ROWS)
    lanes, rows = f < F, r < R
    x += k * atoms * 5 * F
    basis, unit, weights = basis + k * basis_stride, unit + k * unit_stride, weights + k * R * 3 * F
    here = grad + (k * atoms + i) * 4 * F + f
    g_s = tl.load(here, mask=lanes, other=0.0)
    g_x = tl.load(here + F, mask=lanes, other=0.0)
    g_y = tl.load(here + 2 * F, mask=lanes, other=0.0)
    g_z = tl.load(here + 3 * F, mask=lanes, other=0.0)
    place = weights + r[:, None] * (3 * F) + f[None, :]
    tile = rows[:, None] & lanes[None, :]
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        _, _, w_b = _filters(basis, weights, e, r, rows, f, lanes, F, R)
        sent = x + tl.load(sender + e) * 5 * F + f
        p_b = tl.load(sent + F, mask=lanes, other=0.0)
        u_x, u_y, u_z = tl.load(unit + e * 3), tl.load(unit + e * 3 + 1), tl.load(unit + e * 3 + 2)
        of_s = g_s * tl.load(sent, mask=lanes, other=0.0)  # eq. 7 by w_s
        of_a = g_x * tl.load(sent + 2 * F, mask=lanes, other=0.0)  # eq. 8 by w_a
        of_a += g_y * tl.load(sent + 3 * F, mask=lanes, other=0.0)
        of_a += g_z * tl.load(sent + 4 * F, mask=lanes, other=0.0)
        of_b = (g_x * u_x + g_y * u_y + g_z * u_z) * p_b  # eq. 8 by w_b
        found = tl.sum(tl.load(place, mask=tile, other=0.0) * of_s[None, :], axis=1)
        found += tl.sum(tl.load(place + F, mask=tile, other=0.0) * of_a[None, :], axis=1)
        found += tl.sum(tl.load(place + 2 * F, mask=tile, other=0.0) * of_b[None, :], axis=1)
        tl.store(grad_basis + (k * edges + e) * R + r, found, mask=rows)
        pushed = w_b * p_b  # eq. 8 by the direction
        turned = grad_unit + (k * edges + e) * 3
        tl.store(turned, tl.sum(g_x * pushed, axis=0))
        tl.store(turned + 1, tl.sum(g_y * pushed, axis=0))
        tl.store(turned + 2, tl.sum(g_z * pushed, axis=0))


@triton.jit
def _payload_gradients(
    grad,
    basis,
    unit,
    weights,
    far,
    edge,
    col_ptr,
    grad_x,
    basis_stride,
    unit_stride,
    atoms,
    F: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    MIRRORED: tl.constexpr,
):
    j, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    f, r = tl.arange(0, LANES), tl.arange(0, ROWS)
    lanes, rows = f < F, r < R
    basis, unit, weights = basis + k * basis_stride, unit + k * unit_stride, weights + k * R * 3 * F
    grad += k * atoms * 4 * F
    of_s = tl.zeros([LANES], grad.dtype.element_ty)
    of_b = tl.zeros([LANES], grad.dtype.element_ty)
    of_x = tl.zeros([LANES], grad.dtype.element_ty)
    of_y = tl.zeros([LANES], grad.dtype.element_ty)
    of_z = tl.zeros([LANES], grad.dtype.element_ty)
    for n in range(tl.load(col_ptr + j), tl.load(col_ptr + j + 1)):
        e = n if MIRRORED else tl.load(edge + n)
        w_s, w_a, w_b = _filters(basis, weights, e, r, rows, f, lanes, F, R)
        there = grad + tl.load(far + n) * 4 * F + f
        g_x = tl.load(there + F, mask=lanes, other=0.0)
        g_y = tl.load(there + 2 * F, mask=lanes, other=0.0)
        g_z = tl.load(there + 3 * F, mask=lanes, other=0.0)
        along = g_x * tl.load(unit + e * 3) + g_y * tl.load(unit + e * 3 + 1) + g_z * tl.load(unit + e * 3 + 2)
        of_s += w_s * tl.load(there, mask=lanes, other=0.0)  # eq. 7 by p_s
        of_b += -(w_b * along) if MIRRORED else w_b * along  # the reverse of an edge points the other way
        of_x += w_a * g_x  # eq. 8 by q
        of_y += w_a * g_y
        of_z += w_a * g_z
    here = grad_x + (k * atoms + j) * 5 * F + f
    tl.store(here, of_s, mask=lanes)
    tl.store(here + F, of_b, mask=lanes)
    tl.store(here + 2 * F, of_x, mask=lanes)
    tl.store(here + 3 * F, of_y, mask=lanes)
    tl.store(here + 4 * F, of_z, mask=lanes)


def message_on_gpu(x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph) -> Tensor:
    """Compute the message with fused kernels; any list. Differentiable once, by x, basis and unit.

    On a complete list the payload's gradient uses that an edge and its reverse have the same basis and opposite
    directions; on a truncated one the edges are sorted by sender first.
    """
    out: Tensor = _Fused.apply(x, basis, unit, weights, graph)
    return out


def _sizes(x: Tensor, basis: Tensor) -> dict[str, int]:
    width, radial = x.shape[-1], basis.shape[-1]
    lanes, rows = triton.next_power_of_2(width), max(triton.next_power_of_2(radial), 2)
    return {"F": width, "R": radial, "LANES": lanes, "ROWS": rows}


def _by_sender(graph: Graph) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return, of edges grouped by sender: far atom [E], edge [E], pointer [N+1], and whether mirrored ones serve."""
    found = graph.neighbors
    if found.symmetric:
        return found.sender, found.sender, found.row_ptr, True
    edge = torch.argsort(found.sender, stable=True)
    col_ptr = torch.zeros_like(found.row_ptr)
    torch.cumsum(torch.bincount(found.sender, minlength=graph.n_atoms), 0, out=col_ptr[1:])
    return found.receiver[edge], edge, col_ptr, False


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        x, weights = x.contiguous(), weights.contiguous()
        (basis, b_stride), (unit, u_stride) = edge_data(basis), edge_data(unit)
        ctx.save_for_backward(x, basis, unit, weights)
        ctx.graph, ctx.strides = graph, (b_stride, u_stride)
        members, atoms, _, width = x.shape
        out = x.new_empty(members, atoms, 4, width)
        if atoms:
            list_, sizes = graph.neighbors, _sizes(x, basis)
            with torch.cuda.device_of(x):  # Triton launches on the current device
                _forward[(atoms, members)](
                    x, basis, unit, weights, list_.sender, list_.row_ptr, out, b_stride, u_stride, atoms, **sizes
                )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[3]:
            raise RuntimeError("the fused message gives no gradients of weights; train with implementation='edges'")
        x, basis, unit, weights = ctx.saved_tensors
        graph, strides = ctx.graph, ctx.strides
        grad = grad.contiguous()
        members, atoms = x.shape[:2]
        grad_x, list_ = torch.empty_like(x), graph.neighbors
        grad_basis, grad_unit = (torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in (basis, unit))
        if atoms:
            sizes = _sizes(x, basis)
            far, edge, col_ptr, mirrored = _by_sender(graph)
            with torch.cuda.device_of(x):
                _edge_gradients[(atoms, members)](
                    grad,
                    x,
                    basis,
                    unit,
                    weights,
                    list_.sender,
                    list_.row_ptr,
                    grad_basis,
                    grad_unit,
                    *strides,
                    atoms,
                    graph.n_edges,
                    **sizes,
                )
                _payload_gradients[(atoms, members)](
                    grad, basis, unit, weights, far, edge, col_ptr, grad_x, *strides, atoms, **sizes, MIRRORED=mirrored
                )
        return grad_x, grad_basis, grad_unit, None, None
