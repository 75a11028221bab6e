"""Plots of an evaluation, as PNG: reliability, parity, error against sigma, coverage of every head."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.evaluation.error_sets import LEVEL, Errors, energy_errors, force_errors
from atomsieve.evaluation.metrics import Evaluation
from atomsieve.evaluation.residuals import HeadRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RAW, FITTED, LABEL = "#b0b0b0", "#1f5fa8", "#444444"
GOAL = (0.87, 0.93)
MOST_POINTS = 4000
BINS = 12
PROPERTIES: dict[str, tuple[Callable[[HeadRows], Errors], str]] = {
    "energy": (energy_errors, "meV/atom"),
    "force": (force_errors, "meV/Å"),
}


def make_plots(evaluation: Evaluation) -> dict[str, bytes]:
    """Return the PNG of each plot by its name, in the order in which they are shown."""
    made: dict[str, bytes] = {"coverage": _png(_coverage(evaluation.metrics["heads"]))}
    panels: dict[str, Callable[[Axes, str, str, Evaluation], None]] = {
        "reliability": _reliability,
        "error_vs_sigma": _error_vs_sigma,
        "parity": _draw_parity_panel,
    }
    for what, draw in panels.items():
        for name in PROPERTIES:
            heads = [h for h, row in evaluation.metrics["heads"].items() if name in row]
            if heads:
                made[f"{what}_{name}"] = _png(_grid(heads, name, draw, evaluation))
    return made


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png", metadata={"Software": None})
    _pyplot().close(figure)
    return file.getvalue()


def _grid(
    heads: list[str], name: str, draw: Callable[[Axes, str, str, Evaluation], None], evaluation: Evaluation
) -> Figure:
    """Draw one panel for each head."""
    columns = min(4, len(heads))
    rows = math.ceil(len(heads) / columns)
    figure, grid = _pyplot().subplots(
        rows, columns, figsize=(2.9 * columns + 0.4, 2.75 * rows + 0.5), layout="constrained", squeeze=False
    )
    for axes, head in zip(grid.flat, heads, strict=False):
        draw(axes, head, name, evaluation)
        axes.set_title(head, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(heads) :]:
        axes.remove()
    x, y = (getattr(grid.flat[0], f"get_{axis}label")() for axis in "xy")
    for axes in grid.flat[: len(heads)]:
        axes.set(xlabel="", ylabel="")
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    _add_shared_legend(figure, grid.flat[0], "upper", markerscale=1 if draw is not _draw_parity_panel else 4)
    return figure


def _add_shared_legend(figure: Figure, axes: Axes, side: str, markerscale: float) -> None:
    """Put the legend of one panel outside of all panels, at the `upper` or `lower` side of the figure."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles,
            labels,
            fontsize=9,
            markerscale=markerscale,
            loc="outside upper center" if side == "upper" else "outside lower center",
            ncols=len(handles),
            frameon=False,
        )
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)


def _few_ticks(axes: Axes) -> None:
    """Label a logarithmic axis at a few round numbers, however short it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        decades = math.log10(limits[1] / limits[0])
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.2 else (1.0,), numticks=8))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _reliability(axes: Axes, head: str, name: str, evaluation: Evaluation) -> None:
    """Draw the observed against the expected share of errors, of the raw spread and of sigma."""
    row = evaluation.metrics["heads"][head][name]
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    for kind, colour, label in (("raw", RAW, "spread"), ("calibrated", FITTED, "calibrated sigma")):
        found = row[kind]
        x, y = (found["reliability"][k] for k in ("expected", "observed")) if found else ([], [])
        axes.plot(x, y, color=colour, linewidth=1.8, label=label)
        if found and kind == "calibrated":
            axes.fill_between(x, x, y, color=colour, alpha=0.15, linewidth=0)
    area = (row["calibrated"] or row["raw"] or {}).get("miscalibration_area")
    state = "" if row["calibrated"] else "uncalibrated, "
    axes.text(0.97, 0.05, f"{state}area {area:.3f}" if area is not None else "one member", fontsize=7.5, ha="right")
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xticks=(0, 0.5, 1),
        yticks=(0, 0.5, 1),
        aspect="equal",
        xlabel="expected share of errors within the interval",
        ylabel="observed share",
    )


def _error_vs_sigma(axes: Axes, head: str, name: str, evaluation: Evaluation) -> None:
    """Draw |error| against sigma (the raw spread where uncalibrated), and the root mean square of both in bins."""
    errors, unit = _errors(evaluation, head, name)
    calibrated = bool(np.isfinite(errors.sigma).any())
    sigma = 1e3 * (errors.sigma if calibrated else errors.spread)
    error = 1e3 * np.abs(errors.error)
    good = np.isfinite(sigma) & (sigma > 0)
    sigma, error = sigma[good], error[good]
    axes.set(xlabel=f"sigma, {unit}", ylabel=f"|error|, {unit}")
    if len(sigma) == 0:
        return
    few = thin_indices(len(sigma))
    largest = float(error.max()) or 1.0
    small = max(np.quantile(error[error > 0], 0.002), 1e-4 * largest) if (error > 0).any() else 1e-4
    axes.scatter(sigma[few], np.maximum(error[few], small), s=5, alpha=0.6, color=RAW, linewidths=0)
    parts = [p for p in np.array_split(np.argsort(sigma, kind="stable"), min(BINS, max(1, len(sigma) // 10))) if len(p)]
    x, y = (np.array([np.sqrt(np.mean(v[p] ** 2)) for p in parts]) for v in (sigma, error))
    span = np.array([sigma.min(), sigma.max()])
    axes.plot(span, span, color="0.4", linewidth=0.9, linestyle=":", label="error = sigma")
    axes.plot(x, y, "o-", color=FITTED, markersize=3.5, linewidth=1.2, label="root mean square in bins")
    axes.set(xscale="log", yscale="log", ylim=(small * 0.8, 2 * largest))
    _few_ticks(axes)
    if not calibrated:
        axes.text(0.97, 0.05, "uncalibrated: spread", fontsize=7.5, ha="right", transform=axes.transAxes)


def _draw_parity_panel(axes: Axes, head: str, name: str, evaluation: Evaluation) -> None:
    _parity_panel(axes, name, evaluation.rows[head])


def _parity_panel(axes: Axes, name: str, rows: HeadRows) -> None:
    """Draw predictions against labels; energies per atom without the element references."""
    label, found, outside = _parity_points(name, rows)
    unit = "eV/atom less references" if name == "energy" else "eV/Å"
    good = np.flatnonzero(np.isfinite(label) & np.isfinite(found))
    good = good[thin_indices(len(good))]
    for chosen, colour, text in ((~outside, FITTED, "in domain"), (outside, "#d1495b", "outside")):
        own = good[chosen[good]]
        axes.scatter(label[own], found[own], s=4, alpha=0.45, color=colour, linewidths=0, label=text)
    span = [min(label[good].min(), found[good].min()), max(label[good].max(), found[good].max())]
    margin = 0.04 * (span[1] - span[0]) or 0.5
    span = [span[0] - margin, span[1] + margin]
    axes.plot(span, span, color="0.4", linewidth=0.8, zorder=0)
    axes.set(xlabel=f"label, {unit}", ylabel=f"predicted, {unit}", aspect="equal", xlim=span, ylim=span)
    axes.locator_params(nbins=4)


def _parity_points(name: str, rows: HeadRows) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return labels and predictions [M] of a property, and which of them are outside of the domain."""
    if name == "energy":
        n = np.maximum(rows.natoms, 1)
        label, found = ((v - rows.reference) / n for v in (rows.energy, rows.predicted))
        return label, found, rows.outside > 0
    return rows.force.ravel(), rows.predicted_force.ravel(), np.repeat(rows.outside[rows.atom_structure] > 0, 3)


