"""Tables of a folder of results, and the figure of error against inference cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from judge.scores import OverSeeds, compare, list_forced, over_seeds, ratios

HEADINGS = (
    ("energy", "energy ratio", ".3f"),
    ("force", "force ratio", ".3f"),
    ("fifth", "heads < 1/5", ".1f"),
    ("crps", "CRPS lower", ".1f"),
    ("z", "worst z", ".1f"),
    ("z_fitted", "worst z, fit counted", ".1f"),
    ("rate", "training structures/core-s", ".1f"),
    ("inference", "inference structures/s", ".0f"),
    ("cpu_ms", "CPU ms/structure", ".3f"),
    ("cost", "inference cost", ".2f"),
)
"""Key of a row, its heading, and how it is written."""
TIMED = ("inference", "cpu_ms", "cost")
"""Keys for which one seed stands for all: a model's cost does not depend on its seed."""
HEAD_COLUMNS = (
    ("energy_mae", "E MAE meV/atom", ".1f"),
    ("force_mae", "F MAE meV/A", ".1f"),
    ("crps", "CRPS meV/atom", ".1f"),
    ("coverage", "in 90 %", ".2f"),
    ("z", "z", "+.1f"),
)


def group_by_name(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the results by name: runs that differ by their seed alone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["name"], []).append(result)
    return groups


