"""Sets of errors of one property of one head, with their uncertainties: sizes, and shares within intervals.

Errors are of energies per atom (eV) and of force components (eV/Angstrom).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.evaluation.residuals import HeadRows
from atomsieve.predict.status import Status
from atomsieve.uncertainty.calibration import GAUSSIAN

LEVEL = 0.9
FEWEST = 5
"""Errors below which a set has no numbers."""


@dataclass(frozen=True)
class Errors:
    """Errors [M] of one property of one head, the uncertainties that went with them, and where they come from.

    Attributes
    ----------
    error, spread, sigma, interval : [M]; sigma and interval are NaN where the head is uncalibrated.
    structure : [M] index into the S structures of the head.
    """

    error: NDArray[np.float64]
    spread: NDArray[np.float64]
    sigma: NDArray[np.float64]
    interval: NDArray[np.float64]
    structure: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> Errors:
        """Return the errors of the structures `chosen` [S]."""
        use = chosen[self.structure]
        return Errors(*(getattr(self, name)[use] for name in Errors.__dataclass_fields__))


def energy_errors(rows: HeadRows) -> Errors:
    """Return the errors of energies per atom, of structures with a label and a result."""
    use, n = np.flatnonzero(np.isfinite(rows.energy) & (rows.status == Status.OK)), np.maximum(rows.natoms, 1)
    uncertainties = (rows.energy_std, rows.sigma_energy, rows.interval_energy)
    spread, sigma, interval = (v[use] / n[use] for v in uncertainties)
    return Errors((rows.predicted - rows.energy)[use] / n[use], spread, sigma, interval, use.astype(np.int64))


def force_errors(rows: HeadRows) -> Errors:
    """Return the errors of force components."""
    error = (rows.predicted_force - rows.force).ravel()
    spread, sigma, interval = (np.repeat(v, 3) for v in (rows.force_spread, rows.sigma_force, rows.interval_force))
    return Errors(error, spread, sigma, interval, np.repeat(rows.atom_structure, 3))


def compute_short_metrics(errors: Errors) -> dict[str, Any] | None:
    """Return number, errors and coverage of a set; None of a set with too few errors."""
    error = np.abs(errors.error)
    if len(error) < FEWEST:
        return None
    row = {"n": len(error), "structures": len(np.unique(errors.structure)), "mae": float(error.mean())}
    return row | {"rmse": float(np.sqrt(np.mean(error**2))), **compute_coverage(errors)}


def compute_coverage(errors: Errors) -> dict[str, float | None]:
    """Return the shares of errors within the 90 % interval and within 1.645 spreads, with their standard errors.

    The standard error counts structures as independent, not the errors of one (for energies it is the binomial one).
    """
    found: dict[str, float | None] = {}
    for name, limit in (("coverage", errors.interval), ("coverage_raw", GAUSSIAN[LEVEL] * errors.spread)):
        known = np.isfinite(limit)
        if known.sum() < FEWEST:
            found |= {name: None, f"{name}_se": None}
            continue
        hit = (np.abs(errors.error) <= limit)[known]
        _, home = np.unique(errors.structure[known], return_inverse=True)
        share = float(hit.mean())
        found |= {name: share, f"{name}_se": float(np.sqrt((np.bincount(home, hit - share) ** 2).sum()) / len(hit))}
    return found
