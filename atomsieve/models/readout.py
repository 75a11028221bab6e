"""Readouts: from the features of atoms to energies, of every head and every member."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from atomsieve.graphs.graph import Graph
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import Wanted
from atomsieve.models.grouped_readout import Groups, read_groups
from atomsieve.models.layers import Seeds


@dataclass(frozen=True)
class Reading:
    """Energies and direct forces that a readout computes from features, scales of the heads included.

    Attributes
    ----------
    local : [K,N] eV of each atom, or [K,S] eV of each structure where a head reads sums over atoms; its sum is the
        energy of the batch.
    energy : [K,S] float64, eV.
    direct : [K,N,3] eV/Angstrom, direct forces, or None.
    of_atoms : `local` is of atoms.
    heads : [K,S,H] float64 eV, without gradient, energy by each head, where heads were mixed: NaN for a head that no
        structure gives weight; else None.
    """

    local: Tensor
    energy: Tensor
    direct: Tensor | None
    of_atoms: bool
    heads: Tensor | None = None


class Readout(nn.Module):
    """Per-atom energies (and direct forces) of every head, for every member."""

    def __init__(self, config: ModelConfig, n_heads: int, seeds: Seeds) -> None:
        super().__init__()
        width, hidden = config.hidden, config.head_hidden
        bound = math.sqrt(6.0 / (width + hidden))
        self.hidden_weight = seeds.uniform(n_heads, width, hidden, bound=bound)
        self.hidden_bias = seeds.zeros(n_heads, 1, hidden)
        self.out_weight = seeds.uniform(n_heads, hidden, 1, bound=0.3 * math.sqrt(6.0 / (hidden + 1)))
        self.out_bias = seeds.zeros(n_heads, 1, 1)
        self.gate_weight = seeds.uniform(n_heads, hidden, width, bound=bound) if config.forces == "direct" else None

    def forward(self, s: Tensor, v: Tensor | None, head: int) -> tuple[Tensor, Tensor | None]:
        """Return energies `[K,N]` and direct forces `[K,N,3]` (or None) of one head, in units of its scale.

        s : [K,N,F], or [1,N,F] for features that all members share; v alike, [K,N,3,F].
        """
        if s.shape[0] < self.hidden_weight.shape[0]:
            return self._read_shared(s[0], v, head)
        hidden = torch.nn.functional.silu(torch.baddbmm(self.hidden_bias[:, head], s, self.hidden_weight[:, head]))
        energy = torch.baddbmm(self.out_bias[:, head], hidden, self.out_weight[:, head]).squeeze(2)
        if self.gate_weight is None or v is None:
            return energy, None
        gate = torch.bmm(hidden, self.gate_weight[:, head])
        return energy, (v * gate.unsqueeze(2)).sum(3)

    def _read_shared(self, s: Tensor, v: Tensor | None, head: int) -> tuple[Tensor, Tensor | None]:
        """Read features `[N,F]` that all members share: their hidden layers are one matrix product."""
        members, _, width, hidden_width = self.hidden_weight.shape
        weight = self.hidden_weight[:, head].transpose(0, 1).reshape(width, -1)
        hidden = torch.nn.functional.silu(torch.addmm(self.hidden_bias[:, head].reshape(1, -1), s, weight))
        many = hidden.view(s.shape[0], members, hidden_width).transpose(0, 1)
        energy = torch.baddbmm(self.out_bias[:, head], many, self.out_weight[:, head]).squeeze(2)
        if self.gate_weight is None or v is None:
            return energy, None
        gate = torch.bmm(many, self.gate_weight[:, head])
        return energy, (v * gate.unsqueeze(2)).sum(3)

    def select(
        self, s: Tensor, v: Tensor | None, head: Tensor, structure: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return energies `[K,N]` eV and direct forces `[K,N,3]` (or None) of atoms whose heads differ.

        Evaluates every head for every atom: a graph of fixed operations, as exports need.

        head : [S] int64 of each structure; structure : [N] int64 of each atom; scales : [H] eV.
        """
        head = head.index_select(0, structure)
        members, heads = self.hidden_weight.shape[:2]
        atoms, width = s.shape[1:]
        weight = self.hidden_weight.transpose(1, 2).reshape(members, width, -1)
        if s.shape[0] < members:  # features that all members share
            s = s.expand(members, -1, -1)
        hidden = torch.baddbmm(self.hidden_bias.reshape(members, 1, -1), s, weight)
        hidden = torch.nn.functional.silu(hidden).view(members, atoms, heads, self.hidden_weight.shape[3])
        energy = (hidden * self.out_weight.reshape(members, 1, heads, -1)).sum(3) + self.out_bias.view(
            members, 1, heads
        )
        chosen = (head.unsqueeze(1) == torch.arange(heads, device=head.device)).to(s.dtype) * scales
        if self.gate_weight is None or v is None:
            return (energy * chosen).sum(2), None
        of_head = (hidden * chosen.unsqueeze(2)).flatten(2)
        gate = torch.bmm(of_head, self.gate_weight.reshape(members, -1, width))
        return (energy * chosen).sum(2), (v * gate.unsqueeze(2)).sum(3)

    def read(
        self,
        s: Tensor,
        v: Tensor | None,
        graph: Graph,
        heads: Tensor,
        scales: Sequence[float],
        wanted: Wanted | None = None,
    ) -> Reading:
        """Read all structures of a batch.

        heads : [S] int64, the head of each structure, or [S,H] floating, the weight of every head in each.
        scales : [H] eV.
        wanted : gradients that will be asked for; None for any.
        """
        if heads.is_floating_point():
            return self._mix_heads(s, v, graph, heads, scales)
        if wanted is not None and wanted.twice and self.gate_weight is None and graph.n_atoms:
            local = self._read_grouped(s, heads.index_select(0, graph.structure), scales, wanted)
            return Reading(local, pool(local.double(), graph), None, True)
        present = torch.unique(heads).tolist() or [0]  # without structures, any head gives nothing
        if len(present) == 1:
            energy, direct = self(s, v, present[0])
            scale = scales[present[0]]
            local = energy * scale
            return Reading(local, pool(local.double(), graph), None if direct is None else direct * scale, True)
        atom_head = heads.index_select(0, graph.structure)
        order, energies, forces = [], [], []
        for head in present:
            chosen = torch.nonzero(atom_head == head).squeeze(1)
            own_v = None if self.gate_weight is None or v is None else v.index_select(1, chosen)
            energy, direct = self(s.index_select(1, chosen), own_v, head)
            order.append(chosen)
            energies.append(energy * scales[head])
            if direct is not None:
                forces.append(direct * scales[head])
        back = torch.argsort(torch.cat(order))
        local = torch.cat(energies, dim=1).index_select(1, back)
        found = torch.cat(forces, dim=1).index_select(1, back) if forces else None
        return Reading(local, pool(local.double(), graph), found, True)

    def _read_grouped(self, s: Tensor, head: Tensor, scales: Sequence[float], wanted: Wanted) -> Tensor:
        """Return energies `[K,N]` of atoms with heads `[N]`, as a loss on forces differentiates them fastest."""
        order = None if bool((head.diff() >= 0).all()) else torch.argsort(head, stable=True)
        if order is not None:
            s, head = s.index_select(1, order), head.index_select(0, order)
        groups = Groups.build(head, scales, s.dtype)
        local = read_groups(s, self.hidden_weight, self.hidden_bias, self.out_weight, self.out_bias, groups, wanted)
        return local if order is None else local.index_select(1, torch.argsort(order))

    def _mix_heads(
        self, s: Tensor, v: Tensor | None, graph: Graph, weights: Tensor, scales: Sequence[float]
    ) -> Reading:
        """Mix all heads that have weight in any structure; the encoder was evaluated once for all of them."""
        structures, heads = weights.shape
        of_atoms = weights.to(s.dtype).index_select(0, graph.structure)
        members = self.hidden_weight.shape[0]
        local = s.new_zeros(members, s.shape[1])
        said = weights.new_full((members, structures, heads), torch.nan, dtype=torch.float64)
        total: Tensor | None = None
        for head in torch.nonzero((weights > 0).any(0)).squeeze(1).tolist():
            energy, direct = self(s, v, head)
            energy = energy * scales[head]
            said[:, :, head] = pool(energy.detach().double(), graph)
            local = local + energy * of_atoms[:, head]
            if direct is not None:
                share = direct * (scales[head] * of_atoms[:, head]).view(1, -1, 1)
                total = share if total is None else total + share
        return Reading(local, pool(local.double(), graph), total, True, said)


