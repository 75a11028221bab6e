"""Columns about stability: formation energy, energy above the hull, their standard errors, chances of being stable.

The standard error of a distance is the spread of the members' own distances times the calibration of the row: the
factor by which the calibrated error of its energy exceeds the spread of its energy. Chances take errors as Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from atomsieve.stability.hull import HullFinder
from atomsieve.stability.phases import Compositions

NEAR: Mapping[str, float] = {"p_stable": 0.0, "p_stable_25": 0.025, "p_stable_50": 0.05, "p_stable_100": 0.1}
"""Columns of the chance that a row lies at most so far above the hull, eV/atom."""
COLUMNS: Mapping[str, tuple[str, str]] = {
    "formation_energy": ("eV/atom", "energy from the elements in their lowest references"),
    "sigma_formation_energy": ("eV/atom", "calibrated standard error of it, those of the references included"),
    "energy_above_hull": ("eV/atom", "energy above the hull of the references; negative below it"),
    "sigma_energy_above_hull": ("eV/atom", "calibrated standard error of it, those of the references included"),
    "p_stable": ("", "chance of lying below the hull of the references"),
    "p_stable_25": ("", "chance of lying at most 0.025 eV/atom above the hull of the references"),
    "p_stable_50": ("", "chance of lying at most 0.05 eV/atom above the hull of the references"),
    "p_stable_100": ("", "chance of lying at most 0.1 eV/atom above the hull of the references"),
}
"""Unit and meaning of each column; NaN where an element has no reference, or no error is known."""


def compute_columns(
    finder: HullFinder,
    compositions: Compositions,
    energy: NDArray[np.float64],
    members: NDArray[np.float32] | None,
    factor: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return the columns [n] of n rows by name.

    energy : [n] eV/atom. members : [n,K] eV/atom, of each member minus that of the row, or None.
    factor : [n] calibrated error of the energy over its spread; NaN where the head is not calibrated.
    """
    found = finder.measure(compositions, energy, members)
    out = {"formation_energy": found.formation}
    out["sigma_formation_energy"] = _spread(found.formation_members, len(energy)) * factor
    out["energy_above_hull"] = found.above
    out["sigma_energy_above_hull"] = _spread(found.above_members, len(energy)) * factor
    for name, limit in NEAR.items():
        out[name] = chance_below(limit, found.above, out["sigma_energy_above_hull"])
    return out


def chance_below(limit: float, value: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the chance that the truth is below a limit, for values with Gaussian errors; NaN where sigma is."""
    from scipy.special import ndtr

    with np.errstate(divide="ignore", invalid="ignore"):
        found = ndtr((limit - value) / sigma)
    return np.asarray(np.where(sigma == 0, np.where(np.isnan(value), np.nan, value < limit), found))


def _spread(members: NDArray[np.float32] | None, n: int) -> NDArray[np.float64]:
    """Return the unbiased standard deviation [n] over members; NaN without them, or where one has no value."""
    if members is None or members.shape[1] < 2:
        return np.full(n, np.nan)
    apart = members - members.mean(1, keepdims=True)
    return np.sqrt(np.einsum("nk,nk->n", apart, apart) / (members.shape[1] - 1)).astype(np.float64)
