"""Ensemble: K members with shared heads, evaluated together on shared geometry.

Deep: K networks, stacked. Shallow: K decoders on one encoder (Kellner and Ceriotti, Mach. Learn.: Sci. Technol. 5,
035006, 2024): the encoder is evaluated once, and the forces of the mean cost one backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atomsieve.errors import UsageError, unknown
from atomsieve.graphs.graph import Graph
from atomsieve.models.basis import Geometry
from atomsieve.models.config import KINDS, HeadSpec, Kind, ModelConfig
from atomsieve.models.elements import MAX_NUMBER
from atomsieve.models.layers import Seeds, StackedLinear
from atomsieve.models.message import Wanted
from atomsieve.models.registry import build_encoder


@dataclass(frozen=True)
class EnsembleOutput:
    """What the members say of a batch, element references left out.

    Attributes
    ----------
    energy : [K,S] float64, eV.
    forces : [K,N,3] eV/Angstrom, or None. Of a shallow ensemble [1,N,3], those of the mean of the members, or
        [M,N,3] of the M members that were asked for.
    virial : [K,S,3,3] eV, derivative of the energy by strain (stress times volume, ASE sign), or None; of a shallow
        ensemble as `forces`.
    atom_energy : [K,N] eV, the shares of the atoms in `energy`, without gradient.
    features : [K,N,F], scalars that each encoder gives each atom, without gradient; [1,N,F] of a shallow ensemble.
    shared : the ensemble is shallow.
    """

    energy: Tensor
    forces: Tensor | None
    virial: Tensor | None
    atom_energy: Tensor
    features: Tensor
    shared: bool = False


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
            return self._shared(s[0], v, head)
        hidden = torch.nn.functional.silu(torch.baddbmm(self.hidden_bias[:, head], s, self.hidden_weight[:, head]))
        energy = torch.baddbmm(self.out_bias[:, head], hidden, self.out_weight[:, head]).squeeze(2)
        if self.gate_weight is None or v is None:
            return energy, None
        gate = torch.bmm(hidden, self.gate_weight[:, head])
        return energy, (v * gate.unsqueeze(2)).sum(3)

    def _shared(self, s: Tensor, v: Tensor | None, head: int) -> tuple[Tensor, Tensor | None]:
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

    def select(self, s: Tensor, v: Tensor | None, head: Tensor, scales: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return energies `[K,N]` eV and direct forces `[K,N,3]` (or None) of atoms whose heads differ.

        Evaluates every head for every atom: a graph of fixed operations, as exports need.

        head : [N] int64; scales : [H] eV.
        """
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


