"""Plots of an evaluation, as PNG: reliability, parity, error against sigma, coverage of every head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.evaluation.error_sets import LEVEL, Errors
from atomsieve.evaluation.figures import FITTED, PROPERTIES, RAW, add_shared_legend, png, pyplot, thin_indices
from atomsieve.evaluation.limits import limit
from atomsieve.evaluation.metrics import Evaluation
from atomsieve.evaluation.parity import draw_parity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL = "#444444"
GOAL = (LEVEL - limit("coverage_off"), LEVEL + limit("coverage_off"))
BINS = 12


def make_plots(evaluation: Evaluation) -> dict[str, bytes]:
    """Return the PNG of each plot by its name, in the order in which they are shown."""
    made: dict[str, bytes] = {}
    for name in PROPERTIES:
        panels = [(head, name) for head, row in evaluation.metrics["heads"].items() if name in row]
        if panels:
            made[f"parity_{name}"] = draw_parity(evaluation.rows, panels)
    made["coverage"] = png(_coverage(evaluation.metrics["heads"]))
    grids: dict[str, Callable[[Axes, str, str, Evaluation], None]] = {
        "reliability": _reliability,
        "error_vs_sigma": _error_vs_sigma,
    }
    for what, draw in grids.items():
        for name in PROPERTIES:
            heads = [h for h, row in evaluation.metrics["heads"].items() if name in row]
            if heads:
                made[f"{what}_{name}"] = png(_grid(heads, name, draw, evaluation))
    return made


def _grid(
    heads: list[str], name: str, draw: Callable[[Axes, str, str, Evaluation], None], evaluation: Evaluation
) -> Figure:
    """Draw one panel for each head."""
    columns = min(4, len(heads))
    rows = math.ceil(len(heads) / columns)
    figure, grid = pyplot().subplots(
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
    add_shared_legend(figure, [grid.flat[0]], "upper")
    return figure


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


def _coverage(heads: dict[str, Any]) -> Figure:
    """Draw the share of errors within the 90 % interval of every head, and the share within the raw spread."""
    names = list(heads)
    figure, both = pyplot().subplots(
        1, 2, figsize=(10.5, 0.27 * len(names) + 1.5), layout="constrained", sharey=True, squeeze=False
    )
    at = np.arange(len(names))[::-1]
    for axes, name in zip(both[0], PROPERTIES, strict=True):
        axes.axvspan(
            *GOAL, color="#2e8b57", alpha=0.15, linewidth=0, label=f"{100 * GOAL[0]:.0f} to {100 * GOAL[1]:.0f} %"
        )
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
