"""The steps of HydraGNN's model on a GPU, under the names and arguments of the compiled ones of a CPU.

Steps over features are Triton kernels (`triton_kernels`). Steps over a few numbers for each edge (geometry, layer 0,
the order of edges) and sums over structures are torch operations without atomics: sums over segments, in one order.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

TINY = 1e-9
"""Angstrom; HydraGNN adds it to lengths that it divides by."""


def gpu_available() -> bool:
    """Return whether Triton, in which the kernels are written, is installed."""
    return find_spec("triton") is not None


class _Mixed(NamedTuple):
    """Layer 0's update of scalars [N] and vectors [N,3] after the message, as in `hydragnn_narrow.h`."""

    u: Tensor
    v: Tensor
    norm: Tensor
    slope: Tensor
    q: Tensor
    dot: Tensor


def _mix(p: Tensor, s: Tensor, v: Tensor) -> _Mixed:
    u, w = p[0] * v + p[1], p[2] * v + p[3]
    norm = torch.linalg.vector_norm(w, dim=1)
    y = p[4] * norm + p[5] * s + p[6]
    gate = torch.sigmoid(y)
    return _Mixed(u, w, norm, gate * (1 + y * (1 - gate)), torch.outer(y * gate, p[7:10]) + p[10:13], (u * w).sum(1))


def _segment_sums(values: Tensor, ptr: Tensor) -> Tensor:
    """Return sums [S,...] of consecutive rows; `ptr [S+1]` counts from the first."""
    return torch.segment_reduce(values, "sum", offsets=ptr, axis=0, unsafe=True)


