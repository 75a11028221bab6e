"""Metrics of an ensemble's predictions and uncertainties on labelled structures, per head.

Errors are of energies per atom (eV) and of force components (eV/Angstrom). Curves and scores are those of the
Uncertainty Toolbox (Y. Chung et al., arXiv:2109.10254): the reliability curve is the share of errors within the central
interval of each probability of a Gaussian of standard error sigma; the miscalibration area lies between it and the
diagonal (0 is right, 0.5 the worst); CRPS is the continuous ranked probability score of that Gaussian (T. Gneiting and
A. Raftery, J. Am. Stat. Assoc. 102, 359, 2007); sharpness is the root mean square of sigma.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, require
from atomsieve.evaluation.labelled import open_labelled, was_trained_on
from atomsieve.evaluation.residuals import HeadRows, predict_file
from atomsieve.gfm import read_calibration, read_manifest
from atomsieve.predict.domain_flags import Outside
from atomsieve.predict.predictor import Predictor
from atomsieve.predict.status import Status
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.uncertainty.calibration import GAUSSIAN
from atomsieve.uncertainty.strata import ELEMENT_GROUPS, SIZES, find_size_edges
from atomsieve.version import __version__

LEVEL = 0.9
CURVE = 20
"""Points of a reliability curve in the file."""
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


@dataclass(frozen=True)
class Evaluation:
    """An evaluated file: `metrics` as in metrics.json, and the rows by head behind them."""

    metrics: dict[str, Any]
    rows: dict[str, HeadRows]


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


def evaluate_gfm(
    folder: str | Path,
    data: str | Path,
    *,
    head: str | None = None,
    precision: str = "fp32",
    device: str = "auto",
    reading: ReadOptions | None = None,
    beside: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict a file of labelled structures and compare.

    head : the head for all structures of the file; None takes the head of their source's name.
    reading : how a file that is no dataset is read. beside : path beside which it is converted; None: the ensemble.

    Raises
    ------
    AtomSieveError
        if the extra `uncertainty` is not installed; DataError if nothing has a label and a result; UsageError for the
        mixture of heads.
    """
    for module in ("uncertainty_toolbox", "jinja2"):
        require(module, "uncertainty", "atomsieve evaluate")
    manifest = read_manifest(folder)
    names, beside = [h.name for h in manifest.heads], folder if beside is None else beside
    action = "evaluated against labels of one theory"
    with open_labelled(data, names, head, reading=reading, beside=beside, action=action) as (reader, copy):
        predictor = Predictor.load(folder, head=head, precision=precision, device=device)
        rows = predict_file(predictor, reader, head, progress)
        known = was_trained_on(manifest, reader, copy.content)
        identity = {"name": Path(data).name, "sha256": reader.identity(), "structures": len(reader)}
    heads = {name: compute_head_metrics(found) for name, found in rows.items()}
    if not any("energy" in row or "force" in row for row in heads.values()):
        raise DataError(f"{data} holds fewer than {FEWEST} structures with a label and a result; nothing to evaluate")
    calibrated = predictor.describe()["calibrated"]
    for name, row in heads.items():
        row["calibrated"] = calibrated[name]
    metrics = {
        "schema_name": "atomsieve-evaluation",
        "schema_version": 1,
        "atomsieve": __version__,
        "units": {"energy": "eV/atom", "force": "eV/Angstrom, per component"},
        "ensemble": {"name": Path(folder).resolve().name, "id": predictor.ensemble_id, "members": predictor.members},
        "calibrated_on": [d.model_dump() for d in read_calibration(folder).data],
        "data": {**identity, "trained_on": known},
        "precision": precision,
        "level": LEVEL,
        "heads": heads,
    }
    return Evaluation(metrics, rows)


def compute_head_metrics(rows: HeadRows) -> dict[str, Any]:
    """Return all numbers of one head: counts, and for energy and force the whole, by domain, size and elements."""
    ok = rows.status == Status.OK
    inside = ok & (rows.outside == 0)
    edges = find_size_edges(rows.natoms)
    size = np.searchsorted(edges, rows.natoms, side="right")
    reasons = {flag.name.lower(): int((rows.outside & flag > 0).sum()) for flag in Outside if flag.name}
    out: dict[str, Any] = {
        "structures": len(rows.status),
        "status": {Status(s).name: n for s, n in sorted(Counter(rows.status.tolist()).items())},
        "in_domain": float(inside.sum() / max(ok.sum(), 1)),
        "outside": reasons,
        "size_edges": edges,
    }
    sets = {
        "domain": {"inside": inside, "outside": ok & ~inside},
        "size": {name: size == k for k, name in enumerate(SIZES)},
        "elements": {name: rows.elements == k for k, name in enumerate(ELEMENT_GROUPS)},
    }
    for name, errors in (("energy", energy_errors(rows)), ("force", force_errors(rows))):
        if len(errors.error) >= FEWEST:
            parts = {
                kind: {part: compute_short_metrics(errors.take(chosen)) for part, chosen in of.items()}
                for kind, of in sets.items()
            }
            by = {kind: {part: row for part, row in of.items() if row is not None} for kind, of in parts.items()}
            out[name] = {**compute_full_metrics(errors), "by": by}
    return out


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


def compute_full_metrics(errors: Errors) -> dict[str, Any]:
    """Return everything of a set: errors, rank correlation, coverage, and the scores of spread and of sigma."""
    from scipy.stats import spearmanr

    row = compute_short_metrics(errors)
    assert row is not None
    good = np.isfinite(errors.spread)
    rank = None
    if good.sum() >= FEWEST and np.ptp(errors.spread[good]) > 0:
        rank = float(spearmanr(errors.spread[good], np.abs(errors.error[good])).statistic)
    return row | {
        "expected_coverage_se": float(np.sqrt(LEVEL * (1 - LEVEL) / row["structures"])),
        "spearman": rank,
        "raw": compute_scores(errors.error, errors.spread),
        "calibrated": compute_scores(errors.error, errors.sigma),
    }


def compute_scores(error: NDArray[np.float64], sigma: NDArray[np.float64]) -> dict[str, Any] | None:
    """Return reliability curve, miscalibration area, CRPS and sharpness of Gaussians; None without enough sigmas."""
    from uncertainty_toolbox import metrics_calibration as toolbox
    from uncertainty_toolbox.metrics_scoring_rule import crps_gaussian

    good = np.isfinite(sigma) & (sigma > 0)
    if good.sum() < FEWEST:
        return None
    e, s, zero = error[good], sigma[good], np.zeros(int(good.sum()))
    expected, observed = toolbox.get_proportion_lists_vectorized(e, s, zero, num_bins=CURVE + 1)
    return {
        "miscalibration_area": float(toolbox.miscalibration_area_from_proportions(expected, observed)),
        "crps": float(crps_gaussian(e, s, zero)),
        "sharpness": float(toolbox.sharpness(s)),
        "reliability": {"expected": np.asarray(expected).tolist(), "observed": np.asarray(observed).tolist()},
    }
