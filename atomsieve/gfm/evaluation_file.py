"""`evaluation.json` of a gfm/ folder: how good the ensemble was on structures kept from its training.

It has the layout of the `metrics.json` that `atomsieve evaluate` writes. It is for people, as the card is: neither
identities nor predictions depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EVALUATION = "evaluation.json"
SCHEMA = "atomsieve-evaluation"
SCHEMA_VERSION = 2
"""Version 1 had no headline numbers, no training and no verdict."""
_LARGEST = 64 << 20

COLUMNS = (
    ("structures", "structures", ",d", "structures with a label"),
    ("in_domain", "in domain", ".2f", "part of them inside of the head's domain"),
    ("energy_mae", "E MAE meV/atom", ".1f", "mean absolute error of energies"),
    ("energy_baseline", "references alone", ".1f", "that of the head's element references"),
    ("energy_composition", "nearest composition", ".1f", "that of the nearest-composition predictor"),
    ("energy_ratio", "E ratio", ".3f", "error over that of the references"),
    ("energy_rank", "E rank", ".2f", "rank correlation of predicted and labelled energies less references"),
    ("energy_coverage", "E in 90 %", ".2f", "part of the errors inside of the 90 % interval"),
    ("force_mae", "F MAE meV/A", ".1f", "mean absolute error of force components"),
    ("force_baseline", "zero forces", ".1f", "that of predicting zero"),
    ("force_ratio", "F ratio", ".3f", "error over that of zero forces"),
    ("force_coverage", "F in 90 %", ".2f", "part of the errors inside of the 90 % interval"),
    ("spread_error_energy", "rho E", ".2f", "rank correlation of spread and error"),
    ("spread_error_force", "rho F", ".2f", "rank correlation of spread and error"),
)
"""Headline number of a head, its heading, how it is written, and what it is."""


def format_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the headline numbers of a head as text, in the order of COLUMNS; - where there is none."""
    return [format(row[key], form) if row.get(key) is not None else "-" for key, _, form, _ in COLUMNS]


def format_table(heads: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the headline numbers of heads as a Markdown table; columns without any number are left out."""
    used = [k for k, (key, *_) in enumerate(COLUMNS) if any(row.get(key) is not None for row in heads.values())]
    lines = ["| head | " + " | ".join(COLUMNS[k][1] for k in used) + " |", "|" + " --- |" * (len(used) + 1)]
    for name, row in heads.items():
        cells = format_cells(row)
        lines.append(f"| {name} | " + " | ".join(cells[k] for k in used) + " |")
    return "\n".join(lines)


def describe_weakness(folder: str | Path, heads: Sequence[str]) -> list[str]:
    """Return what the evaluation of a folder says against the energies and forces of heads; nothing without one."""
    verdict = (read_evaluation(folder) or {}).get("verdict", {})
    found = verdict.get("heads", {}) if isinstance(verdict, dict) else {}
    remarks = [(head, one) for head in heads for one in found.get(head, []) if isinstance(one, dict)]
    return [
        f"{head}: {one.get('text')}"
        for head, one in remarks
        if one.get("about") in ("energies", "forces") and one.get("grade") in ("fair", "poor")
    ]


def read_evaluation(folder: str | Path) -> dict[str, Any] | None:
    """Return the evaluation of a gfm/ folder; None if it has none, or one that cannot be read."""
    path = Path(folder) / EVALUATION
    try:
        if path.stat().st_size > _LARGEST:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    good = isinstance(found, dict) and found.get("schema_name") == SCHEMA and isinstance(found.get("heads"), dict)
    return found if good else None
