"""Rows as CSV and as terminal tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.screen.results.code_names import CodeNames
from atomsieve.screen.results.columns import COLUMNS

if TYPE_CHECKING:
    from rich.table import Table


def csv_of_top(rows: NDArray[Any], labels: CodeNames, names: Mapping[int, str]) -> str:
    """Return the table of best rows as CSV: rank, formula, every column (units in its header); `names` are formulas."""
    import csv

    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["rank", "formula", *(f"{c.name} [{c.unit}]" if c.unit else c.name for c in COLUMNS.values())])
    for rank, row in enumerate(rows, start=1):
        out.writerow([rank, names[int(row["position"])], *(labels.text(name, row[name]) for name in COLUMNS)])
    return text.getvalue()


def top_table(
    rows: NDArray[Any],
    labels: CodeNames,
    names: Mapping[int, str] | None = None,
    title: str = "",
    by: str | Sequence[str] = "",
    groups: tuple[str, Sequence[str]] | None = None,
) -> Table:
    """Return the rows as a terminal table, best first, without columns that hold no information in this run.

    names : formulas by position. by : the column that was ranked by, or several, shown in any case.
    groups : a heading and what to show under it for each row.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = {
        "position": True,
        "id": not np.array_equal(rows["id"], rows["position"]),
        "natoms": True,
        "head": len(labels.heads) > 1,
        "precision": len(labels.precisions) > 1,
        "energy_per_atom": True,
        "energy_std": True,
        "sigma_energy": bool(np.isfinite(rows["sigma_energy"]).any()),
        "max_force": True,
        "max_force_std": True,
        "distance": bool(np.isfinite(rows["distance"]).any()),
        "outside": bool(rows["outside"].any()),
        "in_domain": True,
    }
    columns = [name for name in COLUMNS if shown.get(name) or name in ((by,) if isinstance(by, str) else by)]
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    out.add_column("rank", justify="right")
    if names:
        out.add_column("formula", overflow="fold")
    if groups:
        out.add_column(groups[0], overflow="fold")
    for name in columns:
        title = name.replace("_", "_\n")
        unit = COLUMNS[name].unit.replace("Angstrom", "Å")
        out.add_column(f"{title}\n{unit}", justify="right", overflow="fold", no_wrap=name == "outside")
    for rank, row in enumerate(rows, start=1):
        formula = [names.get(int(row["position"]), "")] if names else []
        group = [groups[1][rank - 1]] if groups else []
        out.add_row(str(rank), *formula, *group, *(_cell(name, row[name], labels) for name in columns))
    return out


def _cell(name: str, value: Any, labels: CodeNames) -> str:
    if COLUMNS[name].dtype.startswith("<f"):
        return f"{value:.4f}" if np.isfinite(value) else ""
    if COLUMNS[name].dtype == "?":
        return "yes" if value else "no"
    return labels.text(name, value)


def status_table(counts: Mapping[str, int], labels: CodeNames, title: str = "") -> Table:
    """Return rows per status as a terminal table."""
    from rich.table import Table

    out = Table("status", title=title, title_justify="left")
    out.add_column("rows", justify="right")
    out.add_column("meaning")
    for name, n in counts.items():
        out.add_row(name, f"{n:,}", labels.meanings.get(name, ""))
    return out
