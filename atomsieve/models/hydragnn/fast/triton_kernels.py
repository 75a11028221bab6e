"""Kernels for GPUs (Triton) of HydraGNN's model: the steps of `hydragnn_edges.cpp` and `hydragnn_nodes.cpp`.

Rows have length L: F features and padding, zero but for columns F (1, for the bias of a product), F+1 and F+2 (charge
and spin) of the inputs of products. One program serves one atom: nothing as large as edges times features is stored,
nothing is added atomically, and the order of every sum is fixed. Numbers in brackets
are those of the formulas at the head of `atomsieve.models.hydragnn.encoder`.

With TRITON_INTERPRET=1 the same kernels run on the CPU, slowly: that is how they are tested.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

# -- steps at single atoms -------------------------------------------------------------------------------------------


@triton.jit
def _tanh_of(x):
    return 1.0 - 2.0 / (tl.exp(x + x) + 1.0)


@triton.jit
def _append_conditions(value, f, attributes, F: tl.constexpr):
    """Return a row with 1, charge and spin behind its features."""
    value = tl.where(f == F, 1.0, value)
    value = tl.where(f == F + 1, tl.load(attributes), value)
    return tl.where(f == F + 2, tl.load(attributes + 1), value)


@triton.jit
def _row(LANES: tl.constexpr, L: tl.constexpr):
    """Return the atom of this program, its places in a row, and which of them there are."""
    f = tl.arange(0, LANES)
    return tl.program_id(0).to(tl.int64), f, f < L


@triton.jit
def spread(s, w, b, attributes, out, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Put tanh(w s + b), then 1, charge and spin, into `out`."""
    i, f, lanes = _row(LANES, L)
    y = tl.load(w + f, mask=lanes, other=0.0) * tl.load(s + i).to(out.dtype.element_ty)
    y += tl.load(b + f, mask=lanes, other=0.0)
    tl.store(out + i * L + f, _append_conditions(_tanh_of(y), f, attributes + 2 * i, F), mask=lanes)


