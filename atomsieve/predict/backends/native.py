"""The native backend: the ensemble itself, evaluated by torch. It is the reference of all others."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.gfm import EnsembleManifest
from atomsieve.graphs import Graph
from atomsieve.models import Ensemble, set_precision
from atomsieve.models.layers import dtype_of
from atomsieve.models.precision import item_size
from atomsieve.predict.backends.interface import MAX_ATOMS, MEMORY, BackendOutput
from atomsieve.predict.packing import cache_sized_budget
from atomsieve.structures import StructureBatch


class NativeBackend:
    """The ensemble itself, eagerly, in one precision on one device."""

    name = "native"
    digest: str | None = None
    budget: tuple[int, int] | None = None
    """Atoms and edges of a batch that suits this model; None: what is usual on the device."""

    def __init__(self, ensemble: Ensemble, precision: str, device: torch.device, why: str = "as asked") -> None:
        self.model = set_precision(ensemble, precision).to(device).eval().requires_grad_(False)
        self.model.tell_slowdown(device)
        self.dtype = dtype_of(precision)
        self.precision, self.why = precision, why
        self.fast = ensemble.fast_path(precision, device)
        self.max_atoms = MAX_ATOMS[device.type]
        if device.type == "cpu" and self.fast is None:
            self.budget = cache_sized_budget(ensemble.encoders * ensemble.config.hidden * self.dtype.itemsize)
        if self.fast is None:
            config = ensemble.config
            memory = ensemble.encoder.memory(config, item_size(precision))
            neighbors = config.max_neighbors or 1.5 * config.typical_neighbors
            per_atom = ensemble.encoders * (memory.per_atom + memory.per_edge * neighbors)
            if per_atom:
                self.max_atoms = int(np.clip(MEMORY[device.type] / per_atom, 100, self.max_atoms))
        conservative = ensemble.config.forces == "conservative"
        given = {"forces", "energy_members", "forces_members"} | ({"stress"} if conservative else set())
        self.outputs = frozenset(given | (set() if ensemble.encoder.pooled else {"energies"}))

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.float64], want: Collection[str]
    ) -> BackendOutput:
        """See `Backend`."""
        device = graph.numbers.device
        if "energies" in want and "energies" not in self.outputs:
            raise UsageError(f"encoder {self.model.config.encoder} gives no energies of atoms; ask for energy alone")
        if isinstance(head, np.ndarray):
            index = torch.from_numpy(head).to(device)
        else:
            index = torch.full((graph.n_structures,), head, dtype=torch.int64, device=device)
        charge = spin = None
        if self.model.config.charge_spin:
            assert batch.charge is not None and batch.spin is not None
            charge, spin = (torch.from_numpy(a).to(device) for a in (batch.charge, batch.spin))
        forces = "forces" in want
        apart = None
        if self.model.shallow and forces and not {"force_spread", "members"}.isdisjoint(want):
            apart = range(self.model.members)
        with torch.no_grad():
            if self.fast is not None and charge is not None and spin is not None:
                out = self.fast(
                    graph, index, charge, spin, forces=forces, stress="stress" in want, features="features" in want
                )
            else:
                out = self.model(
                    graph, index, charge, spin, forces=forces, stress="stress" in want, force_members=apart
                )
            features = out.features
        network = out.energy.cpu().numpy()
        reference = self.model.reference_energy(batch.numbers, batch.ptr, head)
        every = None if out.forces is None else out.forces.detach().double()
        shares = None
        if "energies" in want and out.atom_energy is not None:
            shares = out.atom_energy.double().mean(0).cpu().numpy() + self._of_atoms(batch, head)
        virials = out.virial if "stress_members" in want and (apart or not self.model.shallow) else None
        return BackendOutput(
            network + reference,
            network.mean(0) + reference,
            network.std(0, ddof=1) if len(network) > 1 else np.full(len(batch), np.nan),
            None if every is None else every.mean(0).cpu().numpy(),
            None if every is None or (self.model.shallow and apart is None) else _spread(every),
            None if out.virial is None else out.virial.mean(0).cpu().numpy(),
            atom_energies=shares,
            forces_members=every.cpu().numpy() if every is not None and "members" in want else None,
            features=features[0].float().cpu().numpy() if "features" in want else None,
            virial_members=None if virials is None else virials.cpu().numpy(),
        )

    def _of_atoms(self, batch: StructureBatch, head: int | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the references [N] eV of the atoms."""
        table = self.model.references.numpy()
        if not isinstance(head, np.ndarray):
            return np.asarray(table[head][batch.numbers])
        weights, of_heads = head[batch.structure_of_atom], table[:, batch.numbers].T
        return np.asarray(np.where(weights > 0, weights * of_heads, 0.0).sum(1))


def _spread(every: torch.Tensor) -> NDArray[np.float64]:
    if every.shape[0] == 1:
        return np.full(tuple(every.shape[1:]), np.nan)
    found: NDArray[np.float64] = every.std(0).cpu().numpy()
    return found


def open_backend(
    name: str,
    folder: str | Path,
    ensemble: Ensemble,
    manifest: EnsembleManifest,
    precision: str,
    device: torch.device,
    why: str,
) -> NativeBackend:
    """Return the ensemble as a backend; `why` is one line on how it was chosen."""
    return NativeBackend(ensemble, precision, device, why)
