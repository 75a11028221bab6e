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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, require
from atomsieve.evaluation.baselines import read_compositions
from atomsieve.evaluation.error_sets import (
    FEWEST,
    LEVEL,
    Errors,
    compute_short_metrics,
    energy_errors,
    force_errors,
)
from atomsieve.evaluation.headline import compute_headline
from atomsieve.evaluation.labelled import list_left_out, open_labelled, was_trained_on
from atomsieve.evaluation.residuals import HeadRows, predict_file
from atomsieve.evaluation.verdict import judge
from atomsieve.evaluation.worst import find_worst
from atomsieve.gfm import read_calibration, read_manifest
from atomsieve.gfm.evaluation_file import SCHEMA, SCHEMA_VERSION, read_evaluation
from atomsieve.gfm.manifest import EnsembleManifest
from atomsieve.predict.domain_flags import Outside
from atomsieve.predict.predictor import Predictor
from atomsieve.predict.status import Status
from atomsieve.structures import StructureBatch
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.interface import StructureReader
from atomsieve.structures.plausibility.sample import check_datasets
from atomsieve.uncertainty.strata import ELEMENT_GROUPS, SIZES, find_size_edges
from atomsieve.version import __version__

CURVE = 20
"""Points of a reliability curve in the file."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluated file: `metrics` as in metrics.json, and the rows by head behind them."""

    metrics: dict[str, Any]
    rows: dict[str, HeadRows]


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
        rows = predict_file(predictor, reader, head, progress, read_compositions(folder))
        known = was_trained_on(manifest, reader, copy.content)
        identity = {"name": Path(data).name, "sha256": reader.identity(), "structures": len(reader)}
        identity["left_out"] = list_left_out(reader, names, head)
        heads = {name: compute_head_metrics(found) for name, found in rows.items()}
        if not any("energy" in row or "force" in row for row in heads.values()):
            raise DataError(
                f"{data} holds fewer than {FEWEST} structures with a label and a result; nothing to evaluate"
            )
        specs = {spec.name: spec for spec in manifest.heads}
        for name, found in rows.items():
            heads[name]["worst"] = find_worst(found, specs[name], partial(_read_positions, reader))
        findings = [finding.describe() for finding in check_datasets([copy.path])]
    recorded = read_evaluation(folder) or {}
    metrics = describe_evaluation(
        folder,
        manifest,
        predictor,
        heads,
        {**identity, "trained_on": known, "findings": findings},
        recorded.get("training"),
    )
    return Evaluation(metrics, rows)


def _read_positions(reader: StructureReader, positions: NDArray[np.int64]) -> StructureBatch:
    """Return the structures at some positions of a file, in that order."""
    return StructureBatch.concatenate([reader.read(k, k + 1) for k in positions.tolist()])


def describe_evaluation(
    folder: str | Path,
    manifest: EnsembleManifest,
    predictor: Predictor,
    heads: dict[str, dict[str, Any]],
    data: dict[str, Any],
    training: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return what metrics.json holds: the numbers of the heads, where they come from, and the verdict.

    heads : of `compute_head_metrics`; they get what the head's calibration and training are. data : name, sha256,
        structures of the file, and whether it was trained on. training : how long the ensemble was trained, if known.
    """
    calibrated = predictor.describe()["calibrated"]
    specs = {spec.name: spec for spec in manifest.heads}
    for name, row in heads.items():
        row["calibrated"] = calibrated[name]
        if (number := specs[name].statistics.get("train_structures")) is not None:
            row["train_structures"] = number
    metrics = {
        "schema_name": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "atomsieve": __version__,
        "units": {
            "energy": "eV/atom",
            "force": "eV/Angstrom, per component",
            "energy_*": "meV/atom",
            "force_*": "meV/A",
        },
        "ensemble": {"name": Path(folder).resolve().name, "id": predictor.ensemble_id, "members": predictor.members},
        "default_head": manifest.default_head,
        "calibrated_on": [d.model_dump() for d in read_calibration(folder).data],
        "data": data,
        "precision": predictor.precision,
        "level": LEVEL,
        "heads": heads,
    }
    if training:
        metrics["training"] = training
    metrics["verdict"] = judge(metrics).as_plain()
    return metrics


def compute_head_metrics(rows: HeadRows, *, scores: bool = True) -> dict[str, Any]:
    """Return all numbers of one head: headline, counts, and for energy and force the whole, by domain, size, elements.

    scores : with reliability, CRPS and sharpness, which need the extra `uncertainty`.
    """
    ok = rows.status == Status.OK
    inside = ok & (rows.outside == 0)
    edges = find_size_edges(rows.natoms)
    size = np.searchsorted(edges, rows.natoms, side="right")
    reasons = {flag.name.lower(): int((rows.outside & flag > 0).sum()) for flag in Outside if flag.name}
    out: dict[str, Any] = {
        **compute_headline(rows),
        "status": {Status(s).name: n for s, n in sorted(Counter(rows.status.tolist()).items())},
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
            out[name] = {**compute_full_metrics(errors, scores=scores), "by": by}
    return out


def compute_full_metrics(errors: Errors, *, scores: bool = True) -> dict[str, Any]:
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
        "raw": compute_scores(errors.error, errors.spread) if scores else None,
        "calibrated": compute_scores(errors.error, errors.sigma) if scores else None,
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
