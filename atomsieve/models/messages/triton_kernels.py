"""Messages as fused GPU kernels (Triton): `atomsieve.models.messages.message` has the formulas.

One program serves one atom of one member and walks over its edges, so nothing as large as edges times channels is
stored, nothing is added atomically, and the order of every sum is fixed. The analytic backward has two kernels: one
over receivers gives the gradients of each edge's basis and direction, one over senders that of the payload.

The groups of a layout are constants of the compiled kernels; a group that a layout lacks leaves no code. The components
of one order are the rows of a tile, of a height that is a power of 2. "eq." numbers are those of PaiNN (Schuett, Unke
and Gastegger, ICML 2021).

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
from atomsieve.models.messages.layout import PAINN, Layout
from atomsieve.models.messages.tensors import pull_second_order, second_order


@triton.jit
def _filter(b, place, tile, column: tl.constexpr, F: tl.constexpr):
    """Return one filter [F] of an edge: its basis [R,1] times weights [R,F], which stay in registers or cache."""
    return tl.sum(b * tl.load(place + column * F, mask=tile, other=0.0), axis=0)


@triton.jit
def _receive(
    total,
    b,
    place,
    tile,
    sent,
    along,
    f,
    lanes,
    F: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CARRIED: tl.constexpr,
    PUSHED: tl.constexpr,
    W_C: tl.constexpr,
    W_P: tl.constexpr,
    X_C: tl.constexpr,
    X_P: tl.constexpr,
):
    """Add to the total [ROWS,F] of one order what an edge brings: eq. 7 for order 0, eq. 8 for order 1."""
    c = tl.arange(0, ROWS)
    if CARRIED:
        w = _filter(b, place, tile, W_C, F)
        inside = (c < D)[:, None] & lanes[None, :]
        total += w[None, :] * tl.load(sent + (X_C + c)[:, None] * F + f[None, :], mask=inside, other=0.0)
    if PUSHED:
        pushed = _filter(b, place, tile, W_P, F) * tl.load(sent + X_P * F + f, mask=lanes, other=0.0)
        total += pushed[None, :] * tl.load(along + c, mask=c < D, other=0.0)[:, None]
    return total


@triton.jit
def _forward(
    x,
    basis,
    unit,
    second,
    weights,
    sender,
    row_ptr,
    out,
    basis_stride,
    unit_stride,
    second_stride,
    atoms,
    F: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    RADIAL: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    P1: tl.constexpr,
    C2: tl.constexpr,
    P2: tl.constexpr,
    X_P1: tl.constexpr,
    X_P2: tl.constexpr,
    X_C1: tl.constexpr,
    X_C2: tl.constexpr,
    W_C1: tl.constexpr,
    W_P1: tl.constexpr,
    W_C2: tl.constexpr,
    W_P2: tl.constexpr,
    Y_1: tl.constexpr,
    Y_2: tl.constexpr,
    X: tl.constexpr,
    W: tl.constexpr,
    Y: tl.constexpr,
):
    i, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    f, r = tl.arange(0, LANES), tl.arange(0, RADIAL)
    lanes, rows = f < F, r < R
    x += k * atoms * X * F
    basis, unit, second = basis + k * basis_stride, unit + k * unit_stride, second + k * second_stride
    place = weights + k * R * W * F + r[:, None] * (W * F) + f[None, :]
    tile = rows[:, None] & lanes[None, :]
    y0 = tl.zeros([1, LANES], x.dtype.element_ty)
    y1 = tl.zeros([4, LANES], x.dtype.element_ty)
    y2 = tl.zeros([8, LANES], x.dtype.element_ty)
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        b = tl.load(basis + e * R + r, mask=rows, other=0.0)[:, None]
        sent = x + tl.load(sender + e) * X * F
        if C0:
            y0 = _receive(y0, b, place, tile, sent, unit, f, lanes, F, 1, 1, True, False, 0, 0, 0, 0)
        if C1 or P1:
            u = unit + e * 3
            y1 = _receive(y1, b, place, tile, sent, u, f, lanes, F, 3, 4, C1, P1, W_C1, W_P1, X_C1, X_P1)
        if C2 or P2:
            u = second + e * 5
            y2 = _receive(y2, b, place, tile, sent, u, f, lanes, F, 5, 8, C2, P2, W_C2, W_P2, X_C2, X_P2)
    here = out + (k * atoms + i) * Y * F + f[None, :]
    if C0:
        tl.store(here, y0, mask=lanes[None, :])
    if C1 or P1:
        c = tl.arange(0, 4)[:, None]
        tl.store(here + (Y_1 + c) * F, y1, mask=(c < 3) & lanes[None, :])
    if C2 or P2:
        c = tl.arange(0, 8)[:, None]
        tl.store(here + (Y_2 + c) * F, y2, mask=(c < 5) & lanes[None, :])


@triton.jit
def _of_edge(
    found,
    g,
    b,
    place,
    tile,
    sent,
    along,
    turned,
    f,
    lanes,
    F: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CARRIED: tl.constexpr,
    PUSHED: tl.constexpr,
    W_C: tl.constexpr,
    W_P: tl.constexpr,
    X_C: tl.constexpr,
    X_P: tl.constexpr,
):
    """Add to the gradient [R] by the basis that of one order, and store that by the direction `Y_l` at `turned`."""
    c = tl.arange(0, ROWS)
    if CARRIED:
        inside = (c < D)[:, None] & lanes[None, :]
        p = tl.load(sent + (X_C + c)[:, None] * F + f[None, :], mask=inside, other=0.0)
        by_filter = tl.sum(g * p, axis=0)  # eqs. 7 and 8 by w_s and w_a
        found += tl.sum(tl.load(place + W_C * F, mask=tile, other=0.0) * by_filter[None, :], axis=1)
    if PUSHED:
        p = tl.load(sent + X_P * F + f, mask=lanes, other=0.0)
        y = tl.load(along + c, mask=c < D, other=0.0)
        by_filter = tl.sum(g * y[:, None], axis=0) * p  # eq. 8 by w_b
        w_b = tl.load(place + W_P * F, mask=tile, other=0.0)
        found += tl.sum(w_b * by_filter[None, :], axis=1)
        pushed = tl.sum(b * w_b, axis=0) * p
        tl.store(turned + c, tl.sum(g * pushed[None, :], axis=1), mask=c < D)  # eq. 8 by the direction
    return found


@triton.jit
def _edge_gradients(
    grad,
    x,
    basis,
    unit,
    second,
    weights,
    sender,
    row_ptr,
    grad_basis,
    grad_unit,
    grad_second,
    basis_stride,
    unit_stride,
    second_stride,
    atoms,
    edges,
    F: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    RADIAL: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    P1: tl.constexpr,
    C2: tl.constexpr,
    P2: tl.constexpr,
    X_P1: tl.constexpr,
    X_P2: tl.constexpr,
    X_C1: tl.constexpr,
    X_C2: tl.constexpr,
    W_C1: tl.constexpr,
    W_P1: tl.constexpr,
    W_C2: tl.constexpr,
    W_P2: tl.constexpr,
    Y_1: tl.constexpr,
    Y_2: tl.constexpr,
    X: tl.constexpr,
    W: tl.constexpr,
    Y: tl.constexpr,
):
    i, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    f, r = tl.arange(0, LANES), tl.arange(0, RADIAL)
    lanes, rows = f < F, r < R
    x += k * atoms * X * F
    basis, unit, second = basis + k * basis_stride, unit + k * unit_stride, second + k * second_stride
    place = weights + k * R * W * F + r[:, None] * (W * F) + f[None, :]
    tile = rows[:, None] & lanes[None, :]
    here = grad + (k * atoms + i) * Y * F + f[None, :]
    c1, c2 = tl.arange(0, 4)[:, None], tl.arange(0, 8)[:, None]
    if C0:
        g0 = tl.load(here, mask=lanes[None, :], other=0.0)
    if C1 or P1:
        g1 = tl.load(here + (Y_1 + c1) * F, mask=(c1 < 3) & lanes[None, :], other=0.0)
    if C2 or P2:
        g2 = tl.load(here + (Y_2 + c2) * F, mask=(c2 < 5) & lanes[None, :], other=0.0)
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        b = tl.load(basis + e * R + r, mask=rows, other=0.0)[:, None]
        sent = x + tl.load(sender + e) * X * F
        row = k * edges + e
        found = tl.zeros([RADIAL], x.dtype.element_ty)
        if C0:
            found = _of_edge(found, g0, b, place, tile, sent, unit, unit, f, lanes, F, 1, 1, True, False, 0, 0, 0, 0)
        if C1 or P1:
            u, t = unit + e * 3, grad_unit + row * 3
            found = _of_edge(found, g1, b, place, tile, sent, u, t, f, lanes, F, 3, 4, C1, P1, W_C1, W_P1, X_C1, X_P1)
        if C2 or P2:
            u, t = second + e * 5, grad_second + row * 5
            found = _of_edge(found, g2, b, place, tile, sent, u, t, f, lanes, F, 5, 8, C2, P2, W_C2, W_P2, X_C2, X_P2)
        tl.store(grad_basis + row * R + r, found, mask=rows)


@triton.jit
def _payload_gradients(
    grad,
    basis,
    unit,
    second,
    weights,
    far,
    edge,
    col_ptr,
    grad_x,
    basis_stride,
    unit_stride,
    second_stride,
    atoms,
    F: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    RADIAL: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    P1: tl.constexpr,
    C2: tl.constexpr,
    P2: tl.constexpr,
    X_P1: tl.constexpr,
    X_P2: tl.constexpr,
    X_C1: tl.constexpr,
    X_C2: tl.constexpr,
    W_C1: tl.constexpr,
    W_P1: tl.constexpr,
    W_C2: tl.constexpr,
    W_P2: tl.constexpr,
    Y_1: tl.constexpr,
    Y_2: tl.constexpr,
    X: tl.constexpr,
    W: tl.constexpr,
    Y: tl.constexpr,
    MIRRORED: tl.constexpr,
):
    j, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    f, r = tl.arange(0, LANES), tl.arange(0, RADIAL)
    lanes, rows = f < F, r < R
    basis, unit, second = basis + k * basis_stride, unit + k * unit_stride, second + k * second_stride
    place = weights + k * R * W * F + r[:, None] * (W * F) + f[None, :]
    tile = rows[:, None] & lanes[None, :]
    grad += k * atoms * Y * F
    of_c0 = tl.zeros([1, LANES], grad.dtype.element_ty)
    of_p1 = tl.zeros([LANES], grad.dtype.element_ty)
    of_p2 = tl.zeros([LANES], grad.dtype.element_ty)
    of_c1 = tl.zeros([4, LANES], grad.dtype.element_ty)
    of_c2 = tl.zeros([8, LANES], grad.dtype.element_ty)
    l1, l2 = tl.arange(0, 4), tl.arange(0, 8)
    c1, c2 = l1[:, None], l2[:, None]
    for n in range(tl.load(col_ptr + j), tl.load(col_ptr + j + 1)):
        e = n if MIRRORED else tl.load(edge + n)
        b = tl.load(basis + e * R + r, mask=rows, other=0.0)[:, None]
        there = grad + tl.load(far + n) * Y * F + f[None, :]
        if C0:
            g = tl.load(there, mask=lanes[None, :], other=0.0)
            of_c0 += _filter(b, place, tile, 0, F)[None, :] * g  # eq. 7 by p_s
        if C1 or P1:
            g = tl.load(there + (Y_1 + c1) * F, mask=(c1 < 3) & lanes[None, :], other=0.0)
            if C1:
                of_c1 += _filter(b, place, tile, W_C1, F)[None, :] * g  # eq. 8 by q
            if P1:
                y = tl.load(unit + e * 3 + l1, mask=l1 < 3, other=0.0)
                part = _filter(b, place, tile, W_P1, F) * tl.sum(g * y[:, None], axis=0)
                of_p1 += -part if MIRRORED else part  # the reverse of an edge points the other way
        if C2 or P2:
            g = tl.load(there + (Y_2 + c2) * F, mask=(c2 < 5) & lanes[None, :], other=0.0)
            if C2:
                of_c2 += _filter(b, place, tile, W_C2, F)[None, :] * g
            if P2:
                y = tl.load(second + e * 5 + l2, mask=l2 < 5, other=0.0)
                of_p2 += _filter(b, place, tile, W_P2, F) * tl.sum(g * y[:, None], axis=0)  # even in the direction
    here = grad_x + (k * atoms + j) * X * F
    if C0:
        tl.store(here + f[None, :], of_c0, mask=lanes[None, :])
    if P1:
        tl.store(here + X_P1 * F + f, of_p1, mask=lanes)
    if P2:
        tl.store(here + X_P2 * F + f, of_p2, mask=lanes)
    if C1:
        tl.store(here + (X_C1 + c1) * F + f[None, :], of_c1, mask=(c1 < 3) & lanes[None, :])
    if C2:
        tl.store(here + (X_C2 + c2) * F + f[None, :], of_c2, mask=(c2 < 5) & lanes[None, :])


def message_on_gpu(
    x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph, layout: Layout = PAINN
) -> Tensor:
    """Compute the message with fused kernels; any list, any layout. Differentiable once, by x, basis and unit.

    On a complete list the payload's gradient uses that an edge and its reverse have the same basis and opposite
    directions; on a truncated one the edges are sorted by sender first.
    """
    out: Tensor = _Fused.apply(x, basis, unit, weights, graph, layout)
    return out


def _constants(x: Tensor, basis: Tensor, layout: Layout) -> dict[str, Any]:
    """Return the constants of kernels: sizes, groups, and where components and filters of groups begin."""
    width, radial = x.shape[-1], basis.shape[-1]
    found: dict[str, Any] = {
        "F": width,
        "R": radial,
        "LANES": triton.next_power_of_2(width),
        "RADIAL": max(triton.next_power_of_2(radial), 2),
        "X": layout.inputs,
        "W": layout.filters,
        "Y": layout.outputs,
    }
    for order in (0, 1, 2):
        carried, pushed = layout.of_order(order)
        for letter, group in (("C", carried), ("P", pushed)):
            if (order, letter) == (0, "P"):
                continue
            found[f"{letter}{order}"] = group is not None
            if (order, letter) != (0, "C"):
                found[f"X_{letter}{order}"] = group.start if group else 0
                found[f"W_{letter}{order}"] = group.filter if group else 0
        if order:
            found[f"Y_{order}"] = next((g.into for g in (carried, pushed) if g), 0)
    return found


def _by_sender(graph: Graph) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return, of edges grouped by sender: far atom [E], edge [E], pointer [N+1], and whether mirrored ones serve."""
    found = graph.neighbors
    if found.symmetric:
        return found.sender, found.sender, found.row_ptr, True
    edge = torch.argsort(found.sender, stable=True)
    col_ptr = torch.zeros_like(found.row_ptr)
    torch.cumsum(torch.bincount(found.sender, minlength=graph.n_atoms), 0, out=col_ptr[1:])
    return found.receiver[edge], edge, col_ptr, False