@triton.jit
def spread_back(g, t, w, by_s, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Put the sum of g (1 - t^2) w, the gradient of `spread`, into by_s."""
    i, f, lanes = _row(LANES, L)
    a = tl.load(t + i * L + f, mask=lanes, other=0.0)
    w_f = tl.load(w + f, mask=lanes, other=0.0)
    total = tl.sum(tl.load(g + i * L + f, mask=lanes, other=0.0) * (1.0 - a * a) * w_f, axis=0)
    tl.store(by_s + i, total.to(tl.float64))


@triton.jit
def relu(x, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Take the positive part, and put 1 behind it."""
    i, f, lanes = _row(LANES, L)
    a = tl.load(x + i * L + f, mask=lanes, other=0.0)
    tl.store(x + i * L + f, tl.where(f == F, 1.0, tl.where(a > 0, a, 0.0)), mask=lanes)


@triton.jit
def relu_back(g, x, total, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Add g to `total` where x > 0; elsewhere it is 0."""
    i, f, lanes = _row(LANES, L)
    at = i * L + f
    up = tl.load(total + at, mask=lanes, other=0.0) + tl.load(g + at, mask=lanes, other=0.0)
    tl.store(total + at, tl.where(tl.load(x + at, mask=lanes, other=0.0) > 0, up, 0.0), mask=lanes)


@triton.jit
def silu(y, h, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Put y sigmoid(y) into h, and its derivative into y."""
    i, f, lanes = _row(LANES, L)
    a = tl.load(y + i * L + f, mask=lanes, other=0.0)
    gate = 1.0 / (1.0 + tl.exp(-a))
    tl.store(h + i * L + f, tl.where(f == F, 1.0, a * gate), mask=lanes)
    tl.store(y + i * L + f, gate * (1.0 + a * (1.0 - gate)), mask=lanes)


@triton.jit
def scale(by, g, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Multiply g by `by`."""
    i, f, lanes = _row(LANES, L)
    at = i * L + f
    product = tl.load(g + at, mask=lanes, other=0.0) * tl.load(by + at, mask=lanes, other=0.0)
    tl.store(g + at, product, mask=lanes)


@triton.jit
def tanh(attributes, x, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Take the hyperbolic tangent, and put 1, charge and spin behind it."""
    i, f, lanes = _row(LANES, L)
    value = _tanh_of(tl.load(x + i * L + f, mask=lanes, other=0.0))
    tl.store(x + i * L + f, _append_conditions(value, f, attributes + 2 * i, F), mask=lanes)


@triton.jit
def tanh_back(t, g, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Multiply g by 1 - t^2."""
    i, f, lanes = _row(LANES, L)
    a = tl.load(t + i * L + f, mask=lanes, other=0.0)
    tl.store(g + i * L + f, tl.load(g + i * L + f, mask=lanes, other=0.0) * (1.0 - a * a), mask=lanes)


@triton.jit
def _pair(uv, i, x: tl.constexpr, f, lanes, L: tl.constexpr):
    """Return component x of U and V of atom i."""
    u = uv + i * 6 * L + 2 * x * L + f
    return tl.load(u, mask=lanes, other=0.0), tl.load(u + L, mask=lanes, other=0.0)


@triton.jit
def _dot(uv, i, f, lanes, L: tl.constexpr):
    u_x, v_x = _pair(uv, i, 0, f, lanes, L)
    u_y, v_y = _pair(uv, i, 1, f, lanes, L)
    u_z, v_z = _pair(uv, i, 2, f, lanes, L)
    return u_x * v_x + u_y * v_y + u_z * v_z


@triton.jit
def norm(uv, x, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Put lengths of V into the first half of x."""
    i, f, lanes = _row(LANES, L)
    _, v_x = _pair(uv, i, 0, f, lanes, L)
    _, v_y = _pair(uv, i, 1, f, lanes, L)
    _, v_z = _pair(uv, i, 2, f, lanes, L)
    tl.store(x + i * 2 * L + f, tl.sqrt(v_x * v_x + v_y * v_y + v_z * v_z), mask=lanes)  # |V| of (7)


@triton.jit
def gate(x, uv, q, out, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Put s + a U.V + b into `out`; s is the second half of x, (a, b) = q."""
    i, f, lanes = _row(LANES, L)
    at = i * 2 * L + f
    s = tl.load(x + at + L, mask=lanes, other=0.0) + tl.load(q + at + L, mask=lanes, other=0.0)
    s += tl.load(q + at, mask=lanes, other=0.0) * _dot(uv, i, f, lanes, L)  # (8)
    tl.store(out + i * L + f, tl.where(f == F, 1.0, s), mask=lanes)


@triton.jit
def gate_back(g, uv, by_q, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Put the gradient of `gate` by q into by_q."""
    i, f, lanes = _row(LANES, L)
    a = tl.load(g + i * L + f, mask=lanes, other=0.0)
    tl.store(by_q + i * 2 * L + f, a * _dot(uv, i, f, lanes, L), mask=lanes)
    tl.store(by_q + i * 2 * L + L + f, a, mask=lanes)


@triton.jit
def norm_back(by_x, q, g, uv, F: tl.constexpr, L: tl.constexpr, LANES: tl.constexpr):
    """Add the second half of by_x to g, and put gradients by U and V into uv."""
    i, f, lanes = _row(LANES, L)
    at = i * 2 * L + f
    u_x, v_x = _pair(uv, i, 0, f, lanes, L)
    u_y, v_y = _pair(uv, i, 1, f, lanes, L)
    u_z, v_z = _pair(uv, i, 2, f, lanes, L)
    length = tl.sqrt(v_x * v_x + v_y * v_y + v_z * v_z)
    up = tl.load(g + i * L + f, mask=lanes, other=0.0)
    by_dot = up * tl.load(q + at, mask=lanes, other=0.0)
    by_length = tl.load(by_x + at, mask=lanes, other=0.0) / tl.where(length > 0, length, 1.0)
    by_length = tl.where(length > 0, by_length, 0.0)
    tl.store(g + i * L + f, up + tl.load(by_x + at + L, mask=lanes, other=0.0), mask=lanes)
    here = uv + i * 6 * L + f
    tl.store(here, by_dot * v_x, mask=lanes)
    tl.store(here + L, by_dot * u_x + by_length * v_x, mask=lanes)
    tl.store(here + 2 * L, by_dot * v_y, mask=lanes)
    tl.store(here + 3 * L, by_dot * u_y + by_length * v_y, mask=lanes)
    tl.store(here + 4 * L, by_dot * v_z, mask=lanes)
    tl.store(here + 5 * L, by_dot * u_z + by_length * v_z, mask=lanes)


# -- layer 1: messages over edges ------------------------------------------------------------------------------------


@triton.jit
def _filter(edge, weights, f, lanes, L: tl.constexpr, K: tl.constexpr):
    """Return one part's filter [L] of an edge: its K values times `weights` [K,L]."""
    found = tl.load(edge) * tl.load(weights + f, mask=lanes, other=0.0)
    for r in tl.static_range(1, K):
        found += tl.load(edge + r) * tl.load(weights + r * L + f, mask=lanes, other=0.0)
    return found


@triton.jit
def wide_forward(
    first,
    row_ptr,
    sender,
    basis,
    filters,
    w,
    beta,
    phi,
    v0,
    s1,
    sm,
    ld,
    vm,
    L: tl.constexpr,
    LANES: tl.constexpr,
    K: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Put scalars and vectors after the message into sm (rows of length ld) and vm [n,3,L]."""
    n, f, lanes = _row(LANES, L)
    i = first + n
    w_f = tl.load(w + f, mask=lanes, other=0.0)
    s = tl.load(s1 + i * L + f, mask=lanes, other=0.0)
    z_x, z_y, z_z = w_f * tl.load(v0 + 4 * i), w_f * tl.load(v0 + 4 * i + 1), w_f * tl.load(v0 + 4 * i + 2)
    if BIASED:
        beta_f = tl.load(beta + f, mask=lanes, other=0.0)
        z_x, z_y, z_z = z_x + beta_f, z_y + beta_f, z_z + beta_f
    for e in range(tl.load(row_ptr + i), tl.load(row_ptr + i + 1)):
        b, j = basis + e * (K + 3), tl.load(sender + e)
        sent = phi + j * 3 * L + f
        p_v = _filter(b, filters, f, lanes, L, K) * tl.load(sent, mask=lanes, other=0.0)  # (3), (6) first
        p_e = _filter(b, filters + K * L, f, lanes, L, K) * tl.load(sent + L, mask=lanes, other=0.0)  # (3), (6) second
        s += _filter(b, filters + 2 * K * L, f, lanes, L, K) * tl.load(sent + 2 * L, mask=lanes, other=0.0)  # (3), (5)
        x, y, z = tl.load(v0 + 4 * j), tl.load(v0 + 4 * j + 1), tl.load(v0 + 4 * j + 2)
        if BIASED:
            z_x += p_v * (w_f * x + beta_f)
            z_y += p_v * (w_f * y + beta_f)
            z_z += p_v * (w_f * z + beta_f)
        else:
            z_x += p_v * x
            z_y += p_v * y
            z_z += p_v * z
        z_x += p_e * tl.load(b + K)
        z_y += p_e * tl.load(b + K + 1)
        z_z += p_e * tl.load(b + K + 2)
    tl.store(sm + n * ld + f, s, mask=lanes)
    here = vm + n * 3 * L + f
    tl.store(here, z_x, mask=lanes)
    tl.store(here + L, z_y, mask=lanes)
    tl.store(here + 2 * L, z_z, mask=lanes)


@triton.jit
def wide_backward(
    first,
    receiver,
    column,
    order,
    basis,
    slope,
    filters,
    w,
    beta,
    phi,
    v0,
    by_s,
    by_v,
    by_phi,
    by_v0,
    by_edge,
    L: tl.constexpr,
    LANES: tl.constexpr,
    K: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Put gradients by payload, entering vector, and of leaving edges by length and direction, into the last three."""
    n, f, lanes = _row(LANES, L)
    j = first + n
    w_f = tl.load(w + f, mask=lanes, other=0.0)
    p_v = tl.load(phi + j * 3 * L + f, mask=lanes, other=0.0)
    p_e = tl.load(phi + j * 3 * L + L + f, mask=lanes, other=0.0)
    p_s = tl.load(phi + j * 3 * L + 2 * L + f, mask=lanes, other=0.0)
    x, y, z = tl.load(v0 + 4 * j), tl.load(v0 + 4 * j + 1), tl.load(v0 + 4 * j + 2)
    if BIASED:
        beta_f = tl.load(beta + f, mask=lanes, other=0.0)
    own = by_v + n * 3 * L + f  # an atom keeps its own vector too
    g_x = w_f * tl.load(own, mask=lanes, other=0.0)
    g_y = w_f * tl.load(own + L, mask=lanes, other=0.0)
    g_z = w_f * tl.load(own + 2 * L, mask=lanes, other=0.0)
    of_v, of_e, of_s = tl.zeros_like(p_v), tl.zeros_like(p_v), tl.zeros_like(p_v)
    for p in range(tl.load(column + j), tl.load(column + j + 1)):
        e = tl.load(order + p)
        i = tl.load(receiver + e) - first
        b, db = basis + e * (K + 3), slope + e * (K + 3)
        t = by_v + i * 3 * L + f
        t_x = tl.load(t, mask=lanes, other=0.0)
        t_y = tl.load(t + L, mask=lanes, other=0.0)
        t_z = tl.load(t + 2 * L, mask=lanes, other=0.0)
        up = tl.load(by_s + i * L + f, mask=lanes, other=0.0)
        part = filters + 2 * K * L
        of_s += _filter(b, part, f, lanes, L, K) * up  # (5) by p_s
        by_length = _filter(db, part, f, lanes, L, K) * (p_s * up)  # (5) by r
        filtered = _filter(b, filters, f, lanes, L, K)
        inner, push = t_x * x + t_y * y + t_z * z, filtered * p_v
        if BIASED:
            inner = inner * w_f + (t_x + t_y + t_z) * beta_f
            push *= w_f
        of_v += filtered * inner
        by_length += _filter(db, filters, f, lanes, L, K) * (p_v * inner)  # (6), first summand, by r
        g_x += push * t_x  # (6) by v_j
        g_y += push * t_y
        g_z += push * t_z
        part = filters + K * L
        filtered = _filter(b, part, f, lanes, L, K)
        inner = t_x * tl.load(b + K) + t_y * tl.load(b + K + 1) + t_z * tl.load(b + K + 2)
        of_e += filtered * inner
        by_length += _filter(db, part, f, lanes, L, K) * (p_e * inner)
        push = filtered * p_e
        turned = by_edge + 4 * e
        tl.store(turned, tl.sum(by_length, axis=0))
        tl.store(turned + 1, tl.sum(push * t_x, axis=0))
        tl.store(turned + 2, tl.sum(push * t_y, axis=0))
        tl.store(turned + 3, tl.sum(push * t_z, axis=0))
    here = by_phi + n * 3 * L + f
    tl.store(here, of_v, mask=lanes)
    tl.store(here + L, of_e, mask=lanes)
    tl.store(here + 2 * L, of_s, mask=lanes)
    tl.store(by_v0 + 4 * j, tl.sum(g_x, axis=0))
    tl.store(by_v0 + 4 * j + 1, tl.sum(g_y, axis=0))
    tl.store(by_v0 + 4 * j + 2, tl.sum(g_z, axis=0))