class Ensemble(nn.Module):
    """K members of one architecture with the same heads.

    Parameters have a leading member axis. Member k of a deep ensemble depends on `seeds[k]` alone, and its results on
    its own weights alone. In a shallow ensemble the axis has length 1 for the encoder (and the conditioning on charge
    and spin), which depends on `seeds[0]`; member 0 then starts as member 0 of the deep one.
    """

    def __init__(
        self, config: ModelConfig, heads: Sequence[HeadSpec], seeds: Sequence[int], kind: Kind = "deep"
    ) -> None:
        super().__init__()
        names = [h.name for h in heads]
        if not heads or len(set(names)) != len(names):
            raise UsageError(f"an ensemble needs heads of different names, got {names}")
        if not seeds:
            raise UsageError("an ensemble needs at least one member, got no seeds")
        if kind not in KINDS:
            raise unknown("kind of ensemble", kind, KINDS)
        self.config = config
        self.heads = list(heads)
        self.seeds = list(seeds)
        self.kind: Kind = kind
        streams = Seeds(self.seeds)
        below = streams.first() if self.shallow else streams
        self.encoder = build_encoder(config, below)
        self.readout = Readout(config, len(heads), streams)
        self.condition = StackedLinear(2, config.hidden, below) if config.charge_spin else None
        table = torch.full((len(heads), MAX_NUMBER + 1), torch.nan, dtype=torch.float64)
        for k, head in enumerate(heads):
            for number, energy in head.references.items():
                table[k, number] = energy
        self.references = table  # [H,119] eV, NaN where a head lacks the element

    @property
    def members(self) -> int:
        """Number of members K."""
        return len(self.seeds)

    @property
    def shallow(self) -> bool:
        """True if the members are decoders on one encoder."""
        return self.kind == "shallow"

    @property
    def encoders(self) -> int:
        """Number of encoders: K, or 1 of a shallow ensemble. So many parts are independent of each other."""
        return 1 if self.shallow else self.members

    def head_index(self, name: str) -> int:
        """Return the index of a head, or raise UsageError naming the heads and the nearest."""
        for k, head in enumerate(self.heads):
            if head.name == name:
                return k
        raise unknown("head", name, [h.name for h in self.heads])

    def reference_energy(
        self, numbers: NDArray[np.uint8], ptr: NDArray[np.int64], head_index: NDArray[np.integer] | int
    ) -> NDArray[np.float64]:
        """Return the sum of element references of each structure, [S] eV; NaN where the head lacks an element."""
        counts = np.diff(ptr)
        heads = np.broadcast_to(np.asarray(head_index), counts.shape)
        per_atom = self.references.numpy()[np.repeat(heads, counts), numbers]
        total = np.zeros(len(counts))
        filled = counts > 0
        total[filled] = np.add.reduceat(per_atom, ptr[:-1][filled]) if filled.any() else 0.0
        return total

    def forward(
        self,
        graph: Graph,
        head_index: Tensor,
        charge: Tensor | None = None,
        spin: Tensor | None = None,
        *,
        forces: bool = True,
        stress: bool = False,
        create_graph: bool = False,
        force_members: Sequence[int] | None = None,
    ) -> EnsembleOutput:
        """Evaluate all members on a batch.

        head_index : [S] int64, the head of each structure.
        charge, spin : [S], needed if the model is conditioned on them.
        create_graph : keep what a loss on forces needs.
        force_members : of a shallow ensemble, the members whose forces (and virials) are wanted, each by a backward
            pass of its own; None gives those of the mean by a single one.
        """
        if force_members is not None and not self.shallow:
            raise UsageError("force_members is for a shallow ensemble; a deep one gives the forces of every member")
        conservative = self.config.forces == "conservative"
        if stress and not conservative:
            raise UsageError("a model with direct forces gives no stress; train one with forces: conservative")
        differentiate = conservative and (forces or stress)
        wanted = Wanted(geometry=differentiate, parameters=not differentiate, twice=create_graph)
        dtype = next(self.parameters()).dtype
        with torch.set_grad_enabled(differentiate or torch.is_grad_enabled()):
            geometry = Geometry.build(graph.vec.to(dtype), self.config, self.encoders, differentiable=differentiate)
            s, v = self.encoder(graph, geometry, self._condition(graph, charge, spin, dtype), wanted)
            atom_energy, direct = self._read(s, v, graph, head_index)
            energy = _pool(atom_energy.double(), graph)
            seen = atom_energy.detach(), s.detach()
            if not differentiate:
                direct = self._chosen(direct, force_members) if forces and direct is not None else None
                return EnsembleOutput(energy, direct, None, *seen, self.shallow)
            grads = self._gradients(atom_energy, (geometry.basis, geometry.unit), create_graph, force_members)
            wanted.geometry, wanted.parameters = False, True
            edge_grad = geometry.pull_back(*grads)
            total = _forces(edge_grad, graph) if forces else None
            virial = _virial(edge_grad, graph) if stress else None
        if not create_graph:
            energy = energy.detach()
        return EnsembleOutput(energy, total, virial, *seen, self.shallow)

    def _chosen(self, values: Tensor, members: Sequence[int] | None) -> Tensor:
        """Return what a shallow ensemble gives of values `[K,...]`: the mean `[1,...]`, or some members."""
        if not self.shallow:
            return values
        return values.mean(0, keepdim=True) if members is None else values[list(members)]

    def _gradients(
        self, atom_energy: Tensor, leaves: tuple[Tensor, Tensor], create_graph: bool, members: Sequence[int] | None
    ) -> tuple[Tensor, ...]:
        """Return gradients of the energies `[K,N]` by the shared geometry, with the leading axis of the forces."""
        if not self.shallow:
            return torch.autograd.grad(atom_energy.sum(), leaves, create_graph=create_graph)
        if members is None:
            return torch.autograd.grad(atom_energy.mean(0).sum(), leaves, create_graph=create_graph)
        if not members:
            raise UsageError("force_members names no member; None gives the forces of the mean")
        last = len(members) - 1
        passes = [
            torch.autograd.grad(
                atom_energy[k].sum(), leaves, create_graph=create_graph, retain_graph=create_graph or place < last
            )
            for place, k in enumerate(members)
        ]
        return torch.cat([basis for basis, _ in passes]), torch.cat([unit for _, unit in passes])

    def is_shared(self, name: str) -> bool:
        """Say whether all members share the parameter of this name; its leading axis then has length 1."""
        return self.shallow and not name.startswith("readout.")

    def take(self, members: Sequence[int]) -> Ensemble:
        """Return a new ensemble of some of the members, with copies of their weights."""
        chosen = Ensemble(self.config, self.heads, [self.seeds[k] for k in members], self.kind)
        index = list(members)
        chosen.load_state_dict({n: t if self.is_shared(n) else t[index] for n, t in self.state_dict().items()})
        dtype, device = next(self.parameters()).dtype, next(self.parameters()).device
        return chosen.to(dtype=dtype, device=device).train(self.training)

    def _condition(self, graph: Graph, charge: Tensor | None, spin: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if self.condition is None:
            return None
        if charge is None or spin is None:
            raise UsageError("this model is conditioned on charge and spin: give both for every structure")
        state = torch.stack([charge, spin - 1], dim=1).to(dtype).expand(self.encoders, -1, -1)
        return self.condition(state).index_select(1, graph.structure)

    def _read(self, s: Tensor, v: Tensor | None, graph: Graph, head_index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return per-atom energies `[K,N]` (eV) and direct forces `[K,N,3]` of each atom's head."""
        present = torch.unique(head_index).tolist()
        if len(present) == 1:
            energy, direct = self.readout(s, v, present[0])
            scale = self.heads[present[0]].scale
            return energy * scale, None if direct is None else direct * scale
        atom_head = head_index.index_select(0, graph.structure)
        order, energies, forces = [], [], []
        for head in present:
            chosen = torch.nonzero(atom_head == head).squeeze(1)
            own_v = None if self.readout.gate_weight is None or v is None else v.index_select(1, chosen)
            energy, direct = self.readout(s.index_select(1, chosen), own_v, head)
            scale = self.heads[head].scale
            order.append(chosen)
            energies.append(energy * scale)
            if direct is not None:
                forces.append(direct * scale)
        back = torch.argsort(torch.cat(order))
        energy = torch.cat(energies, dim=1).index_select(1, back)
        return energy, torch.cat(forces, dim=1).index_select(1, back) if forces else None


def _pool(atom_energy: Tensor, graph: Graph) -> Tensor:
    """Sum `[K,N]` over the atoms of each structure: `[K,S]`."""
    out = atom_energy.new_zeros(graph.n_structures, atom_energy.shape[0])
    return out.index_add(0, graph.structure, atom_energy.t()).t()


def _forces(edge_grad: Tensor, graph: Graph) -> Tensor:
    """Sum edge gradients `[K,E,3]` into forces `[K,N,3]`: +g on the receiver, -g on the sender."""
    members, edges, _ = edge_grad.shape
    flat = edge_grad.permute(1, 0, 2).reshape(edges, 3 * members)
    out = flat.new_zeros(graph.n_atoms, 3 * members)
    out = out.index_add(0, graph.neighbors.receiver, flat).index_add(0, graph.neighbors.sender, -flat)
    return out.view(graph.n_atoms, members, 3).permute(1, 0, 2)


def _virial(edge_grad: Tensor, graph: Graph) -> Tensor:
    """Sum vec (x) gradient over the edges of each structure, symmetrised: `[K,S,3,3]`."""
    members, edges, _ = edge_grad.shape
    pair = (graph.vec.to(edge_grad.dtype).view(1, edges, 3, 1) * edge_grad.unsqueeze(2)).double()
    flat = pair.permute(1, 0, 2, 3).reshape(edges, 9 * members)
    home = graph.structure.index_select(0, graph.neighbors.receiver)
    total = flat.new_zeros(graph.n_structures, 9 * members).index_add(0, home, flat)
    virial = total.view(graph.n_structures, members, 3, 3).permute(1, 0, 2, 3)
    return 0.5 * (virial + virial.transpose(2, 3))
