"""The ensemble as one function of arrays: energies, forces, virial and their spread, ready to be traced and lowered.

Traced together with the backward pass inside, it becomes a graph of plain tensor operations without autograd, which
every format can hold.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from atomsieve.errors import UsageError, unknown
from atomsieve.export.interface import ENERGY, OUTPUTS, Slot, inputs, outputs
from atomsieve.graphs.table import TableGraph, gather_sent
from atomsieve.models import Ensemble, set_precision
from atomsieve.models.basis import Geometry
from atomsieve.models.encoder import EdgeGeometry, Wanted
from atomsieve.models.layers import StackedLinear
from atomsieve.models.messages.table import make_paired_edges
from atomsieve.models.repulsion import PairTables, TablePairs, pair_tables, repel_table, turn_gradient


def needs_reverse(ensemble: Ensemble) -> bool:
    """Return whether exports need the reverse table: lists may be truncated, or edges are read outside of messages."""
    return ensemble.config.max_neighbors is not None or not ensemble.encoder.edges_in_messages_only


class Functional(nn.Module):
    """All members on one batch; inputs and outputs are those of `atomsieve.export.interface`, in order.

    Attributes
    ----------
    inputs, outputs : the slots.
    dtype : working precision of geometry, sums and readout.
    """

    scales: Tensor
    references: Tensor
    beyond: Tensor
    undefined: Tensor
    radii: Tensor
    powers: Tensor

    def __init__(
        self,
        ensemble: Ensemble,
        *,
        precision: str,
        kind: str,
        members: bool = False,
        inline: bool = False,
        moments: bool = False,
        low_precision_products: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Take a copy of the ensemble.

        precision : fp64, fp32 or bf16. bf16 rounds the weights of matrix products to BF16.
        kind : "forces" for everything, "energy" for energies alone.
        members : also give the forces of each member.
        inline : form filters by sums instead of matrix products, for compilers that fuse them.
        moments : sum over neighbours before applying filters, for what fuses nothing.
        low_precision_products : for bf16, multiply in BF16; else in FP32 on the rounded weights.
        """
        super().__init__()
        if kind not in OUTPUTS:
            raise unknown("kind of outputs", kind, OUTPUTS)
        config = ensemble.config
        if not ensemble.encoder.exportable:
            raise UsageError(f"an ensemble with encoder {config.encoder} cannot be exported; use --backend native")
        self.kind, self.members, self.inline, self.moments = kind, members, inline, moments
        self.model = set_precision(copy.deepcopy(ensemble), precision).eval().requires_grad_(False)
        if precision == "bf16" and not low_precision_products:
            for layer in self.model.modules():
                if isinstance(layer, StackedLinear):
                    layer.weight.data = layer.weight.data.bfloat16().float()
                    layer.low_precision = False
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.conservative = config.forces == "conservative"
        self.paired = not needs_reverse(ensemble)
        self.inputs: tuple[Slot, ...] = inputs(charge_spin=config.charge_spin, truncated=not self.paired)
        self.outputs: tuple[Slot, ...] = outputs(
            kind, conservative=self.conservative, members=members, shallow=ensemble.shallow
        )
        scales = torch.tensor([h.scale for h in ensemble.heads], dtype=torch.float64)
        self.register_buffer("scales", scales.to(self.dtype))
        self.register_buffer("references", ensemble.references.clone())
        self.register_buffer("undefined", torch.tensor(torch.nan, dtype=torch.float64))
        # An empty place of the table gets this vector, on which the basis and its slope are zero.
        self.register_buffer("beyond", torch.tensor([config.cutoff, 0.0, 0.0], dtype=torch.float64))
        self.repulsive = config.repulsion != "none"
        if self.repulsive:
            for name, table in pair_tables(self.dtype, torch.device("cpu"))._asdict().items():
                self.register_buffer(name, table.clone())
        self.to(device or torch.device("cpu"))

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Evaluate a batch."""
        given = dict(zip([s.name for s in self.inputs], arrays, strict=True))
        numbers, structure, head = given["numbers"].long(), given["structure"], given["head"]
        neighbors, places = self._senders(given["neighbors"])
        vec = self._vectors(given, neighbors, places)
        differentiate = self.conservative and self.kind != ENERGY
        with torch.set_grad_enabled(differentiate):
            pairs = self._pairs(vec, numbers, neighbors, places) if self.repulsive else None
            geometry, graph, leaves = self._geometry(
                vec, numbers, structure, neighbors, places, given.get("reverse"), differentiate, pairs
            )
            s, v = self.model.encoder(graph, geometry, self._condition(given), Wanted())
            local, direct = self.model.readout.select(s, v, head, structure, self.scales)
            if differentiate:
                direct = None
                whole = local.mean(0) if self.model.shallow else local
                gradients = torch.autograd.grad(whole.sum(), leaves, allow_unused=True)
        found = self._energies(local.detach(), numbers, structure, head, given["cell"], pairs)
        if self.kind != ENERGY:
            virial = None
            if differentiate:
                direct, virial = self._forces(gradients, geometry, graph, vec, given, pairs)
            elif pairs is not None:
                assert direct is not None
                direct = direct + self._sum_pairs(pairs.gradient.unsqueeze(0), given.get("reverse"))
            assert direct is not None
            if self.model.shallow:
                found["forces"] = direct.mean(0)
            else:
                found["forces"], found["forces_std"] = self._mean_and_spread(direct)
                found["forces_members"] = direct
            if virial is not None:
                found["virial"] = virial
        return tuple(found[slot.name] for slot in self.outputs)

    def _senders(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return senders [N,W], the atom itself at empty places, and which places are full."""
        full = table >= 0
        own = torch.arange(table.shape[0], device=table.device).unsqueeze(1)
        return torch.where(full, table, own), full

    def _vectors(self, given: dict[str, Tensor], neighbors: Tensor, full: Tensor) -> Tensor:
        """Return edge vectors [N,W,3] in the working precision; differences are taken in float64."""
        positions = given["positions"]
        cell = given["cell"].index_select(0, given["structure"])
        there = positions.index_select(0, neighbors.reshape(-1)).view(*neighbors.shape, 3)
        moved = (given["shifts"].double().unsqueeze(3) * cell.unsqueeze(1)).sum(2)
        vec = there + moved - positions.unsqueeze(1)
        return torch.where(full.unsqueeze(2), vec, self.beyond).to(self.dtype)

    def _geometry(
        self,
        vec: Tensor,
        numbers: Tensor,
        structure: Tensor,
        neighbors: Tensor,
        full: Tensor,
        reverse: Tensor | None,
        leaves: bool,
        pairs: TablePairs | None,
    ) -> tuple[EdgeGeometry, TableGraph, tuple[Tensor, ...]]:
        """Return the encoder's geometry of the places, their graph, and the leaves to differentiate by."""
        atoms, places, _ = vec.shape
        members = self.model.encoders
        differentiable = leaves and not self.paired
        seen = vec if pairs is None else vec * pairs.ratio.unsqueeze(2)
        geometry = self.model.encoder.geometry(seen.view(-1, 3), members, differentiable=differentiable)
        if not self.paired:
            graph = TableGraph(numbers, structure, neighbors, reverse, full, self.inline)
            return geometry, graph, geometry.leaves
        geometry = _shared_geometry(geometry, self.model.config.encoder)
        radial = geometry.slope.shape[1]
        # One array, so that a compiler stores it instead of computing its parts again for each reader.
        stored = torch.cat([geometry.basis[0], geometry.slope, geometry.unit[0]], 1)
        stored = stored.view(atoms, places, 2 * radial + 3)
        edges = make_paired_edges(
            geometry.distance.view(atoms, places),
            stored[:, :, 2 * radial :],
            stored[:, :, :radial],
            stored[:, :, radial : 2 * radial],
            members,
        )
        graph = TableGraph(numbers, structure, neighbors, None, full, self.inline, edges, self.moments)
        return geometry, graph, (edges.distance, edges.unit)

    def _condition(self, given: dict[str, Tensor]) -> Tensor | None:
        if not self.model.config.charge_spin:
            return None
        if self.model.condition is None:  # the encoder takes charge and multiplicity as they are
            state = torch.stack([given["charge"], given["spin"]], dim=1).to(self.dtype)
            return state.index_select(0, given["structure"]).expand(self.model.encoders, -1, -1)
        state = torch.stack([given["charge"], given["spin"] - 1], dim=1).to(self.dtype)
        return self.model.condition(state.expand(self.model.encoders, -1, -1)).index_select(1, given["structure"])

    def _energies(
        self,
        local: Tensor,
        numbers: Tensor,
        structure: Tensor,
        head: Tensor,
        cell: Tensor,
        pairs: TablePairs | None,
    ) -> dict[str, Tensor]:
        """Return energies of structures in float64, with the references of each one's head and the repulsion.

        local : [K,N], of atoms, or [K,S], of structures where heads read sums over atoms.
        """
        row = head.index_select(0, structure) * self.references.shape[1] + numbers
        reference = self.references.view(-1).index_select(0, row)
        if pairs is not None:
            reference = reference + pairs.energy
        of_members = local.double() if self.model.encoder.pooled else _pool(local.double(), structure, cell)
        total = _pool(reference.unsqueeze(0), structure, cell)
        mean, std = self._mean_and_spread(of_members)
        return {"energy": mean + total[0], "energy_std": std, "energy_members": of_members + total}

    def _forces(
        self,
        gradients: tuple[Tensor | None, ...],
        geometry: EdgeGeometry,
        graph: TableGraph,
        vec: Tensor,
        given: dict[str, Tensor],
        pairs: TablePairs | None,
    ) -> tuple[Tensor, Tensor]:
        """Return forces [K,N,3] ([1,N,3] of a shallow ensemble) and the members' mean virial [S,3,3]."""
        atoms, places, _ = vec.shape
        members = self.model.encoders
        if self.paired:
            by_distance, by_unit = gradients
            assert by_distance is not None and graph.paired is not None
            unit = graph.paired.unit.detach()
            if by_unit is None:  # messages without directions
                edge = unit * by_distance.unsqueeze(3)
            else:
                radial = (by_unit * unit).sum(3)
                length = _shared_geometry(geometry, self.model.config.encoder).distance.view(1, atoms, places)
                edge = unit * (by_distance - radial / length).unsqueeze(3) + by_unit / length.unsqueeze(3)
            edge = torch.cat([edge[..., :1], edge[..., 1:]], 3)
            share = 0.5
        else:
            edge = geometry.pull_back(*gradients).view(members, atoms, places, 3)
            share = 1.0
        if pairs is not None:
            edge = turn_gradient(edge, vec, pairs.ratio, pairs.rate) + pairs.gradient
        forces = self._sum_pairs(edge, graph.reverse)
        mean_edge = edge.mean(0)
        of_atom = (vec.unsqueeze(3) * mean_edge.unsqueeze(2)).sum(1).double() * share
        pooled = _pool(of_atom.reshape(atoms, 9).t(), given["structure"], given["cell"]).t()
        pooled = pooled.reshape(given["cell"].shape[0], 3, 3)
        return forces, 0.5 * (pooled + pooled.transpose(1, 2))

    def _pairs(self, vec: Tensor, numbers: Tensor, neighbors: Tensor, full: Tensor) -> TablePairs:
        """Return the repulsion of the pairs in the table."""
        tables = PairTables(self.radii, self.powers)
        return repel_table(vec, numbers, neighbors, full, tables, self.model.config.cutoff, 1.0 if self.paired else 0.5)

    def _sum_pairs(self, edge: Tensor, reverse: Tensor | None) -> Tensor:
        """Return forces [K,N,3] of the gradients [K,N,W,3] by places: those of pairs where the table is symmetric."""
        if reverse is None:
            return edge.sum(2)
        return edge.sum(2) - gather_sent(edge.flatten(1, 2), reverse)

    def _mean_and_spread(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and unbiased standard deviation over the first axis; NaN where it has one entry."""
        count = values.shape[0]
        mean = values.mean(0)
        if count == 1:
            # A product and not an expanded constant: compilers do not take an output whose stride is zero.
            return mean, mean * self.undefined.to(mean.dtype)
        difference = values - mean
        return mean, torch.sqrt((difference * difference).sum(0) / (count - 1))


def _shared_geometry(geometry: EdgeGeometry, encoder: str) -> Geometry:
    """Return the geometry of an encoder that reads edges in messages only, which must be `Geometry`."""
    if not isinstance(geometry, Geometry):
        raise TypeError(
            f"encoder {encoder} states edges_in_messages_only, but its geometry is a {type(geometry).__name__} and no "
            "Geometry"
        )
    return geometry


def _pool(values: Tensor, structure: Tensor, cell: Tensor) -> Tensor:
    """Sum `[M,N]` over the atoms of each structure: `[M,S]`."""
    rows = values.shape[0]
    out = torch.zeros(rows, cell.shape[0], dtype=values.dtype, device=values.device)
    return out.scatter_add(1, structure.unsqueeze(0).expand(rows, -1), values)
