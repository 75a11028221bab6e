"""HydraGNN's lead model without autograd: energies of all heads and edge gradients of their mixture.

Exact simplifications that the architecture allows:

- Layer 0 has one feature: a table of elements and a few numbers for each edge.
- Vectors that enter layer 1 are of rank one (a vector of the atom times weights of features), and its filters are
  linear in five numbers of an edge: compiled loops over sorted edges form neither for more than a tile of edges.
- Linear maps with nothing between them are one map; spare columns hold the terms of biases, charge and spin.
- Gradients are written out. The backward pass starts from the heads' weights folded together, so it runs once.

What remains is matrix products; on a CPU over blocks of whole structures that stay in the cache. The steps between them
are compiled loops there, and fused kernels on a GPU (`cpu_steps`, `gpu_steps`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from atomsieve.errors import AtomSieveError, DataError, unknown
from atomsieve.models.hydragnn.fast.arrays import PARTS, Activations, EdgeArrays, FastResult, Workspace, spans
from atomsieve.models.hydragnn.fast.cpu_steps import CpuSteps, cpu_available
from atomsieve.models.hydragnn.fast.gpu_steps import GpuSteps, gpu_available
from atomsieve.models.hydragnn.fast.heads import FastHeads
from atomsieve.models.hydragnn.fast.weights import ELEMENTS, Folded, fold
from atomsieve.models.layers import multiplies_bf16

BLOCK_ATOMS = {"cpu": 512, "cuda": 65_536}
"""Atoms whose matrix products are made together, by kind of device; larger structures are blocks of their own."""
GROUP_ATOMS = {"cpu": 8192, "cuda": 65_536}
"""Atoms whose activations are held for the backward pass."""
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.float32}


_NEEDED = {
    "cpu": "the compiled kernels; reinstall where there is a C++ compiler",
    "cuda": "Triton's kernels; pip install triton",
}


def fast_available(device: str = "cpu") -> bool:
    """Return whether a kind of device has the kernels that are needed: compiled ones, or Triton."""
    if device == "cuda":
        return gpu_available()
    return cpu_available()


class FastHydraGNN:
    """Evaluates a HydraGNN state dict (names without prefixes) of two PaiNN layers, the first of width 1."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        precision: str = "fp32",
        cutoff: float = 5.0,
        workspace: Workspace | None = None,
        device: torch.device | None = None,
        steps: CpuSteps | GpuSteps | None = None,
    ) -> None:
        """Fold the weights of a state dict.

        precision : fp64, fp32, or bf16: factors of matrix products are rounded to BF16, the rest is FP32. Where the
            processor has no BF16 products they are made in FP32, and this is no faster than fp32.
        cutoff : Angstrom. workspace : shared with members of the same ensemble, so that they are there once.
        device : None is the CPU. steps : the operations between matrix products; None takes those of the device.

        Raises
        ------
        UsageError
            for an unknown precision.
        AtomSieveError
            if the state dict is of another architecture, or the compiled kernels are missing.
        """
        if precision not in DTYPES:
            raise unknown("precision", precision, DTYPES)
        self.device = device or torch.device("cpu")
        if not fast_available(self.device.type):
            raise AtomSieveError(f"the fast path of HydraGNN's model needs {_NEEDED[self.device.type]}")
        self.precision, self.dtype, self.cutoff = precision, DTYPES[precision], cutoff
        self.rounded = precision == "bf16"
        self.direct = self.rounded and multiplies_bf16(self.device)
        self.weights: Folded = fold(state, self.dtype, self.rounded).to(self.device)
        self.heads = FastHeads(state, self.dtype, self.device)  # the readout is not rounded
        self.workspace = Workspace() if workspace is None else workspace
        self.steps = steps or (GpuSteps() if self.device.type == "cuda" else CpuSteps(self.dtype))

    def __call__(
        self,
        numbers: Tensor,
        vec: Tensor,
        sender: Tensor,
        receiver: Tensor,
        row_ptr: Tensor,
        ptr: Tensor,
        charge: Tensor,
        spin: Tensor,
        mix: Tensor,
        gradients: bool = True,
        every_head: bool = True,
        features: bool = False,
    ) -> FastResult:
        """Evaluate a batch of S structures, N atoms and E edges sorted by receiver; all on the device.

        numbers : [N] atomic numbers. vec : [E,3] Angstrom, sender minus receiver. sender, receiver : [E] int64.
        row_ptr : [N+1], ptr : [S+1] int64. charge, spin : [S]. mix : [S,B] weights of heads.
        gradients : also d energy / d vec; else `edge_grad` is zero.
        every_head : energies of all heads; else, where one head has all the weight, that of the others is zero: for
            structures of few atoms, heads are a good part of the work.
        features : also those of atoms.

        The list may be truncated: no symmetry is used. No edge may join two structures.

        Raises
        ------
        DataError
            for an atomic number beyond 118.
        """
        numbers, sender, receiver, row_ptr, ptr = (
            t.to(torch.int64).contiguous() for t in (numbers, sender, receiver, row_ptr, ptr)
        )
        vec = vec.to(torch.float64).contiguous()
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < ELEMENTS:
            raise DataError(f"atomic number {int(numbers.max())} is none; HydraGNN's model knows 1 to {ELEMENTS - 1}")
        attributes = torch.stack([charge, spin], 1).to(self.dtype)
        energies: list[Tensor] = []
        grad = torch.zeros(vec.shape, dtype=self.dtype, device=self.device)
        of_atoms = self._empty(len(numbers), self.weights.features) if features else None
        weighed = mix.ne(0).any(0).nonzero()
        branch = None if every_head or len(weighed) != 1 else int(weighed)
        cuts = ptr.cpu().numpy()
        bounds = row_ptr[ptr].cpu().numpy()  # edges of structures
        for first, last in spans(cuts, GROUP_ATOMS[self.device.type]):
            a, b = int(cuts[first]), int(cuts[last])
            e, f = int(bounds[first]), int(bounds[last])
            edges = self._edges(row_ptr[a : b + 1] - e, sender[e:f] - a, receiver[e:f] - a, vec[e:f])
            with self.workspace.lock:
                found = self._group(
                    numbers[a:b],
                    edges,
                    ptr[first : last + 1] - a,
                    cuts[first : last + 1] - a,
                    attributes[first:last],
                    mix[first:last],
                    grad[e:f] if gradients else None,
                    branch,
                    None if of_atoms is None else of_atoms[a:b],
                )
            energies.append(found)
        none = torch.zeros(0, self.heads.count, dtype=torch.float64, device=self.device)
        each = torch.cat(energies) if energies else none
        return FastResult(each, (each * mix.to(torch.float64)).sum(1), grad, of_atoms)

    # -- one group ---------------------------------------------------------------------------------------------

    def _group(
        self,
        numbers: Tensor,
        edges: EdgeArrays,
        ptr: Tensor,
        cuts: np.ndarray,
        attributes: Tensor,
        mix: Tensor,
        grad: Tensor | None,
        branch: int | None,
        of_atoms: Tensor | None,
    ) -> Tensor:
        """Return energies of heads `[S,B]` of structures that are held together; `cuts` is `ptr` on the host.

        Edge gradients are written into `grad`, features of atoms into `of_atoms`, where these are given.
        """
        atoms, structures, w = len(numbers), len(ptr) - 1, self.weights
        kept = Activations(*(self._working_array(name, atoms, PARTS.get(name, 1)) for name in Activations._fields))
        state, s0 = (self._empty(*shape, dtype=torch.float64) for shape in ((atoms, 4), (atoms,)))
        v0 = self._empty(atoms, 4)
        self._call(
            "narrow_forward",
            atoms,
            w.radial,
            edges.row_ptr,
            edges.sender,
            numbers,
            edges.basis,
            w.table,
            w.narrow_filters,
            w.narrow,
            state,
            s0,
            v0,
        )
        blocks = [(i, j, int(cuts[i]), int(cuts[j])) for i, j in spans(cuts, BLOCK_ATOMS[self.device.type])]
        per_atom = attributes.repeat_interleave(ptr[1:] - ptr[:-1], dim=0, output_size=atoms)
        features = torch.zeros(structures, w.length, dtype=self.dtype, device=self.device)
        for i, j, a, b in blocks:
            self._forward(edges, kept, a, b, s0, v0, per_atom[a:b])
            self._call("pool", j - i, w.length, ptr[i : j + 1], kept.last[a:b], features[i:j])
        if of_atoms is not None:
            torch.clamp(kept.last[:, : w.features], min=0, out=of_atoms)
        each, by_features = self.heads(features[:, : w.features], mix, grad is not None, branch)
        if grad is None:
            return each
        back = torch.zeros_like(features)
        assert by_features is not None
        back[:, : w.features] = by_features
        by_s0, by_v0 = torch.empty_like(s0), torch.zeros_like(v0)
        by_edge = torch.zeros(len(edges.sender), 4, dtype=self.dtype, device=self.device)
        for i, j, a, b in blocks:
            into = self._scratch("end", b - a)
            self._call("pool_back", j - i, w.length, ptr[i : j + 1], kept.last[a:b], back[i:j], into)
            self._backward(edges, kept, a, b, v0, into, by_s0, by_v0, by_edge)
        self._call(
            "narrow_backward",
            atoms,
            w.radial,
            edges.row_ptr,
            edges.sender,
            numbers,
            edges.basis,
            edges.slope,
            edges.vec,
            w.table,
            w.narrow_filters,
            w.narrow,
            state,
            by_s0,
            by_v0,
            by_edge,
            grad,
        )
        return each

    def _edges(self, row_ptr: Tensor, sender: Tensor, receiver: Tensor, vec: Tensor) -> EdgeArrays:
        """Return the arrays that both passes read, with the order of edges by sender."""
        edges, atoms, radial = len(sender), len(row_ptr) - 1, self.weights.radial
        basis = self._empty(edges, radial + 4)
        slope = torch.empty_like(basis)
        self._call("geometry", edges, radial, self.cutoff, vec, basis, slope)
        column, order = (self._empty(n, dtype=torch.int64) for n in (atoms + 1, edges))
        self._call("transpose", atoms, edges, sender, column, order)
        return EdgeArrays(row_ptr, sender, receiver, vec, basis, slope, column, order)

    def _forward(
        self, edges: EdgeArrays, kept: Activations, a: int, b: int, s0: Tensor, v0: Tensor, attributes: Tensor
    ) -> None:
        """Fill the activations of atoms a to b."""
        w, n = self.weights, b - a
        k, width = Activations(*(t[a:b] for t in kept)), (n, w.features, w.length)
        self._call("spread", *width, s0[a:b], w.spread, w.spread_bias, attributes, k.spread)  # tanh of (9), layer 0
        self._product(k.spread, w.join, k.s1, inner=w.features + 3)  # (9) and (10) merged
        self._call("relu", *width, k.s1)
        hidden = self._scratch("hidden", n)
        self._product(k.s1, w.payload, k.slope1, inner=w.features + 1)  # (4)
        self._call("silu", *width, k.slope1, hidden)
        self._product(hidden, w.payload_out, k.phi, inner=w.features + 1)
        vectors, x = self._scratch("vectors", n, 3), self._scratch("x", n, 2)
        self._call(
            "wide_forward",
            a,
            b,
            w.radial,
            w.length,
            edges.row_ptr,
            edges.sender,
            edges.basis,
            w.filters,
            w.vector,
            w.vector_bias,
            kept.phi,
            v0,
            kept.s1,
            x[:, w.length :],
            2 * w.length,
            vectors,
        )
        flat = vectors.view(3 * n, w.length)
        if w.biased:
            flat[:, w.features] = 1
        self._product(flat, w.vectors, k.uv.view(3 * n, -1), inner=w.features + w.biased)  # U, V of (7)
        self._call("norm", *width, k.uv, x)  # |V| of (7)
        self._product(x, w.update, k.slope2, inner=w.length + w.features + 1)  # (7)
        self._call("silu", *width, k.slope2, hidden)
        self._product(hidden, w.update_out, k.gates, inner=w.features + 1)
        self._call("gate", *width, x, k.uv, k.gates, hidden)  # (8)
        self._product(hidden, w.node, k.closing, inner=w.features + 1)  # (9)
        self._call("tanh", *width, attributes, k.closing)
        self._product(k.closing, w.join_last, k.last, inner=w.features + 3)  # (9) and (10) merged

    def _backward(
        self,
        edges: EdgeArrays,
        kept: Activations,
        a: int,
        b: int,
        v0: Tensor,
        into: Tensor,
        by_s0: Tensor,
        by_v0: Tensor,
        by_edge: Tensor,
    ) -> None:
        """Turn gradients `into [n,L]` of the last features of atoms a to b into those of scalars, vectors and edges."""
        w, n = self.weights, b - a
        k, width = Activations(*(t[a:b] for t in kept)), (n, w.features, w.length)
        one, two, three = (self._scratch(f"back{m}", n, m) for m in (1, 2, 3))
        total, payload = self._scratch("total", n), self._scratch("by_payload", n, 3)
        self._back(into, w.join_last, one)
        self._call("tanh_back", *width, k.closing, one)
        self._back(one, w.node, total)
        self._call("gate_back", *width, total, k.uv, two)
        self._back(two, w.update_out, one)
        self._call("scale", *width, k.slope2, one)
        self._back(one, w.update, two)
        self._call("norm_back", *width, two, k.gates, total, k.uv)
        self._back(k.uv.view(3 * n, -1), w.vectors, three.view(3 * n, -1))
        self._call(
            "wide_backward",
            a,
            b,
            w.radial,
            w.length,
            edges.row_ptr,
            edges.sender,
            edges.receiver,
            edges.column,
            edges.order,
            edges.basis,
            edges.slope,
            w.filters,
            w.vector,
            w.vector_bias,
            kept.phi,
            v0,
            total,
            three,
            payload,
            by_v0,
            by_edge,
        )
        self._back(payload, w.payload_out, one)
        self._call("scale", *width, k.slope1, one)
        self._back(one, w.payload, into)
        self._call("relu_back", *width, into, k.s1, total)
        self._back(total, w.join, one)
        self._call("spread_back", *width, one, k.spread, w.spread, by_s0[a:b])

    # -- tools -------------------------------------------------------------------------------------------------

    def _product(self, x: Tensor, weight: Tensor, out: Tensor, inner: int) -> None:
        """Write `x[:, :inner] @ weight[:, :inner].T` into the first columns of `out`."""
        self._multiply(x[:, :inner], weight[:, :inner].t(), out[:, : len(weight)])

    def _back(self, grad: Tensor, weight: Tensor, out: Tensor) -> None:
        """Write the gradient by the input of `weight` (no spare columns) into the first columns of `out`."""
        inner = self.weights.inner(weight)
        self._multiply(grad[:, : len(weight)], weight[:, :inner], out[:, :inner])

    def _multiply(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        if self.direct:
            out.copy_(torch.mm(x.bfloat16(), weight.bfloat16()))
            return
        torch.mm(x.bfloat16().to(self.dtype) if self.rounded else x, weight, out=out)

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def _working_array(self, name: str, rows: int, parts: int) -> Tensor:
        """Return a working array `[rows, parts*L]`, zero where nothing was written yet; kept between calls."""
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
        held = self.workspace.arrays.get((name, stream))
        if held is None or len(held) < rows:
            held = torch.zeros(rows, parts * self.weights.length, dtype=self.dtype, device=self.device)
            self.workspace.arrays[name, stream] = held
        return held[:rows]

    def _scratch(self, name: str, rows: int, parts: int = 1) -> Tensor:
        return self._working_array(f"block {name}", rows, parts)

    def _call(self, name: str, *arguments: Tensor | float | None) -> None:
        getattr(self.steps, name)(*arguments)
