"""HydraGNN's PaiNN, for a stack of members: the mathematics of its graph foundation models, from the formulas.

It differs from the PaiNN of this package: atoms start from their atomic number alone (one scalar), so the first layer
has width 1; radial functions are `sin(n pi r / rc) / r` with a cosine cutoff; a message along the direction falls off
with another 1/r; vectors are mixed between layers; total charge and multiplicity are joined to the scalars after every
layer; and heads read the sum over atoms (`atomsieve.models.readout.PooledReadout`).

Formulas, by the numbers that comments here and in the fast path (`atomsieve.models.hydragnn.fast`, `native/hydragnn*`)
refer to; (5) to (8) are eqs. 7 to 10 of Schuett, Unke and Gastegger (ICML 2021), with another 1/r in (6). For an edge
from sender j to receiver i, d is the edge vector and r its length:

     (1)  rbf_n = sin(n pi r / rc) / r,  fc = (cos(pi r / rc) + 1) / 2 inside the cutoff rc, else 0
     (2)  c = d / ((r + 1e-9) r)
     (3)  W_v, W_e, W_s = (A rbf + b) fc
     (4)  p_v, p_e, p_s = A_2 SiLU(A_1 s + a_1) + a_2
     (5)  s_i += sum_j W_s p_s,j
     (6)  v_i += sum_j W_v p_v,j v_j + W_e p_e,j c
     (7)  U = v A_U,  V = v A_V;  a_vv, a_sv, a_ss = B_2 SiLU(B_1 [|V|, s] + b_1) + b_2
     (8)  s += a_sv U.V + a_ss;  v += a_vv U, but for the last layer
     (9)  s <- N_2 tanh(N_1 s + n_1) + n_2;  v <- v A_vec, but for the last layer
    (10)  s <- ReLU(P [s, charge, spin] + p)
    (11)  energy of a head = MLP(sum of s over the atoms)

Here they are written for automatic differentiation, for any device and any neighbour list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atomsieve.graphs.graph import EdgeGraph
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import Encoder, FastPath, MemberStack, Wanted
from atomsieve.models.hydragnn.config import HYDRAGNN, HydraGNNConfig
from atomsieve.models.layers import Seeds, StackedLinear, StackedMLP

SMALL = 1e-9
"""Angstrom, added to distances where directions are formed."""
NOTHING = 1e-24


@dataclass(frozen=True)
class EdgeView:
    """Edges as this encoder sees them.

    Attributes
    ----------
    vec : [K,E,3] Angstrom, a leaf of autograd when forces are computed.
    basis : [1 or K,E,R+1], radial functions times the cutoff, and last the cutoff itself.
    along : [1 or K,E,3], direction from receiver to sender over the distance, 1/Angstrom.
    """

    vec: Tensor
    basis: Tensor
    along: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The edge vectors, by which energies are differentiated."""
        return (self.vec,)

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Return gradients `[K,E,3]` by the edge vectors, which they are already."""
        return gradient


def sinc_basis(r: Tensor, n_basis: int, cutoff: float) -> Tensor:
    """Return `[..., R+1]` at distances r `[...]`: sin(n pi r / rc) / r times the cosine cutoff, and the cutoff."""
    r = r.unsqueeze(-1)
    n = torch.arange(1, n_basis + 1, device=r.device, dtype=r.dtype) * (math.pi / cutoff)
    cut = torch.where(r < cutoff, 0.5 * (torch.cos(r * (math.pi / cutoff)) + 1), 0)  # (1)
    return torch.cat([torch.sin(n * r) / r * cut, cut], -1)


def length(v: Tensor) -> Tensor:
    """Return the lengths `[K,N,F]` of vectors `[K,N,3,F]`; those below 1e-12 are zero, with all their derivatives.

    An atom without neighbours, or at a centre of symmetry, has such vectors; the second derivative that training needs
    is not finite there.
    """
    square = (v * v).sum(2)
    nothing = square < NOTHING
    return torch.where(nothing, 0, torch.sqrt(torch.where(nothing, 1, square)))


class HydraLayer(nn.Module):
    """One message, one update, and the maps to the width of the next layer."""

    def __init__(self, config: ModelConfig, seeds: Seeds, width: int, *, last: bool) -> None:
        super().__init__()
        hidden, biased = config.hidden, config.options_of(HydraGNNConfig).vector_bias
        self.width = width
        self.payload = StackedMLP(width, width, 3 * width, seeds)
        bound = math.sqrt(6.0 / (config.n_basis + 1 + width)) / math.sqrt(config.typical_neighbors / 3.0)
        self.filters = seeds.uniform(config.n_basis + 1, 3 * width, bound=bound)
        self.left = StackedLinear(width, width, seeds, bias=biased)
        self.right = StackedLinear(width, width, seeds, bias=biased)
        self.update = StackedMLP(2 * width, width, (2 if last else 3) * width, seeds)
        self.node_first = StackedLinear(width, hidden, seeds)
        self.node_second = StackedLinear(hidden, hidden, seeds)
        self.vector = None if last else StackedLinear(width, hidden, seeds, bias=biased)

    def forward(self, s: Tensor, v: Tensor | None, graph: EdgeGraph, edges: EdgeView) -> tuple[Tensor, Tensor | None]:
        """Turn scalars `[K,N,F]` and vectors `[K,N,3,F]` (None: zero) into those of width H; none after the last."""
        s, v = self._message(s, v, graph, edges)
        members, atoms, _, width = v.shape
        flat = v.reshape(members, 3 * atoms, width)
        left, right = (mix(flat).view(members, atoms, 3, width) for mix in (self.left, self.right))
        norm = length(right)  # (7)
        parts = self.update(torch.cat([norm, s], -1)).split(width, -1)
        a_sv, a_ss = parts[-2:]
        s = s + a_sv * (left * right).sum(2) + a_ss  # (8)
        s = self.node_second(torch.tanh(self.node_first(s)))  # (9)
        if self.vector is None:
            return s, None
        v = v + parts[0].unsqueeze(2) * left  # (8)
        return s, self.vector(v.reshape(members, 3 * atoms, width)).view(members, atoms, 3, s.shape[-1])

    def _message(self, s: Tensor, v: Tensor | None, graph: EdgeGraph, edges: EdgeView) -> tuple[Tensor, Tensor]:
        """Add the messages of its neighbours to each atom."""
        members, atoms, width = s.shape
        filters = torch.bmm(edges.basis, self.filters)  # (3)
        g_v, g_e, m_s = (filters * graph.senders(self.payload(s))).split(width, -1)  # (4), and the summands of (5)
        m_v = edges.along.unsqueeze(3) * g_e.unsqueeze(2)  # (6), second summand
        if v is None:
            v = s.new_zeros(members, atoms, 3, width)
        else:
            m_v = m_v + graph.senders(v) * g_v.unsqueeze(2)  # (6), first summand
        return graph.sum_edges(m_s, s), graph.sum_edges(m_v, v)  # (5), (6)


class HydraGNNPaiNN(Encoder[EdgeView]):
    """HydraGNN's PaiNN stack with `concat_node` conditioning where the model has charge and spin."""

    name = HYDRAGNN
    section = "hydragnn"
    Config = HydraGNNConfig
    bases = ("sinc",)
    force_kinds = ("conservative",)
    pooled = True
    raw_condition = True
    exportable = False

    def __init__(self, config: ModelConfig, seeds: Seeds) -> None:
        super().__init__(config, seeds)
        widths = [1, *[config.hidden] * (config.layers - 1)]
        self.layers = nn.ModuleList(
            HydraLayer(config, seeds, width, last=k == config.layers - 1) for k, width in enumerate(widths)
        )
        self.projector = StackedLinear(config.hidden + 2, config.hidden, seeds) if config.charge_spin else None

    def geometry(self, vec: Tensor, members: int, *, differentiable: bool) -> EdgeView:
        """Return basis and directions of edge vectors `vec [E,3]` (Angstrom)."""
        many = vec.detach().expand(members, *vec.shape)
        if differentiable:
            many.requires_grad_()
        r = torch.linalg.vector_norm(many, dim=2)
        far = r.unsqueeze(2)
        return EdgeView(many, sinc_basis(r, self.config.n_basis, self.config.cutoff), many / (far + SMALL) / far)

    def forward(
        self, graph: EdgeGraph, geometry: EdgeView, condition: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, Tensor | None]:
        """Return scalars `[K,N,H]` after the last layer; there are no vectors then."""
        members = geometry.vec.shape[0]
        s = graph.numbers.to(geometry.vec.dtype).view(1, -1, 1).expand(members, -1, -1)
        v: Tensor | None = None
        for layer in self.layers:
            s, v = layer(s, v, graph, geometry)
            if self.projector is not None:
                assert condition is not None
                s = self.projector(torch.cat([s, condition], -1))
            s = torch.relu(s)  # (10)
        return s, v

    @classmethod
    def head_widths(cls, config: ModelConfig) -> tuple[int, ...]:
        """Return the widths of a head's first layers and of those after them."""
        options = config.options_of(HydraGNNConfig)
        return (*options.shared, *options.heads)

    def fast_path(self, ensemble: MemberStack, precision: str, device: torch.device) -> FastPath | None:
        """Return the evaluation without autograd, for two layers with charge and spin where its kernels are there."""
        from atomsieve.models.hydragnn.fast.ensemble import FastEnsemble, fast_serves

        return FastEnsemble(ensemble, precision, device) if fast_serves(ensemble, device) else None
