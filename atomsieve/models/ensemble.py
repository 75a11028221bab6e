"""Ensemble: K members with shared heads, evaluated together on shared geometry.

Deep: K networks, stacked. Shallow: K decoders on one encoder (Kellner and Ceriotti, Mach. Learn.: Sci. Technol. 5,
035006, 2024): the encoder is evaluated once, and the forces of the mean cost one backward pass.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atomsieve.errors import UsageError, unknown
from atomsieve.graphs.graph import Graph
from atomsieve.models.config import KINDS, HeadSpec, Kind, ModelConfig
from atomsieve.models.elements import MAX_NUMBER
from atomsieve.models.encoder import FastPath, Wanted, build_encoder
from atomsieve.models.layers import Seeds, StackedLinear
from atomsieve.models.output import EnsembleOutput, forces_of, virial_of
from atomsieve.models.readout import PooledReadout, Readout
from atomsieve.models.repulsion import ShortEdges, add_repulsion, find_short_edges

log = logging.getLogger(__name__)


@functools.cache
def _warn_once(line: str) -> None:
    log.warning(line)


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
        self.readout: Readout | PooledReadout = (
            PooledReadout(config.hidden, self.encoder.head_widths(config), len(heads), streams)
            if self.encoder.pooled
            else Readout(config, len(heads), streams)
        )
        embeds = config.charge_spin and not self.encoder.raw_condition
        self.condition = StackedLinear(2, config.hidden, below) if embeds else None
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
        self, numbers: NDArray[np.uint8], ptr: NDArray[np.int64], head_index: NDArray[Any] | int
    ) -> NDArray[np.float64]:
        """Return the sum of element references of each structure, [S] eV; NaN where the head lacks an element.

        head_index : of all structures, or [S] integers, or [S,H] floating: the weight of every head in each.
        """
        if isinstance(head_index, np.ndarray) and head_index.ndim == 2:
            of_heads = np.stack([self.reference_energy(numbers, ptr, k) for k in range(len(self.heads))], axis=1)
            return np.asarray(np.where(head_index > 0, head_index * of_heads, 0.0).sum(1))
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

        head_index : [S] int64, the head of each structure; or [S,H] floating, the weight of every head in each: then
            energies are the weighted sums of those of the heads, by one pass of the encoder and one backward pass.
        charge, spin : [S], needed if the model is conditioned on them.
        create_graph : keep what a loss on forces needs.
        force_members : of a shallow ensemble, the members whose forces (and virials) are computed, each by a separate
            backward pass; None gives those of the mean by a single one.
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
            vec = graph.vec.to(dtype)
            short = self._find_short_edges(graph, vec)
            seen_vec = vec if short is None else short.lengthen(vec)
            geometry = self.encoder.geometry(seen_vec, self.encoders, differentiable=differentiate)
            s, v = self.encoder(graph, geometry, self._condition(graph, charge, spin, dtype), wanted)
            found = self.readout.read(s, v, graph, head_index, [h.scale for h in self.heads], wanted)
            energy, direct = found.energy, found.direct
            seen = s.detach(), found.local.detach() if found.of_atoms else None, self.shallow, found.heads
            if not differentiate:
                direct = self._select_members(direct, force_members) if forces and direct is not None else None
                return self._repel(EnsembleOutput(energy, direct, None, *seen), graph, short)
            grads = self._gradients(found.local, geometry.leaves, create_graph, force_members)
            wanted.geometry, wanted.parameters = False, True
            edge_grad = geometry.pull_back(*grads)
            if short is not None:
                edge_grad = short.pull_back(edge_grad)
            total = forces_of(edge_grad, graph) if forces else None
            virial = virial_of(edge_grad, graph) if stress else None
        if not create_graph:
            energy = energy.detach()
        return self._repel(EnsembleOutput(energy, total, virial, *seen), graph, short)

    def _find_short_edges(self, graph: Graph, vec: Tensor) -> ShortEdges | None:
        """Return the edges on which the repulsion acts, None if there are none."""
        if self.config.repulsion == "none":
            return None
        short = find_short_edges(graph, vec)
        return short if len(short.rows) else None

    def _repel(self, found: EnsembleOutput, graph: Graph, short: ShortEdges | None) -> EnsembleOutput:
        """Return what the network gives with the repulsion of close atoms."""
        return found if short is None else add_repulsion(found, graph, short, self.config.cutoff)

    def _select_members(self, values: Tensor, members: Sequence[int] | None) -> Tensor:
        """Return the mean `[1,...]` of values `[K,...]` of a shallow ensemble, or those of some members."""
        if not self.shallow:
            return values
        return values.mean(0, keepdim=True) if members is None else values[list(members)]

    def _gradients(
        self, local: Tensor, leaves: tuple[Tensor, ...], create_graph: bool, members: Sequence[int] | None
    ) -> tuple[Tensor | None, ...]:
        """Return gradients of energies `[K,N or S]` by the shared geometry, with the leading axis of the forces.

        None for a leaf that nothing depends on.
        """
        if not self.shallow:
            return torch.autograd.grad(local.sum(), leaves, create_graph=create_graph, allow_unused=True)
        if members is None:
            return torch.autograd.grad(local.mean(0).sum(), leaves, create_graph=create_graph, allow_unused=True)
        if not members:
            raise UsageError("force_members names no member; None gives the forces of the mean")
        last = len(members) - 1
        passes = [
            torch.autograd.grad(
                local[k].sum(),
                leaves,
                create_graph=create_graph,
                retain_graph=create_graph or place < last,
                allow_unused=True,
            )
            for place, k in enumerate(members)
        ]
        return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*passes, strict=True))

    def fast_path(self, precision: str, device: torch.device) -> FastPath | None:
        """Return the encoder's faster way to evaluate this ensemble, None if it has none; weights are copied.

        None for a model with a repulsion, too: a fast path computes what the encoder alone gives.
        """
        if self.config.repulsion != "none":
            return None
        return self.encoder.fast_path(self, precision, device)

    def tell_slowdown(self, device: torch.device) -> None:
        """Log, once in a process, why its encoder takes a slower path on a device, if it does."""
        if line := self.encoder.find_slowdown(device):
            _warn_once(line)

    def is_shared(self, name: str) -> bool:
        """Return whether all members share the parameter of this name; its leading axis then has length 1."""
        return self.shallow and not name.startswith("readout.")

    def take(self, members: Sequence[int]) -> Ensemble:
        """Return a new ensemble of some of the members, with copies of their weights."""
        chosen = Ensemble(self.config, self.heads, [self.seeds[k] for k in members], self.kind)
        index = list(members)
        chosen.load_state_dict({n: t if self.is_shared(n) else t[index] for n, t in self.state_dict().items()})
        dtype, device = next(self.parameters()).dtype, next(self.parameters()).device
        return chosen.to(dtype=dtype, device=device).train(self.training)

    def _condition(self, graph: Graph, charge: Tensor | None, spin: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if not self.config.charge_spin:
            return None
        if charge is None or spin is None:
            raise UsageError("this model is conditioned on charge and spin: give both for every structure")
        if self.condition is None:  # the encoder takes them as they are
            state = torch.stack([charge, spin], dim=1).to(dtype).index_select(0, graph.structure)
            return state.expand(self.encoders, -1, -1)
        state = torch.stack([charge, spin - 1], dim=1).to(dtype).expand(self.encoders, -1, -1)
        condition: Tensor = self.condition(state).index_select(1, graph.structure)
        return condition
