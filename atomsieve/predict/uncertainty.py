"""What the calibration of a head makes of the ensemble spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures import StructureBatch


class HeadUncertainty:
    """Turns the spread of one head into standard errors and intervals; NaN where the head is not calibrated.

    Attributes
    ----------
    calibrated : names of the calibrated properties: "energy", "forces".
    """

    def __init__(self, entry: dict[str, Any]) -> None:
        self._energy = entry.get("energy_per_atom")
        self._forces = entry.get("force_component")
        kinds = (("energy", self._energy), ("forces", self._forces))
        self.calibrated = frozenset(name for name, fit in kinds if fit is not None)

    def sigma_energy(self, batch: StructureBatch, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standard error [S] eV of energies with spreads [S] eV."""
        if self._energy is None:
            return np.full_like(spread, np.nan)
        return spread * float(self._energy["scale"])

    def interval_energy(self, batch: StructureBatch, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return half the width [S] eV of the 90 % interval of energies with spreads [S] eV."""
        return 1.645 * self.sigma_energy(batch, spread)

    def sigma_forces(self, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standard error [N] eV/Angstrom of a component of the force, from spreads [N,3]."""
        if self._forces is None:
            return np.full(len(spread), np.nan)
        return np.sqrt((spread**2).mean(1)) * float(self._forces["scale"])
