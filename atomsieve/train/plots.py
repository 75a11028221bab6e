"""The last page of a run: parity plot and metrics table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.train.evaluate import Evaluation

HEADINGS = (
    ("structures", "structures", "d"),
    ("energy_mae", "E MAE meV/atom", ".2f"),
    ("energy_baseline", "references alone", ".2f"),
    ("energy_ratio", "E ratio", ".3f"),
    ("force_mae", "F MAE meV/A", ".1f"),
    ("force_baseline", "zero forces", ".1f"),
    ("force_ratio", "F ratio", ".3f"),
    ("spread_error_energy", "rho E", ".2f"),
    ("spread_error_force", "rho F", ".2f"),
)
"""Metric, its heading in the table, and how it is written."""


def metrics_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Return the metrics per head as a Markdown table; rho is the Spearman correlation of spread and error."""
    lines = ["| head | " + " | ".join(h for _, h, _ in HEADINGS) + " |", "|" + " --- |" * (len(HEADINGS) + 1)]
    for name, row in metrics.items():
        cells = [format(row[key], form) if row.get(key) is not None else "-" for key, _, form in HEADINGS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_metrics(folder: Path, metrics: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Write `metrics.json` and `metrics.md`; `metrics` maps a part (val, test) to the metrics of its heads."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    text = [f"## {part}\n\n{metrics_table(rows)}\n" for part, rows in metrics.items()]
    (folder / "metrics.md").write_text("\n".join(text))


def parity_plot(path: Path, result: Evaluation, sources: list[str], title: str) -> None:
    """Draw predicted against reference residual energy per atom and forces, one colour per head, and write a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    colours = plt.get_cmap("tab20")
    mean = result.energy_members.mean(0) / np.maximum(result.n_atoms, 1)
    label = result.energy / np.maximum(result.n_atoms, 1)
    for head, name in enumerate(sources):
        own = (result.head == head) & np.isfinite(label)
        left.scatter(label[own], mean[own], s=5, color=colours(head % 20), label=name, linewidths=0)
        pairs = result.force_sample.get(head)
        if pairs is not None:
            right.scatter(pairs[:, 0], pairs[:, 1], s=2, color=colours(head % 20), linewidths=0)
    left.set(xlabel="reference, eV/atom", ylabel="predicted, eV/atom", title="energy, element references taken off")
    unit = "eV/$\\mathrm{\\AA}$"
    right.set(xlabel=f"reference, {unit}", ylabel=f"predicted, {unit}", title="force components")
    for axes in (left, right):
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="0.5", linewidth=0.8, zorder=0)
    left.legend(fontsize=7, markerscale=2.5, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)
