"""A short table of an evaluation, which needs no optional package."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from atomsieve.evaluation.metrics import compute_short_metrics, energy_errors, force_errors
from atomsieve.evaluation.residuals import HeadRows
from atomsieve.predict.status import Status

HEADINGS = ("head", "property", "structures", "in domain", "MAE", "RMSE", "in 90 % interval", "±", "raw")
"""Headings of the table; raw is the share of errors within 1.645 times the raw spread."""


def summary_table(rows: Mapping[str, HeadRows]) -> str:
    """Return a Markdown table of heads and properties; sizes in meV/atom (energy) and meV/Angstrom (force component).

    Properties with too few labels are left out; an uncalibrated head has no interval.
    """
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for head, found in rows.items():
        good = found.status == Status.OK
        inside = float(np.mean(found.outside[good] == 0)) if good.any() else float("nan")
        for name, errors in (("energy", energy_errors(found)), ("force", force_errors(found))):
            row = compute_short_metrics(errors)
            if row is not None:
                sizes = [f"{1e3 * row[key]:.1f}" for key in ("mae", "rmse")]
                keys = ("coverage", "coverage_se", "coverage_raw")
                shares = ["-" if row[key] is None else f"{row[key]:.2f}" for key in keys]
                cells = (head, name, str(row["structures"]), f"{inside:.2f}", *sizes, *shares)
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