class GpuSteps:
    """Each method is one step; arrays are written in place. `features`, `length`: F and L of the rows."""

    # -- edges and layer 0 -----------------------------------------------------------------------------------------

    def geometry(self, edges: int, radial: int, cutoff: float, vec: Tensor, basis: Tensor, slope: Tensor) -> None:
        """Fill `basis [E,R+4]`, R+1 values and a direction, and the derivatives of the values by length."""
        r = torch.linalg.vector_norm(vec, dim=1, keepdim=True)
        k = torch.arange(1, radial + 1, device=vec.device, dtype=vec.dtype) * (math.pi / cutoff)
        within, angle = r < cutoff, r * (math.pi / cutoff)
        fc = torch.where(within, 0.5 * (torch.cos(angle) + 1), 0)  # (1)
        dfc = torch.where(within, -0.5 * math.pi / cutoff * torch.sin(angle), 0)
        rbf = torch.sin(k * r) / r  # (1)
        drbf = (k * torch.cos(k * r) - rbf) / r
        basis.copy_(torch.cat([rbf * fc, fc, vec / ((r + TINY) * r)], 1))  # (2)
        slope.copy_(torch.cat([drbf * fc + rbf * dfc, dfc, torch.zeros_like(vec)], 1))

    def transpose(self, atoms: int, edges: int, sender: Tensor, column: Tensor, order: Tensor) -> None:
        """Fill `order [E]` with edges sorted by sender, those of atom j from `column[j]` on."""
        order.copy_(torch.argsort(sender, stable=True))
        column[0] = 0
        torch.cumsum(torch.bincount(sender, minlength=atoms), 0, out=column[1:])

    def narrow_forward(
        self,
        atoms: int,
        radial: int,
        row_ptr: Tensor,
        sender: Tensor,
        numbers: Tensor,
        basis: Tensor,
        table: Tensor,
        filters: Tensor,
        p: Tensor,
        state: Tensor,
        s0: Tensor,
        v0: Tensor,
    ) -> None:
        """Fill `state [N,4]`, scalar and vector after layer 0's message, and after its update `s0 [N]`, `v0 [N,4]`."""
        values, along = basis[:, : radial + 1].double(), basis[:, radial + 1 :].double()
        payload = table[numbers[sender]]
        scalar, push = (values @ filters[1]) * payload[:, 1], (values @ filters[0]) * payload[:, 0]  # (5), (6)
        state.copy_(_segment_sums(torch.cat([scalar[:, None], push[:, None] * along], 1), row_ptr))
        state[:, 0] += numbers
        o = _mix(p, state[:, 0], state[:, 1:])  # (7)
        torch.add(state[:, 0] + o.q[:, 1] * o.dot, o.q[:, 2], out=s0)  # (8)
        v0[:, 3] = 0
        v0[:, :3] = state[:, 1:] + o.q[:, :1] * o.u  # (8)

    def narrow_backward(
        self,
        atoms: int,
        radial: int,
        row_ptr: Tensor,
        sender: Tensor,
        numbers: Tensor,
        basis: Tensor,
        slope: Tensor,
        vec: Tensor,
        table: Tensor,
        filters: Tensor,
        p: Tensor,
        state: Tensor,
        by_s0: Tensor,
        by_v0: Tensor,
        wide: Tensor,
        out: Tensor,
    ) -> None:
        """Fill `out [E,3]` with gradients by edge vectors, from those of layer 0's results and of edges in layer 1."""
        o, g_v = _mix(p, state[:, 0], state[:, 1:]), by_v0[:, :3].double()
        g_dot = (by_s0 * o.q[:, 1])[:, None]
        g_q = torch.stack([(g_v * o.u).sum(1), by_s0 * o.dot, by_s0], 1)
        g_y = (g_q @ p[7:10]) * o.slope
        g_s = by_s0 + g_y * p[5]
        by_norm = torch.where(o.norm > 0, g_y * p[4] / torch.where(o.norm > 0, o.norm, 1), 0)[:, None]
        g_m = g_v + p[0] * (g_v * o.q[:, :1] + g_dot * o.v) + p[2] * (g_dot * o.u + by_norm * o.v)

        receiver = torch.repeat_interleave(
            torch.arange(atoms, device=vec.device), row_ptr[1:] - row_ptr[:-1], output_size=len(sender)
        )
        values, rates = (t[:, : radial + 1].double() for t in (basis, slope))
        payload, g_here = table[numbers[sender]], g_m[receiver]
        push = ((values @ filters[0]) * payload[:, 0])[:, None]
        by_length = wide[:, 0].double() + (rates @ filters[1]) * payload[:, 1] * g_s[receiver]
        by_length += (rates @ filters[0]) * payload[:, 0] * (g_here * basis[:, radial + 1 :]).sum(1)
        by_along = wide[:, 1:].double() + push * g_here
        r = torch.linalg.vector_norm(vec, dim=1)
        q = 1 / ((r + TINY) * r)
        by_length -= (by_along * vec).sum(1) * (2 * r + TINY) * q * q  # (2) by r
        out.copy_(by_along * q[:, None] + vec * (by_length / r)[:, None])

    def wide_forward(
        self,
        first: int,
        last: int,
        radial: int,
        length: int,
        row_ptr: Tensor,
        sender: Tensor,
        basis: Tensor,
        filters: Tensor,
        w: Tensor,
        beta: Tensor | None,
        phi: Tensor,
        v0: Tensor,
        s1: Tensor,
        sm: Tensor,
        ld: int,
        vm: Tensor,
    ) -> None:
        """Run layer 1's message for atoms first to last."""
        self._launch(
            "wide_forward",
            last - first,
            first,
            row_ptr,
            sender,
            basis,
            filters,
            w,
            w if beta is None else beta,
            phi,
            v0,
            s1,
            sm,
            ld,
            vm,
            L=length,
            K=radial + 1,
            BIASED=beta is not None,
        )

    def wide_backward(
        self,
        first: int,
        last: int,
        radial: int,
        length: int,
        row_ptr: Tensor,
        sender: Tensor,
        receiver: Tensor,
        column: Tensor,
        order: Tensor,
        basis: Tensor,
        slope: Tensor,
        filters: Tensor,
        w: Tensor,
        beta: Tensor | None,
        phi: Tensor,
        v0: Tensor,
        by_s: Tensor,
        by_v: Tensor,
        by_phi: Tensor,
        by_v0: Tensor,
        by_edge: Tensor,
    ) -> None:
        """Run its backward pass over the edges that leave atoms first to last."""
        self._launch(
            "wide_backward",
            last - first,
            first,
            receiver,
            column,
            order,
            basis,
            slope,
            filters,
            w,
            w if beta is None else beta,
            phi,
            v0,
            by_s,
            by_v,
            by_phi,
            by_v0,
            by_edge,
            L=length,
            K=radial + 1,
            BIASED=beta is not None,
        )

    # -- sums over structures --------------------------------------------------------------------------------------

    def pool(self, structures: int, length: int, ptr: Tensor, x: Tensor, out: Tensor) -> None:
        """Fill `out [S,L]` with sums of the positive part of x; `ptr` counts from its first row."""
        out.copy_(_segment_sums(x.clamp(min=0), ptr - ptr[0]))

    def pool_back(self, structures: int, length: int, ptr: Tensor, x: Tensor, g: Tensor, out: Tensor) -> None:
        """Fill `out` with the gradient of `pool`."""
        of_atoms = torch.repeat_interleave(g, ptr[1:] - ptr[:-1], dim=0, output_size=len(x))
        out.copy_(torch.where(x > 0, of_atoms, 0))

    # -- steps at single atoms -------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Return a step at single atoms: a kernel of rows, called with their number, F, L and its arrays."""
        if name.startswith("_"):
            raise AttributeError(name)

        def step(count: int, features: int, length: int, *arrays: Tensor) -> None:
            self._launch(name, count, *arrays, F=features, L=length)

        return step

    @staticmethod
    def _launch(name: str, programs: int, *given: Tensor | int, L: int, **constants: int) -> None:
        import triton

        from atomsieve.models.hydragnn.fast import triton_kernels as kernels

        if programs:
            arrays = [x for x in given if isinstance(x, Tensor)]
            with torch.cuda.device_of(arrays[0]):  # Triton launches on the current device
                getattr(kernels, name)[(programs,)](*given, L=L, LANES=triton.next_power_of_2(L), **constants)
