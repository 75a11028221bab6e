"""Calibration of the ensemble spread: a factor that turns it into a standard error, fitted on structures held out.

The factor that maximises the Gaussian likelihood of errors e with spreads s is sqrt(mean(e^2 / s^2)).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 10


def fit_scale(error: NDArray[np.float64], spread: NDArray[np.float64]) -> dict[str, float] | None:
    """Return `{"scale", "n", "coverage_90"}` for errors [M] and spreads [M], or None with too few usable ones.

    coverage_90 : share of |error| within 1.645 calibrated standard errors, on the same structures.
    """
    usable = np.isfinite(error) & np.isfinite(spread) & (spread > 0)
    if usable.sum() < FEWEST:
        return None
    e, s = error[usable], spread[usable]
    scale = float(np.sqrt(np.mean((e / s) ** 2)))
    return {"scale": scale, "n": int(usable.sum()), "coverage_90": float(np.mean(np.abs(e) < 1.645 * scale * s))}


def calibrate_head(
    energy_error: NDArray[np.float64],
    energy_std: NDArray[np.float64],
    natoms: NDArray[np.int64],
    force_error: NDArray[np.float64] | None = None,
    forces_std: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Return one head's entry of calibration.json from held-out errors [S] (eV) and forces [M] (eV/Angstrom)."""
    entry: dict[str, Any] = {}
    energy = fit_scale(energy_error / natoms, energy_std / natoms)
    if energy is not None:
        entry["energy_per_atom"] = energy
    if force_error is not None and forces_std is not None:
        forces = fit_scale(force_error.ravel(), forces_std.ravel())
        if forces is not None:
            entry["force_component"] = forces
    return entry
