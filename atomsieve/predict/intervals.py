"""Standard errors and intervals from the ensemble spread, by the calibration of a head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.calibration import HeadCalibration, PropertyCalibration
from atomsieve.uncertainty.strata import choose_group, find_element_group, list_groups


class HeadUncertainty:
    """Turns the spread of one head into standard errors and intervals; NaN where the head is not calibrated.

    The interval of a structure has the half width sigma x quantile, with the quantile of the finest calibrated group
    that holds the structure: elements and size, elements, size, or all structures.

    Attributes
    ----------
    calibrated : names of the calibrated properties: "energy", "forces".
    """

    def __init__(self, entry: HeadCalibration) -> None:
        self._energy, self._forces = entry.energy_per_atom, entry.force_component
        self.calibrated = entry.calibrated

    def sigma_energy(self, batch: StructureBatch, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standard error [S] eV of energies with spreads [S] eV."""
        if self._energy is None:
            return np.full(len(spread), np.nan)
        n = np.maximum(batch.counts, 1)
        return self._energy.sigma(spread / n) * n

    def interval_energy(
        self, batch: StructureBatch, spread: NDArray[np.float64], level: float = 0.9
    ) -> NDArray[np.float64]:
        """Return half the width [S] eV of the interval that holds the energy with probability `level`.

        spread : [S] eV. level : one of `atomsieve.uncertainty.calibration.LEVELS`.
        """
        if self._energy is None:
            return np.full(len(spread), np.nan)
        return self.sigma_energy(batch, spread) * _factors(self._energy, batch, level)

    def sigma_forces(self, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standard error [N] eV/Angstrom of a component of the force, from spreads [N,3]."""
        if self._forces is None:
            return np.full(len(spread), np.nan)
        return self._forces.sigma(atom_spread(spread))

    def interval_forces(
        self, batch: StructureBatch, spread: NDArray[np.float64], level: float = 0.9
    ) -> NDArray[np.float64]:
        """Return half the width [N] eV/Angstrom of the interval of a component of the force, from spreads [N,3]."""
        if self._forces is None:
            return np.full(len(spread), np.nan)
        return self.sigma_forces(spread) * _factors(self._forces, batch, level)[batch.structure_of_atom]


def atom_spread(spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the root mean square [N] of the spreads [N,3] of an atom's force components."""
    return np.asarray(np.sqrt((np.asarray(spread, np.float64) ** 2).mean(1)))


def _factors(fit: PropertyCalibration, batch: StructureBatch, level: float) -> NDArray[np.float64]:
    """Return the quantile [S] that applies to each structure."""
    everywhere = fit.quantile(level)
    if not fit.groups:
        return np.full(len(batch), everywhere)
    names = list_groups(find_element_group(batch), batch.counts, fit.size_edges)
    column = choose_group(names, fit.groups)
    out = np.full(len(batch), everywhere)
    for name in fit.groups:
        own = (names == name) & (np.arange(names.shape[1]) == column[:, None])
        out[own.any(1)] = fit.quantile(level, name)
    return out
