"""The folder of an evaluation: metrics.json, structures.npz, plots, and a page that holds them all."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.errors import UsageError, require
from atomsieve.evaluation.metrics import Evaluation
from atomsieve.evaluation.plots import make_plots
from atomsieve.evaluation.verdict import judge
from atomsieve.gfm.evaluation_file import COLUMNS, format_cells
from atomsieve.runs.output_files import atomic_write

METRICS, ROWS, PAGE = "metrics.json", "structures.npz", "index.html"
TEMPLATE = "evaluation.html.jinja"
HEADINGS = (
    ("structures", "structures"),
    ("mae", "MAE"),
    ("rmse", "RMSE"),
    ("coverage", "in 90 % interval"),
    ("coverage_se", "±"),
    ("coverage_raw", "raw"),
    ("area_raw", "area raw"),
    ("area", "area"),
    ("crps", "CRPS"),
    ("sharpness", "sharpness"),
    ("spearman", "rho"),
)
"""Number of a row, and its heading."""
CAPTIONS = {
    "coverage": "Share of errors within the 90 % interval, with its standard error (a structure counts once); "
    "diamonds: within 1.645 times the raw spread of the members.",
    "reliability": "Share of errors within central intervals of a Gaussian, against the share that ought to be there. "
    "Above the diagonal: too cautious; below: too sure.",
    "error_vs_sigma": "Error against its predicted standard error. The line of bins lies on the diagonal where sigma "
    "is right at every size.",
    "parity": "Prediction against label; structures outside of the head's domain are in red. Beside it the number of "
    "errors of each size (blue; the outermost hundredth is in the last bins), and of those of the predictor without a "
    "network (grey).",
}


def write_evaluation(evaluation: Evaluation, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write an evaluation into a folder, each file whole, the page last; return the path of the page.

    Raises
    ------
    UsageError
        if the folder holds an evaluation and `overwrite` is not given, or something else altogether.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{place} is a file; give a folder")
    if place.is_dir() and any(place.iterdir()):
        if not (place / METRICS).is_file():
            raise UsageError(f"{place} holds something that is not an evaluation; give another folder")
        if not overwrite:
            raise UsageError(f"{place} holds an evaluation; give another --out, or --overwrite")
    place.mkdir(parents=True, exist_ok=True)
    plots = make_plots(evaluation)
    page = _page(evaluation.metrics, plots).encode()
    for name, data in plots.items():
        atomic_write(place / f"{name}.png", data)
    atomic_write(place / ROWS, _rows(evaluation))
    atomic_write(place / METRICS, json.dumps(evaluation.metrics, indent=1, allow_nan=False).encode())
    atomic_write(place / PAGE, page)
    return place / PAGE


def _rows(evaluation: Evaluation) -> bytes:
    """Return the arrays per structure, all heads one after another (`head` indexes `heads`), as .npz."""
    names = (
        "position",
        "natoms",
        "elements",
        "status",
        "outside",
        "energy",
        "predicted",
        "energy_std",
        "sigma_energy",
        "interval_energy",
    )
    rows = evaluation.rows
    arrays: dict[str, Any] = {n: np.concatenate([getattr(r, n) for r in rows.values()]) for n in names}
    arrays["head"] = np.repeat(np.arange(len(rows)), [len(r.position) for r in rows.values()])
    arrays["heads"] = np.array(list(rows))
    total, number = [], []
    for r in rows.values():
        total.append(np.bincount(r.atom_structure, np.abs(r.predicted_force - r.force).mean(1), len(r.position)))
        number.append(np.bincount(r.atom_structure, minlength=len(r.position)))
    count = np.concatenate(number)
    arrays["force_mae"] = np.where(count > 0, np.concatenate(total) / np.maximum(count, 1), np.nan)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def format_row(row: dict[str, Any] | None) -> list[str]:
    """Return the cells of one property (see HEADINGS); sizes in thousandths of the file's units."""
    if row is None:
        return ["-"] * len(HEADINGS)
    raw, fitted = row.get("raw") or {}, row.get("calibrated") or {}
    best = fitted or raw
    sizes = {k: v for k, v in (("mae", row["mae"]), ("rmse", row["rmse"])) if v is not None}
    sizes |= {k: best[k] for k in ("crps", "sharpness") if k in best}
    shares = {
        "coverage": row["coverage"],
        "coverage_se": row["coverage_se"],
        "coverage_raw": row["coverage_raw"],
        "area_raw": raw.get("miscalibration_area"),
        "area": fitted.get("miscalibration_area"),
        "spearman": row.get("spearman"),
    }
    cells = []
    for key, _ in HEADINGS:
        if key == "structures":
            cells.append(f"{row['structures']:,}")
        elif key in sizes:
            cells.append(f"{1e3 * sizes[key]:.1f}")
        else:
            value = shares.get(key)
            cells.append("-" if value is None else f"{value:.3f}" if key.startswith("area") else f"{value:.2f}")
    return cells


