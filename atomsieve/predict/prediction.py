"""Prediction: what a Predictor says of a batch, as flat arrays in input order."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROPERTIES = ("energy", "forces", "stress", "spread", "members")
"""What can be asked for."""


@dataclass(frozen=True)
class Prediction:
    """Results of S structures with N atoms; NaN where `status` is not OK, None where not asked for.

    Attributes
    ----------
    head : name of the head.
    status : [S] uint8, `atomsieve.predict.Status`.
    in_domain : [S] bool, the structure resembles what the head was trained on.
    energy : [S] float64 eV, mean of the members, element references of the head included.
    energy_std : [S] float64 eV, unbiased standard deviation over members (NaN with one member).
    sigma_energy : [S] float64 eV, calibrated standard error; NaN if the head is not calibrated.
    forces : [N,3] eV/Angstrom; forces_std : [N,3], per component.
    stress : [S,3,3] eV/Angstrom^3, ASE sign; NaN unless periodic along all three vectors.
    energy_members : [K,S] float64 eV.
    """

    head: str
    status: NDArray[np.uint8]
    in_domain: NDArray[np.bool_]
    energy: NDArray[np.float64]
    energy_std: NDArray[np.float64] | None = None
    sigma_energy: NDArray[np.float64] | None = None
    forces: NDArray[Any] | None = None
    forces_std: NDArray[Any] | None = None
    stress: NDArray[np.float64] | None = None
    energy_members: NDArray[np.float64] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays that are there, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "head"}
        return {name: array for name, array in found.items() if array is not None}
