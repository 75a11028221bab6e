"""Kernels of the fused GPU message (Triton), which `atomsieve.models.messages.triton_message` starts.

`atomsieve.models.messages.message` has the formulas.

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

import triton
import triton.language as tl


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
def forward(
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
    """Sum the messages `out [K,N,Y,F]` that an atom of a member receives (eqs. 7 and 8)."""
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
def edge_gradients(
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
    """Give the gradients by basis [K,E,R], direction [K,E,3] and `Y_2` [K,E,5] of edges into an atom of a member."""
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
def payload_gradients(
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
    """Give the gradient by the payload [K,N,X,F] of an atom of a member: a sum over the edges out of it."""
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
