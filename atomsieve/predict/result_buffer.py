"""Arrays of a whole call of a Predictor, filled piece by piece and turned into a Prediction at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.backends.interface import BackendOutput
from atomsieve.predict.intervals import HeadUncertainty
from atomsieve.predict.prediction import Prediction
from atomsieve.predict.status import Status
from atomsieve.structures import StructureBatch
from atomsieve.structures.batch import ragged_index


class ResultBuffer:
    """Results of a batch for one head; NaN until a piece is stored."""

    def __init__(self, batch: StructureBatch, members: int, want: set[str], head: str) -> None:
        structures, atoms = batch.n_structures, batch.n_atoms
        self.batch, self.want, self.head = batch, want, head
        self.status = np.zeros(structures, np.uint8)
        self.outside = np.zeros(structures, np.uint8)
        self.distance = np.full(structures, np.nan)
        self.energy_members = np.full((members, structures), np.nan)
        self.energy, self.energy_std = np.full(structures, np.nan), np.full(structures, np.nan)
        self.stress = np.full((structures, 3, 3), np.nan) if "stress" in want else None
        self.stress_members: NDArray[np.float64] | None = None
        self.of_atoms: dict[str, NDArray[Any]] = {}
        """Arrays whose first axis is atoms."""
        if "forces" in want:
            self.of_atoms["forces"] = np.full((atoms, 3), np.nan)
            if "force_spread" in want:
                self.of_atoms["forces_std"] = np.full((atoms, 3), np.nan)
            if "members" in want:
                self.of_atoms["forces_members"] = np.full((atoms, members, 3), np.nan)
        if "energies" in want:
            self.of_atoms["atom_energies"] = np.full(atoms, np.nan)

    def store(
        self,
        index: NDArray[np.int64],
        own: StructureBatch,
        out: BackendOutput,
        outside: NDArray[np.uint8],
        distance: NDArray[np.float64],
    ) -> None:
        """Store the output of a piece whose structures are `index`; non-finite results get a status."""
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(out.energy_members).all(axis=0))
        if out.forces is not None:
            broken = ~np.asarray(np.isfinite(out.forces)).all(axis=1)
            finite[np.unique(own.structure_of_atom[broken])] = False
        self.status[index[~finite]] = Status.NAN_OUTPUT
        self.outside[index] = outside
        self.distance[index] = np.where(finite, distance, np.nan)
        self.energy_members[:, index] = np.where(finite, out.energy_members, np.nan)
        self.energy[index] = np.where(finite, out.energy, np.nan)
        self.energy_std[index] = np.where(finite, out.energy_std, np.nan)
        atoms = ragged_index(self.batch.ptr[:-1][index], own.counts)
        keep = np.repeat(finite, own.counts)
        found = {name: getattr(out, name) for name in ("forces", "forces_std", "atom_energies")}
        if out.forces_members is not None:
            found["forces_members"] = out.forces_members.transpose(1, 0, 2)
        if "features" in self.want and out.features is not None:
            found["features"] = out.features
            if "features" not in self.of_atoms:  # their width is the model's own
                width = out.features.shape[1]
                self.of_atoms["features"] = np.full((self.batch.n_atoms, width), np.nan, np.float32)
        for name, values in found.items():
            if values is not None and name in self.of_atoms:
                mask = keep.reshape(-1, *[1] * (values.ndim - 1))
                self.of_atoms[name][atoms] = np.where(mask, values, np.nan)
        if self.stress is not None and out.virial is not None:
            volume = np.where(own.pbc.all(1) & finite, np.abs(np.linalg.det(own.cell)), np.nan)
            self.stress[index] = out.virial / volume[:, None, None]
            if out.virial_members is not None:
                if self.stress_members is None:
                    self.stress_members = np.full((len(out.virial_members), *self.stress.shape), np.nan)
                self.stress_members[:, index] = out.virial_members / volume[:, None, None]

    def finish(self, uncertainty: HeadUncertainty) -> Prediction:
        """Return the prediction of the whole call, with the calibrated errors and intervals of the head."""
        spread = self.energy_std if "spread" in self.want else None
        forces_std = self.of_atoms.get("forces_std")
        members = self.of_atoms.pop("forces_members", None)
        return Prediction(
            head=self.head,
            calibrated=uncertainty.calibrated,
            status=self.status,
            outside=self.outside,
            in_domain=(self.status == Status.OK) & (self.outside == 0),
            distance=self.distance,
            energy=self.energy,
            energy_std=spread,
            sigma_energy=None if spread is None else uncertainty.sigma_energy(self.batch, spread),
            interval_energy=None if spread is None else uncertainty.interval_energy(self.batch, spread),
            sigma_forces=None if forces_std is None else uncertainty.sigma_forces(forces_std),
            interval_forces=None if forces_std is None else uncertainty.interval_forces(self.batch, forces_std),
            stress=self.stress,
            energy_members=None if self.want.isdisjoint(("members", "energy_members")) else self.energy_members,
            forces_members=None if members is None else members.transpose(1, 0, 2),
            stress_members=self.stress_members,
            **self.of_atoms,
        )