def draw_parity(rows: Mapping[str, HeadRows], title: str) -> bytes:
    """Return a PNG of predictions against labels, with a panel of energies and one of forces for each head."""
    panels = []
    for name in PROPERTIES:
        for head, found in rows.items():
            label, predicted, _ = _parity_points(name, found)
            if np.isfinite(label - predicted).any():
                panels.append((head, name))
    columns = max(1, min(4, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    figure, grid = _pyplot().subplots(
        lines, columns, figsize=(3.1 * columns, 3.0 * lines + 0.4), layout="constrained", squeeze=False
    )
    for axes, (head, name) in zip(grid.flat, panels, strict=False):
        _parity_panel(axes, name, rows[head])
        axes.set_title(f"{head}: {name}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(7)
        axes.yaxis.label.set_size(7)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    if panels:
        _add_shared_legend(figure, grid.flat[0], "lower", markerscale=4)
    figure.suptitle(title, fontsize=10)
    return _png(figure)


def _coverage(heads: dict[str, Any]) -> Figure:
    """Draw the share of errors within the 90 % interval of every head, and the share within the raw spread."""
    names = list(heads)
    figure, both = _pyplot().subplots(
        1, 2, figsize=(10.5, 0.27 * len(names) + 1.5), layout="constrained", sharey=True, squeeze=False
    )
    at = np.arange(len(names))[::-1]
    for axes, name in zip(both[0], PROPERTIES, strict=True):
        axes.axvspan(*GOAL, color="#2e8b57", alpha=0.15, linewidth=0, label="87 to 93 %")
        axes.axvline(LEVEL, color="#2e8b57", linewidth=1)
        rows = [heads[h].get(name, {}) for h in names]
        raw, share, error = (_column(rows, key) for key in ("coverage_raw", "coverage", "coverage_se"))
        axes.barh(at, share, height=0.62, color=FITTED, alpha=0.85, label="90 % interval")
        axes.errorbar(share, at, xerr=error, fmt="none", color=LABEL, capsize=2.5, linewidth=1)
        axes.plot(raw, at, "D", color="white", markeredgecolor=LABEL, markersize=5, label="1.645 x raw spread")
        for y, value, known in zip(at, share, rows, strict=True):
            text = f" {value:.2f}" if np.isfinite(value) else (" uncalibrated" if known else " no labels")
            axes.text(1.01, y, text, va="center", fontsize=8, color=LABEL)
        axes.set(xlim=(0, 1), ylim=(-0.6, len(names) - 0.4), title=f"{name}: share of errors within")
        axes.set_yticks(at, names, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = both[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _column(rows: Iterable[dict[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], float)


def _errors(evaluation: Evaluation, head: str, name: str) -> tuple[Errors, str]:
    make, unit = PROPERTIES[name]
    return make(evaluation.rows[head]), unit


def thin_indices(n: int) -> NDArray[np.int64]:
    """Return at most MOST_POINTS of n indices, evenly spaced: enough points for a panel."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).astype(np.int64)) if n else np.zeros(0, np.int64)