def list_notices(metrics: dict[str, Any]) -> list[str]:
    """Return warnings that belong above the numbers: trained on these data, uncalibrated heads, and so on."""
    found = []
    if metrics["data"]["trained_on"]:
        found.append("The members were trained on these structures: all numbers are too good.")
    if others := metrics["data"].get("left_out"):
        found.append(f"Left out, as no head is called so: {', '.join(others)}.")
    labels = {"energy": "energies", "force": "forces"}
    for kind, plural in labels.items():
        which = "energy" if kind == "energy" else "forces"
        lacking = [h for h, row in metrics["heads"].items() if kind in row and which not in row["calibrated"]]
        if lacking:
            found.append(f"Uncalibrated {plural}, raw spread only: {', '.join(lacking)}.")
    same = [d for d in metrics["calibrated_on"] if d["sha256"] == metrics["data"]["sha256"] and d["part"] == "all"]
    if same:
        found.append("The ensemble was calibrated on these very structures: coverage is right by construction.")
    return found


def _page(metrics: dict[str, Any], plots: dict[str, bytes]) -> str:
    jinja = require("jinja2", "uncertainty", "the page of an evaluation")
    text = (files("atomsieve.evaluation") / TEMPLATE).read_text(encoding="utf-8")
    template = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    images = [
        {
            "name": name,
            "data": base64.b64encode(data).decode(),
            "caption": next(text for key, text in CAPTIONS.items() if name.startswith(key)),
        }
        for name, data in plots.items()
    ]
    tables = [
        {
            "title": f"Uncertainty of {name}, {unit}",
            "rows": [(head, format_row(row.get(name))) for head, row in metrics["heads"].items() if name in row],
        }
        for name, unit in (("energy", "meV/atom"), ("force", "meV/Å per component"))
    ]
    heads = metrics["heads"]
    used = [k for k, (key, *_) in enumerate(COLUMNS) if any(row.get(key) is not None for row in heads.values())]
    return str(
        template.render(
            m=metrics,
            notices=list_notices(metrics),
            verdict=judge(metrics),
            columns=[COLUMNS[k] for k in used],
            headline=[(head, [format_cells(row)[k] for k in used]) for head, row in heads.items()],
            worst=[(head, [_worst_cells(one) for one in row.get("worst", [])]) for head, row in heads.items()],
            tables=tables,
            headings=[h for _, h in HEADINGS],
            images=images,
            parts=_parts(metrics),
        )
    )


def _worst_cells(one: dict[str, Any]) -> list[str]:
    """Return the cells of one of the worst structures (see the template)."""
    energy = one["property"] == "energy"
    return [
        one["property"],
        f"{one['position']:,}",
        one["formula"],
        f"{one['natoms']:,}",
        f"{one['error']:,.1f} {'meV/atom' if energy else 'meV/Å'}",
        "-" if one["sigmas"] is None else f"{one['sigmas']:.1f}",
        *(f"{one[key]:.3f} {'eV/atom' if energy else 'eV/Å'}" for key in ("label", "predicted")),
        "; ".join(one["odd"]) or "nothing found",
    ]


def _parts(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables by domain, size and elements: rows of (head, part, structures, MAE, coverage, raw)."""
    titles = {"domain": "Inside and outside of the domain", "size": "By size (tertiles)", "elements": "By elements"}
    out = []
    for kind, title in titles.items():
        rows = []
        for head, row in metrics["heads"].items():
            for name, unit in (("energy", "meV/atom"), ("force", "meV/Å")):
                for part, of in row.get(name, {}).get("by", {}).get(kind, {}).items():
                    shown = ["-" if of[k] is None else f"{of[k]:.2f}" for k in ("coverage", "coverage_se")]
                    rows.append((head, name, part, f"{of['structures']:,}", f"{1e3 * of['mae']:.1f} {unit}", *shown))
        out.append({"title": title, "rows": rows})
    return out
