"""Metrics of a validation per head, with the baselines that a number must beat, as numbers and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.evaluation.headline import correlate_ranks, divide
from atomsieve.gfm.evaluation_file import format_table
from atomsieve.runs.output_files import atomic_write
from atomsieve.train.validation import Validation


def write_metrics(folder: Path, metrics: dict[str, dict[str, dict[str, Any]]], verdict: str = "") -> None:
    """Write `metrics.json` and `metrics.md`; `metrics` maps a part (val, test) to the metrics of its heads.

    verdict : Markdown that metrics.md ends with.
    """
    atomic_write(folder / "metrics.json", json.dumps(metrics, indent=1).encode())
    text = [f"## {part}\n\n{format_table(rows)}\n" for part, rows in metrics.items()]
    atomic_write(
        folder / "metrics.md", "\n".join([*text, *([f"## Verdict\n\n{verdict}\n"] if verdict else [])]).encode()
    )


def compute_validation_metrics(result: Validation, sources: list[str]) -> dict[str, dict[str, Any]]:
    """Return per head: errors in meV/atom and meV/Angstrom, baselines, ratios and rank correlations.

    energy_mae, energy_member_mae, energy_baseline : meV/atom of the members' mean, of single members, of the element
        references alone.
    force_mae, force_member_mae, force_baseline : meV/Angstrom per component; the baseline predicts zero.
    spread_error_energy, spread_error_force : Spearman correlation, over structures, of spread and |error|.
    """
    out: dict[str, dict[str, Any]] = {}
    for head, name in enumerate(sources):
        own = result.head == head
        if not own.any():
            continue
        known = own & np.isfinite(result.energy)
        error = np.abs(result.energy_error)
        per_atom = np.abs(result.energy) / np.maximum(result.n_atoms, 1)
        single = np.abs(result.energy_members - result.energy) / np.maximum(result.n_atoms, 1)
        row: dict[str, Any] = {"structures": int(own.sum()), "energies": int(known.sum())}
        if known.any():
            row |= {
                "energy_mae": 1e3 * float(error[known].mean()),
                "energy_member_mae": 1e3 * float(single[:, known].mean()),
                "energy_baseline": 1e3 * float(per_atom[known].mean()),
                "spread_error_energy": correlate_ranks(result.energy_spread[known], error[known]),
            }
            row["energy_ratio"] = divide(row["energy_mae"], row["energy_baseline"])
        forced = own & result.has_forces
        if forced.any():
            components = 3 * int(result.n_atoms[forced].sum())
            per_atom_error = result.force_error[forced] / result.n_atoms[forced]
            spread = result.force_spread[forced] if len(result.energy_members) > 1 else np.full(forced.sum(), np.nan)
            row |= {
                "force_mae": 1e3 * float(result.force_error[forced].sum() / components),
                "force_member_mae": 1e3 * float(result.force_error_members[:, forced].sum(1).mean() / components),
                "force_baseline": 1e3 * float(result.force_size[forced].sum() / components),
                "spread_error_force": correlate_ranks(spread, per_atom_error),
            }
            row["force_ratio"] = divide(row["force_mae"], row["force_baseline"])
        out[name] = row
    return out


def write_predictions(path: Path, result: Validation) -> None:
    """Write labels and predictions of a part, for calibration and plots of one's own (arrays only)."""
    np.savez_compressed(
        path,
        head=result.head,
        n_atoms=result.n_atoms,
        energy=result.energy,
        energy_members=result.energy_members,
        force_error=result.force_error,
        force_spread=result.force_spread,
        has_forces=result.has_forces,
    )