class PooledReadout(nn.Module):
    """Heads that read the sum over atoms: each a chain of linear maps and ReLUs, for every member (HydraGNN).

    weights : [K,H,inputs,outputs] of each map; biases : [K,H,1,outputs].
    """

    def __init__(self, features: int, hidden: Sequence[int], n_heads: int, seeds: Seeds) -> None:
        """Build heads that read `features` sums and have hidden layers of these widths."""
        super().__init__()
        widths = [features, *hidden, 1]
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList(seeds.uniform(n_heads, i, o, bound=math.sqrt(6.0 / (i + o))) for i, o in pairs)
        self.biases = nn.ParameterList(seeds.zeros(n_heads, 1, o) for _, o in pairs)

    def forward(self, x: Tensor, first: int, stop: int) -> Tensor:
        """Return energies `[K,B,S]` of heads `first` to `stop`, in units of their scales.

        x : [K,S,F], sums over atoms; [1,S,F] where members share them.
        """
        members, many = self.weights[0].shape[0], stop - first
        structures, width = x.shape[1:]
        y = x.expand(members, -1, -1).unsqueeze(1).expand(-1, many, -1, -1).reshape(members * many, structures, width)
        last = len(self.weights) - 1
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            y = torch.baddbmm(bias[:, first:stop].flatten(0, 1), y, weight[:, first:stop].flatten(0, 1))
            if place < last:
                y = torch.relu(y)
        return y.view(members, many, structures)

    def select(
        self, s: Tensor, v: Tensor | None, head: Tensor, structure: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return energies `[K,S]` float64, eV, of structures whose heads differ; arguments as of `Readout.select`.

        Evaluates every head for every structure, and sums over atoms in FP64: a graph of fixed operations.
        """
        x = torch.zeros(s.shape[0], head.shape[0], s.shape[2], dtype=torch.float64, device=s.device)
        home = structure.view(1, -1, 1).expand(s.shape[0], -1, s.shape[2])
        x = x.scatter_add(1, home, s.double()).to(s.dtype)
        heads = scales.shape[0]
        chosen = (head.unsqueeze(0) == torch.arange(heads, device=head.device).unsqueeze(1)).double()  # [H,S]
        return (self(x, 0, heads).double() * chosen * scales.double().unsqueeze(1)).sum(1), None

    def read(
        self,
        s: Tensor,
        v: Tensor | None,
        graph: Graph,
        heads: Tensor,
        scales: Sequence[float],
        wanted: Wanted | None = None,
    ) -> Reading:
        """Read all structures of a batch; arguments as of `Readout.read`. Sums over atoms are taken in FP64."""
        x = s.new_zeros(s.shape[0], graph.n_structures, s.shape[2], dtype=torch.float64)
        x = x.index_add(1, graph.structure, s.double()).to(s.dtype)
        if heads.is_floating_point():
            scale = torch.as_tensor(scales, dtype=torch.float64, device=s.device).view(1, -1, 1)
            said = self(x, 0, heads.shape[1]).double() * scale  # [K,H,S]
            energy = (said * heads.double().t()).sum(1)
            return Reading(energy, energy, None, False, said.detach().transpose(1, 2))
        present = torch.unique(heads).tolist() or [0]  # without structures, any head gives nothing
        order, energies = [], []
        for head in present:
            chosen = torch.nonzero(heads == head).squeeze(1)
            own = x if len(present) == 1 else x.index_select(1, chosen)
            order.append(chosen)
            energies.append(self(own, head, head + 1)[:, 0].double() * scales[head])
        energy = torch.cat(energies, 1).index_select(1, torch.argsort(torch.cat(order)))
        return Reading(energy, energy, None, False)


def pool(of_atoms: Tensor, graph: Graph) -> Tensor:
    """Sum `[K,N]` over the atoms of each structure: `[K,S]`."""
    out = of_atoms.new_zeros(graph.n_structures, of_atoms.shape[0])
    return out.index_add(0, graph.structure, of_atoms.t()).t()
