"""Results of an ensemble on a batch, and the sums that turn edge gradients into forces and virials."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from atomsieve.graphs.graph import Graph


@dataclass(frozen=True)
class EnsembleOutput:
    """Energies, forces and features of all members for a batch, without element references.

    Attributes
    ----------
    energy : [K,S] float64, eV.
    forces : [K,N,3] eV/Angstrom, or None. Of a shallow ensemble [1,N,3], those of the mean of the members, or
        [M,N,3] of the M members that were asked for.
    virial : [K,S,3,3] eV, derivative of the energy by strain (stress times volume, ASE sign), or None; of a shallow
        ensemble as `forces`.
    features : [K,N,F], scalars that each encoder gives each atom, without gradient; [1,N,F] of a shallow ensemble.
    atom_energy : [K,N] eV, the shares of the atoms in `energy`, without gradient; None where heads read sums over
        atoms, which have no such shares.
    shared : the ensemble is shallow.
    head_energy : [K,S,H] float64 eV, energy by each head, where heads were mixed (NaN for one without weight); or None.
    """

    energy: Tensor
    forces: Tensor | None
    virial: Tensor | None
    features: Tensor
    atom_energy: Tensor | None
    shared: bool = False
    head_energy: Tensor | None = None


def forces_of(edge_grad: Tensor, graph: Graph) -> Tensor:
    """Sum edge gradients `[K,E,3]` into forces `[K,N,3]`: +g on the receiver, -g on the sender."""
    members, edges, _ = edge_grad.shape
    flat = edge_grad.permute(1, 0, 2).reshape(edges, 3 * members)
    out = flat.new_zeros(graph.n_atoms, 3 * members)
    out = out.index_add(0, graph.neighbors.receiver, flat).index_add(0, graph.neighbors.sender, -flat)
    return out.view(graph.n_atoms, members, 3).permute(1, 0, 2)


def virial_of(edge_grad: Tensor, graph: Graph) -> Tensor:
    """Sum vec (x) gradient over the edges of each structure, symmetrised: `[K,S,3,3]`."""
    members, edges, _ = edge_grad.shape
    pair = (graph.vec.to(edge_grad.dtype).view(1, edges, 3, 1) * edge_grad.unsqueeze(2)).double()
    flat = pair.permute(1, 0, 2, 3).reshape(edges, 9 * members)
    home = graph.structure.index_select(0, graph.neighbors.receiver)
    total = flat.new_zeros(graph.n_structures, 9 * members).index_add(0, home, flat)
    virial = total.view(graph.n_structures, members, 3, 3).permute(1, 0, 2, 3)
    return 0.5 * (virial + virial.transpose(2, 3))