def mean_heads(group: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the heads of a group, each number the mean over the seeds; a number that a seed lacks is left out."""
    out: dict[str, dict[str, Any]] = {}
    for name in group[0]["heads"]:
        rows = [result["heads"][name] for result in group if name in result["heads"]]
        keys = [k for k in rows[0] if all(row.get(k) is not None for row in rows)]
        out[name] = {key: sum(row[key] for row in rows) / len(rows) for key in keys}
    return out


def pick_group(groups: Mapping[str, list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    """Return the runs of a name; the program ends with the names there are if there is none."""
    if name not in groups:
        raise SystemExit(f"no run is called {name!r}; there are {', '.join(groups)}")
    return groups[name]


def summarise_groups(results: list[dict[str, Any]], base: str) -> dict[str, dict[str, OverSeeds | None]]:
    """Return the columns of the table for each name."""
    groups = group_by_name(results)
    reference = mean_heads(pick_group(groups, base))
    out = {}
    for name, group in groups.items():
        rows = []
        for result in group:
            timed = result.get("inference") or {}
            row = compare(result["heads"], reference)
            row["rate"] = (result.get("training") or {}).get("structures_per_core_second")
            row |= {"inference": timed.get("structures_per_second"), "cpu_ms": timed.get("cpu_ms")}
            row["cost"] = timed.get("cost") if timed.get("base") == base else None
            rows.append(row)
        out[name] = {
            key: over_seeds([row[key] for row in rows if key not in TIMED or row[key] is not None]) for key in rows[0]
        }
    return out


def format_row(cells: list[str]) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def format_table(results: list[dict[str, Any]], base: str) -> str:
    """Return the table of all runs against the base, in Markdown."""
    summary, groups = summarise_groups(results, base), group_by_name(results)
    headings = ["run", "runs", "members", "core-min", *(heading for _, heading, _ in HEADINGS)]
    lines = [format_row(headings), "|" + " --- |" * len(headings)]
    for name, row in summary.items():
        group = groups[name]
        cells = [name, str(len(group)), str(group[0]["members"]), f"{group[0]['core_minutes'] or math.nan:g}"]
        for key, _, form in HEADINGS:
            value = row[key]
            whole = value is not None and value.deviation is None and key in ("fifth", "crps")
            cells.append("-" if value is None else value.format(".0f" if whole else form))
        lines.append(format_row(cells))
    heads = mean_heads(groups[base])
    forced = len(list_forced(heads))
    lines.append(
        f"\nRatios are geometric means over heads of the mean absolute error over that of {base}: energies of "
        f"{sum('energy_mae' in r for r in heads.values())} heads, forces of the {forced} whose zero-force error is "
        "above 50 meV/A (of those that the run has). Heads < 1/5: energy error below a fifth of the references alone. "
        f"CRPS lower: heads with a lower CRPS of energies than {base}. Worst z: of the coverage of 90 % intervals of "
        "energies, binomial, and with the finite calibration set counted. Inference cost: processor time over that of "
        f"{base}, timed in turns."
    )
    for name, group in groups.items():
        lacking = sorted(set(heads) - set(group[0]["heads"]))
        if lacking:
            lines.append(f"{name} lacks {len(lacking)} heads of {base}: {', '.join(lacking)}")
        failed = sum(row.get("failed") or 0 for result in group for row in result["heads"].values())
        if failed:
            lines.append(f"{name}: {failed} test structures have no result and are in no number")
    return "\n".join(lines)


def format_heads(results: list[dict[str, Any]], base: str, other: str) -> str:
    """Return a table of the heads of two runs, means over seeds, in Markdown."""
    groups = group_by_name(results)
    first, second = mean_heads(pick_group(groups, base)), mean_heads(pick_group(groups, other))
    headings = ["head", "references alone", "zero forces"]
    headings += [f"{heading}: {base}, {other}" for _, heading, _ in HEAD_COLUMNS] + ["E ratio", "F ratio"]
    lines = [format_row(headings), "|" + " --- |" * len(headings)]
    for name, row in first.items():
        own = second.get(name, {})
        cells = [
            name,
            format_number(row.get("energy_baseline"), ".1f"),
            format_number(row.get("force_baseline"), ".1f"),
        ]
        cells += [f"{format_number(row.get(k), f)}, {format_number(own.get(k), f)}" for k, _, f in HEAD_COLUMNS]
        for key in ("energy_mae", "force_mae"):
            found = ratios(second, first, key, [name])
            cells.append(format_number(found[0] if found else None, ".3f"))
        lines.append(format_row(cells))
    return "\n".join(lines)


def format_number(value: float | None, form: str) -> str:
    """Return the number, or a dash."""
    return "-" if value is None else format(value, form)


def draw_pareto(results: list[dict[str, Any]], base: str, path: Path) -> list[str]:
    """Draw the ratios of energy and force errors against the processor time of inference; return the names drawn.

    A run is drawn where it has been timed. The stairs join the runs that no other run beats in both.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    summary = {n: r for n, r in summarise_groups(results, base).items() if r["cpu_ms"] is not None}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.4), sharex=True, layout="constrained")
    for axis, (key, what) in zip(axes, (("energy", "energy MAE"), ("force", "force MAE")), strict=True):
        points = {
            name: (row["cpu_ms"].mean, row[key])
            for name, row in summary.items()
            if row[key] is not None and math.isfinite(row[key].mean)
        }
        best = find_pareto({name: (x, y.mean) for name, (x, y) in points.items()})
        stairs = sorted((points[name][0], points[name][1].mean) for name in best)
        if len(stairs) > 1:
            axis.step(*zip(*stairs, strict=True), where="post", color="0.7", zorder=1, lw=1)
        for name, (x, y) in points.items():
            colour = "C1" if name == base else "C0" if name in best else "0.45"
            axis.errorbar(x, y.mean, yerr=y.deviation, fmt="o", ms=6, color=colour, capsize=3, zorder=2)
            axis.annotate(name, (x, y.mean), xytext=(6, 5), textcoords="offset points", fontsize=8, color=colour)
        axis.set(xscale="log", yscale="log", xlabel="processor time of inference, ms per crystal of 20 atoms")
        axis.set_ylabel(f"{what}, geometric mean of ratios to {base}")
        axis.margins(x=0.3, y=0.15)
        for side in (axis.xaxis, axis.yaxis):
            wide = side_span(side) > 4
            side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if wide else tuple(np.arange(1.0, 10.0, 0.5))))
            side.set_major_formatter(FormatStrFormatter("%g"))
            side.set_minor_formatter(NullFormatter())
        axis.grid(which="both", color="0.92", zorder=0)
        axis.tick_params(which="both", labelsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return list(summary)


def side_span(axis: Any) -> float:
    """Return the largest over the smallest limit of a logarithmic axis."""
    low, high = axis.get_view_interval()
    return float(high / low) if low > 0 else math.inf


def find_pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points that no other is at most as large as in both numbers and smaller in one."""
    return [
        name
        for name, (x, y) in points.items()
        if not any(u <= x and v <= y and (u < x or v < y) for u, v in points.values())
    ]
