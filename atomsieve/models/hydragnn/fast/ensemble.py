"""An ensemble of HydraGNN's model by the fast path: the results of `Ensemble`, without autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from atomsieve.graphs.graph import Graph
from atomsieve.models.encoder import MemberStack
from atomsieve.models.hydragnn.config import HYDRAGNN
from atomsieve.models.hydragnn.fast.arrays import Workspace
from atomsieve.models.hydragnn.fast.model import FastHydraGNN, fast_available
from atomsieve.models.hydragnn.state_dict import to_hydragnn_state
from atomsieve.models.output import EnsembleOutput, forces_of, virial_of


def fast_serves(ensemble: MemberStack, device: torch.device) -> bool:
    """Return whether the fast path serves this model (two layers, conditioned, a deep ensemble) and device."""
    config = ensemble.config
    known = config.encoder == HYDRAGNN and config.layers == 2 and config.charge_spin and not ensemble.shallow
    return known and device.type in ("cpu", "cuda") and fast_available(device.type)


class FastEnsemble:
    """Members of an ensemble that the fast path serves (`fast_serves`), one after the other.

    Weights are copied: later changes of the ensemble have no effect.
    """

    def __init__(self, ensemble: MemberStack, precision: str, device: torch.device | None = None) -> None:
        workspace = Workspace()
        self.members = [
            FastHydraGNN(to_hydragnn_state(ensemble, k), precision, ensemble.config.cutoff, workspace, device)
            for k in range(ensemble.members)
        ]
        self.scales = torch.tensor([h.scale for h in ensemble.heads], dtype=torch.float64, device=device)
        self.dtype = torch.float64 if precision == "fp64" else torch.float32

    def __call__(
        self,
        graph: Graph,
        head_index: Tensor,
        charge: Tensor,
        spin: Tensor,
        *,
        forces: bool,
        stress: bool,
        features: bool = False,
    ) -> EnsembleOutput:
        """Evaluate all members on a batch; arguments and result as of `Ensemble`.

        features : else they are empty [K,N,0].
        """
        mixed = head_index.is_floating_point()
        weights = head_index.double() if mixed else torch.nn.functional.one_hot(head_index, len(self.scales)).double()
        near = graph.neighbors
        found = [
            member(
                graph.numbers,
                graph.vec,
                near.sender,
                near.receiver,
                near.row_ptr,
                graph.ptr,
                charge,
                spin,
                weights * self.scales,
                gradients=forces or stress,
                every_head=mixed,
                features=features,
            )
            for member in self.members
        ]
        gradient = torch.stack([one.edge_grad for one in found]) if forces or stress else None
        return EnsembleOutput(
            energy=torch.stack([one.energy for one in found]),
            forces=forces_of(gradient, graph) if forces and gradient is not None else None,
            virial=virial_of(gradient, graph) if stress and gradient is not None else None,
            features=torch.stack([one.features for one in found if one.features is not None])
            if features
            else torch.zeros(len(found), graph.n_atoms, 0, dtype=self.dtype, device=self.scales.device),
            atom_energy=None,
            head_energy=torch.stack([one.energy_per_head * self.scales for one in found]) if mixed else None,
        )
