"""Headline numbers of a head: errors beside those of predictors without a network, ranking, coverage.

The same names and numbers stand in metrics.json of a training and of `atomsieve evaluate`, in metrics.md, in the model
card and on the page: energies in meV/atom, force components in meV/Angstrom (`atomsieve.gfm.evaluation_file.COLUMNS`
lists them). The verdict (`atomsieve.evaluation.verdict`) reads nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.evaluation.error_sets import FEWEST, Errors, compute_coverage, energy_errors, force_errors
from atomsieve.evaluation.limits import MILLI, RELAXED
from atomsieve.evaluation.residuals import HeadRows
from atomsieve.predict.status import Status


def compute_headline(rows: HeadRows) -> dict[str, Any]:
    """Return the headline numbers of a head; those that the labels do not give are left out.

    structures, energies : numbers of structures, and of those with a label and a result; compositions : reduced
        formulas among them. in_domain : share of the structures with a result.
    energy_mae, energy_rmse, energy_baseline, energy_composition : meV/atom, of the ensemble, of the element references
        alone, of the nearest-composition predictor; energy_ratio : energy_mae / energy_baseline; energy_rank : Spearman
        correlation of predicted and labelled energies per atom, both less the references.
    force_mae, force_rmse, force_baseline : meV/Angstrom, of the ensemble and of predicting zero; force_ratio. relaxed :
        structures with a largest labelled force below RELAXED, relaxed_force_mae and relaxed_force_baseline of them.
    *_coverage, *_coverage_se : share of errors within the 90 % interval and its standard error; None: uncalibrated.
    spread_error_* : Spearman correlation, over structures, of spread and |error|.
    """
    ok = rows.status == Status.OK
    inside = ok & (rows.outside == 0)
    row: dict[str, Any] = {
        "structures": len(rows.status),
        "in_domain": float(inside.sum() / max(ok.sum(), 1)),
    }
    errors = energy_errors(rows)
    row["energies"] = len(errors.error)
    if len(errors.error):
        row |= _describe_energies(rows, errors)
    forces = force_errors(rows)
    if len(forces.error):
        row |= _describe_forces(rows, forces)
    return row


def _describe_energies(rows: HeadRows, errors: Errors) -> dict[str, Any]:
    own, n = errors.structure, np.maximum(rows.natoms, 1)
    label, predicted, composition = (
        (values / n)[own]
        for values in (rows.energy - rows.reference, rows.predicted - rows.reference, rows.composition - rows.reference)
    )
    row: dict[str, Any] = {
        "energy_mae": MILLI * float(np.abs(errors.error).mean()),
        "energy_rmse": MILLI * float(np.sqrt(np.mean(errors.error**2))),
        "energy_baseline": MILLI * float(np.abs(label).mean()),
        "compositions": len(np.unique(rows.formula[own])),
        "energy_rank": correlate_ranks(predicted, label),
        "spread_error_energy": correlate_ranks(errors.spread, np.abs(errors.error)),
    }
    if np.isfinite(composition).all():
        row["energy_composition"] = MILLI * float(np.abs(composition - label).mean())
    row["energy_ratio"] = divide(row["energy_mae"], row["energy_baseline"])
    return row | _describe_coverage("energy", errors)


def _describe_forces(rows: HeadRows, errors: Errors) -> dict[str, Any]:
    size, error = (np.abs(values).mean(1) for values in (rows.force, rows.predicted_force - rows.force))
    n, home = len(rows.status), rows.atom_structure
    atoms = np.bincount(home, minlength=n)
    there = atoms > 0
    row: dict[str, Any] = {
        "force_mae": MILLI * float(error.mean()),
        "force_rmse": MILLI * float(np.sqrt(np.mean(errors.error**2))),
        "force_baseline": MILLI * float(size.mean()),
        "spread_error_force": correlate_ranks(
            (np.bincount(home, rows.force_spread, n)[there] / atoms[there]),
            (np.bincount(home, error, n)[there] / atoms[there]),
        ),
    }
    row["force_ratio"] = divide(row["force_mae"], row["force_baseline"])
    largest = np.zeros(n)
    np.maximum.at(largest, home, np.linalg.norm(rows.force, axis=1))
    relaxed = there & (largest < RELAXED)
    row["relaxed"] = int(relaxed.sum())
    if relaxed.any():
        use = relaxed[home]
        row["relaxed_force_mae"] = MILLI * float(error[use].mean())
        row["relaxed_force_baseline"] = MILLI * float(size[use].mean())
    return row | _describe_coverage("force", errors)


def _describe_coverage(name: str, errors: Errors) -> dict[str, Any]:
    found = compute_coverage(errors)
    return {f"{name}_coverage": found["coverage"], f"{name}_coverage_se": found["coverage_se"]}


def correlate_ranks(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Return the Spearman correlation; None where it means nothing (few values, or all alike)."""
    from scipy.stats import spearmanr

    good = np.isfinite(a) & np.isfinite(b)
    if good.sum() < FEWEST or np.ptp(a[good]) == 0 or np.ptp(b[good]) == 0:
        return None
    return float(spearmanr(a[good], b[good]).statistic)


def divide(error: float, baseline: float) -> float | None:
    """Return the ratio, None where the baseline is exact: labels are all zero."""
    return error / baseline if baseline > 0 else None
