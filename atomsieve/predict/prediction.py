"""Prediction: the results of a batch, as flat arrays in input order."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROPERTIES = (
    "energy",
    "forces",
    "stress",
    "spread",
    "force_spread",
    "energy_members",
    "members",
    "energies",
    "features",
    "stress_members",
)
"""Properties that a call can ask for. "spread" implies "force_spread" where every member has its own encoder; "members"
implies "energy_members", which alone costs nothing, and asks for the forces of each member if forces are asked for."""


@dataclass(frozen=True)
class Prediction:
    """Results of S structures with N atoms; NaN where `status` is not OK, None where not asked for.

    Attributes
    ----------
    head : name of the head.
    calibrated : properties that are calibrated for this head: "energy", "forces".
    status : [S] uint8, `atomsieve.predict.Status`.
    outside : [S] uint8, reasons why a structure lies outside of the training domain: `atomsieve.predict.Outside`.
    in_domain : [S] bool, there is a result and no reason against it.
    distance : [S] float64, distance from the training data in the encoder's feature space, 1 at the limit; NaN
        where the ensemble holds no fit of it.
    energy : [S] float64 eV, mean of the members, element references of the head included.
    energy_std : [S] float64 eV, unbiased standard deviation over members (NaN with one member).
    sigma_energy : [S] float64 eV, calibrated standard error; NaN if the head is not calibrated.
    interval_energy : [S] float64 eV, half the width of the interval that holds the true energy with 90 %; NaN likewise.
    forces : [N,3] eV/Angstrom; forces_std : [N,3], per component.
    sigma_forces : [N] eV/Angstrom, calibrated standard error of a component of the force on the atom; NaN likewise.
    interval_forces : [N] eV/Angstrom, half the width of the 90 % interval of such a component; NaN likewise.
    stress : [S,3,3] eV/Angstrom^3, ASE sign; NaN unless periodic along all three vectors.
    energy_members : [K,S] float64 eV. forces_members : [K,N,3] eV/Angstrom. stress_members : [K,S,3,3] eV/Angstrom^3,
        asked for together with "members", "forces" and "stress"; None except from the native backend in this process.
    atom_energies : [N] float64 eV, the atoms' shares in the energy, references included.
    features : [N,F] float32, scalars that the first member's encoder gives each atom.
    """

    head: str
    calibrated: frozenset[str]
    status: NDArray[np.uint8]
    outside: NDArray[np.uint8]
    in_domain: NDArray[np.bool_]
    energy: NDArray[np.float64]
    distance: NDArray[np.float64] | None = None
    energy_std: NDArray[np.float64] | None = None
    sigma_energy: NDArray[np.float64] | None = None
    interval_energy: NDArray[np.float64] | None = None
    forces: NDArray[Any] | None = None
    forces_std: NDArray[Any] | None = None
    sigma_forces: NDArray[np.float64] | None = None
    interval_forces: NDArray[np.float64] | None = None
    stress: NDArray[np.float64] | None = None
    energy_members: NDArray[np.float64] | None = None
    forces_members: NDArray[np.float64] | None = None
    stress_members: NDArray[np.float64] | None = None
    atom_energies: NDArray[np.float64] | None = None
    features: NDArray[np.float32] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays that are not None, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("head", "calibrated")}
        return {name: array for name, array in found.items() if array is not None}