def _second_orders(unit: Tensor, layout: Layout) -> tuple[Tensor, int]:
    """Return `Y_2` of the directions and its stride over members; the directions themselves if nothing needs it."""
    if not layout.has(2, pushed=True):
        return unit, 0
    shared = unit.shape[0] > 1 and unit.stride(0) == 0
    found = second_order(unit[:1] if shared else unit).contiguous()
    return found, 0 if shared or len(found) == 1 else found.stride(0)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, basis: Tensor, unit: Tensor, weights: Tensor, graph: Graph, layout: Layout
    ) -> Tensor:
        x, weights = x.contiguous(), weights.contiguous()
        (basis, b_stride), (unit, u_stride) = edge_data(basis), edge_data(unit)
        second, s_stride = _second_orders(unit, layout)
        ctx.save_for_backward(x, basis, unit, second, weights)
        ctx.graph, ctx.layout, ctx.strides = graph, layout, (b_stride, u_stride, s_stride)
        members, atoms, _, width = x.shape
        out = x.new_empty(members, atoms, layout.outputs, width)
        if atoms:
            list_, constants = graph.neighbors, _constants(x, basis, layout)
            given = (x, basis, unit, second, weights, list_.sender, list_.row_ptr, out, *ctx.strides, atoms)
            with torch.cuda.device_of(x):  # Triton launches on the current device
                _forward[(atoms, members)](*given, **constants)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[3]:
            raise RuntimeError("the fused message gives no gradients of weights; train with implementation='edges'")
        x, basis, unit, second, weights = ctx.saved_tensors
        graph, layout, list_ = ctx.graph, ctx.layout, ctx.graph.neighbors
        grad = grad.contiguous()
        members, atoms = x.shape[:2]
        grad_x = torch.empty_like(x)
        shape, last = unit.shape, (5 if layout.has(2, pushed=True) else 0)
        grad_basis = x.new_empty(basis.shape)
        grad_unit, grad_second = (x.new_zeros(*shape[:2], n) for n in (3, last))
        if atoms:
            constants = _constants(x, basis, layout)
            far, edge, col_ptr, mirrored = _by_sender(graph)
            given = (grad, x, basis, unit, second, weights, list_.sender, list_.row_ptr)
            found = (grad_basis, grad_unit, grad_second)
            sent = (grad, basis, unit, second, weights, far, edge, col_ptr, grad_x)
            with torch.cuda.device_of(x):
                _edge_gradients[(atoms, members)](*given, *found, *ctx.strides, atoms, graph.n_edges, **constants)
                _payload_gradients[(atoms, members)](*sent, *ctx.strides, atoms, **constants, MIRRORED=mirrored)
        if last:
            grad_unit = grad_unit + pull_second_order(unit, grad_second)
        return grad_x, grad_basis, grad_unit if layout.pushed else None, None, None, None
