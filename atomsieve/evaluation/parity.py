"""Predictions against labels, with a histogram of the errors beside each scatter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atomsieve.evaluation.figures import FITTED, OUTSIDE, PROPERTIES, RAW, add_shared_legend, png, pyplot, thin_indices
from atomsieve.evaluation.residuals import HeadRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 41
BASELINES = {"energy": "references alone", "force": "zero forces"}


def draw_parity(
    rows: Mapping[str, HeadRows], panels: Sequence[tuple[str, str]] | None = None, title: str | None = None
) -> bytes:
    """Return a PNG of predictions against labels, each scatter with a histogram of the errors beside it.

    panels : head and property ("energy", "force") of each pair; None takes all that have labels.
    """
    if panels is None:
        panels = [(head, name) for name in PROPERTIES for head, found in rows.items() if _has_both(name, found)]
    columns = max(1, min(3, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    figure, grid = pyplot().subplots(
        lines,
        2 * columns,
        figsize=(4.8 * columns + 0.3, 2.6 * lines + 0.6),
        layout="constrained",
        squeeze=False,
        gridspec_kw={"width_ratios": [1.2, 1] * columns},
    )
    pairs = grid.reshape(-1, 2)
    for (scatter, histogram), (head, name) in zip(pairs, panels, strict=False):
        _draw_scatter(scatter, name, rows[head])
        _draw_histogram(histogram, name, rows[head])
        scatter.set_title(f"{head}: {name}", fontsize=9, loc="left")
        for axes in (scatter, histogram):
            axes.tick_params(labelsize=7)
            axes.xaxis.label.set_size(7)
            axes.yaxis.label.set_size(7)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in pairs[len(panels) :].ravel():
        axes.remove()
    if panels:
        add_shared_legend(figure, pairs[0].tolist(), "lower", markerscale=4)
    if title:
        figure.suptitle(title, fontsize=10)
    return png(figure)


def _has_both(name: str, rows: HeadRows) -> bool:
    label, predicted, _ = _take_points(name, rows)
    return bool(np.isfinite(label - predicted).any())


def _draw_scatter(axes: Axes, name: str, rows: HeadRows) -> None:
    """Draw predictions against labels; energies per atom without the element references."""
    label, found, outside = _take_points(name, rows)
    unit = "eV/atom less references" if name == "energy" else "eV/Å"
    good = np.flatnonzero(np.isfinite(label) & np.isfinite(found))
    good = good[thin_indices(len(good))]
    for chosen, colour, text in ((~outside, FITTED, "in domain"), (outside, OUTSIDE, "outside")):
        own = good[chosen[good]]
        axes.scatter(label[own], found[own], s=4, alpha=0.45, color=colour, linewidths=0, label=text)
    span = [min(label[good].min(), found[good].min()), max(label[good].max(), found[good].max())]
    margin = 0.04 * (span[1] - span[0]) or 0.5
    span = [span[0] - margin, span[1] + margin]
    axes.plot(span, span, color="0.4", linewidth=0.8, zorder=0)
    axes.set(xlabel=f"label, {unit}", ylabel=f"predicted, {unit}", aspect="equal", xlim=span, ylim=span)
    axes.locator_params(nbins=4)


def _draw_histogram(axes: Axes, name: str, rows: HeadRows) -> None:
    """Draw how often errors of each size occur, beside those of the predictor without a network."""
    label, found, _ = _take_points(name, rows)
    good = np.isfinite(label) & np.isfinite(found)
    error, zero = 1e3 * (found - label)[good], -1e3 * label[good]
    both = np.abs(np.concatenate([error, zero]))
    limit = float(np.quantile(both, 0.99)) or 1.0
    edges = np.linspace(-limit, limit, BINS + 1).tolist()
    for values, colour, alpha, text in ((error, FITTED, 0.75, "errors"), (zero, RAW, 0.6, "errors without a network")):
        axes.hist(np.clip(values, -limit, limit), edges, color=colour, alpha=alpha, label=text, zorder=alpha)
    axes.set(yscale="log", ylim=(0.7, None), xlabel=f"error, {PROPERTIES[name][1]}", ylabel="number")
    words = f"MAE {_write(np.abs(error).mean())}, {BASELINES[name]} {_write(np.abs(zero).mean())}"
    axes.set_title(words, fontsize=7, loc="left", color="0.25")
    axes.locator_params(axis="x", nbins=4)


def _write(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def _take_points(name: str, rows: HeadRows) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return labels and predictions [M] of a property, and which of them are outside of the domain."""
    if name == "energy":
        n = np.maximum(rows.natoms, 1)
        label, found = ((v - rows.reference) / n for v in (rows.energy, rows.predicted))
        return label, found, rows.outside > 0
    return rows.force.ravel(), rows.predicted_force.ravel(), np.repeat(rows.outside[rows.atom_structure] > 0, 3)
