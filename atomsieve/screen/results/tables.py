"""Rows as CSV and as terminal tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.screen.results.code_names import CodeNames
from atomsieve.screen.results.columns import COLUMNS
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.table import ResultColumn, format_column, freeze_column, list_columns
from atomsieve.structures.carried import ID

if TYPE_CHECKING:
    from rich.table import Table


def csv_of_top(
    rows: NDArray[Any], labels: CodeNames, names: Mapping[int, str], beside: Sequence[ResultColumn] = ()
) -> str:
    """Return the table of best rows as CSV: rank, formula, every column (units in its header), those beside at the end.

    names : formulas by position. beside : further columns; a text `id` takes the place of that of the rows.
    """
    import csv

    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    texts = {column.name: format_column(column, column.values(rows)) for column in beside}
    ids = texts.pop("id", None)
    heading = [f"{c.name} [{c.unit}]" if c.unit else c.name for c in COLUMNS.values()]
    units = {c.name: f"{c.name} [{c.unit}]" if c.unit else c.name for c in beside}
    out.writerow(["rank", "formula", *heading, *(units[name] for name in texts)])
    for rank, row in enumerate(rows, start=1):
        own = {name: labels.text(name, row[name]) for name in COLUMNS}
        if ids is not None:
            own["id"] = ids[rank - 1]
        more = (protect_text(column[rank - 1]) for column in texts.values())
        out.writerow([rank, names[int(row["position"])], *own.values(), *more])
    return text.getvalue()


def protect_text(text: str) -> str:
    """Return a text that spreadsheets do not take for a formula; numbers stay."""
    if not text.startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def top_table(
    rows: NDArray[Any],
    labels: CodeNames,
    names: Mapping[int, str] | None = None,
    title: str = "",
    by: str | Sequence[str] = "",
    groups: tuple[str, Sequence[str]] | None = None,
    beside: Sequence[ResultColumn] = (),
) -> Table:
    """Return the rows as a terminal table, best first, without columns that hold no information in this run.

    names : formulas by position. by : the column that was ranked by, or several, shown in any case.
    groups : a heading and what to show under it for each row. beside : further columns; a text `id` replaces that of
        the rows.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    texts = {column.name: column for column in beside}
    shown = {
        "position": "id" not in texts,
        "id": not np.array_equal(rows["id"], rows["position"]),
        "natoms": True,
        "head": len(labels.heads) > 1,
        "precision": len(labels.precisions) > 1,
        "energy_per_atom": True,
        "energy_std": True,
        "sigma_energy": bool(np.isfinite(rows["sigma_energy"]).any()),
        "max_force": True,
        "max_force_std": bool(np.isfinite(rows["max_force_std"]).any()),
        "distance": bool(np.isfinite(rows["distance"]).any()),
        "outside": bool(rows["outside"].any()),
        "in_domain": True,
    }
    columns = [
        name
        for name in COLUMNS
        if (name not in texts and shown.get(name)) or name in ((by,) if isinstance(by, str) else by)
    ]
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    out.add_column("rank", justify="right")
    if names:
        out.add_column("formula", overflow="fold", no_wrap=True)
    if groups:
        out.add_column(groups[0], overflow="fold")
    for column in texts.values():
        unit = column.unit.replace("Angstrom", "Å")
        right = "right" if column.kind == "number" else "left"
        heading = f"{column.name.replace('_', '_' + chr(10))}{chr(10) + unit if unit else ''}"
        out.add_column(heading, justify=right, overflow="fold", no_wrap=column.name == "id")  # type: ignore[arg-type]
    more = [_show_column(column, rows) for column in texts.values()]
    for name in columns:
        title = name.replace("_", "_\n")
        unit = COLUMNS[name].unit.replace("Angstrom", "Å")
        out.add_column(f"{title}\n{unit}", justify="right", overflow="fold", no_wrap=name == "outside")
    for rank, row in enumerate(rows, start=1):
        formula = [names.get(int(row["position"]), "")] if names else []
        group = [groups[1][rank - 1]] if groups else []
        values = [texts[rank - 1] for texts in more]
        out.add_row(str(rank), *formula, *group, *values, *(_cell(name, row[name], labels) for name in columns))
    return out


LONGEST = 60  # characters of a text in a cell of a terminal table


def _show_column(column: ResultColumn, rows: NDArray[Any]) -> list[str]:
    """Return the cells of a column for people: numbers rounded, long texts cut, which the end shows."""
    values = column.values(rows).tolist()
    if column.kind == "number":
        return [_format_number(value) for value in values]
    if column.kind == "flag":
        return ["yes" if value else "no" for value in values]
    return [value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…" for value in values]


def _format_number(value: float) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4f}"


def _cell(name: str, value: Any, labels: CodeNames) -> str:
    if COLUMNS[name].dtype.startswith("<f"):
        return f"{value:.4f}" if np.isfinite(value) else ""
    if COLUMNS[name].dtype == "?":
        return "yes" if value else "no"
    return labels.text(name, value)


def failed_table(results: Results, rows: NDArray[Any], title: str) -> Table:
    """Return rows without result as a terminal table: where they are, what they are, and why."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = list_columns(results)
    heads = ["head"] if results.heads > 1 else []
    names = [name for name in ("position", ID, "formula", "natoms", *heads, "status", "why") if name in columns]
    if columns[ID].kind != "text" and np.array_equal(rows["id"], rows["position"]):
        names.remove(ID)
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        out.add_column(name, justify="right" if columns[name].kind == "number" else "left", overflow="fold")
    cells = [_show_column(freeze_column(columns[name], rows), rows) for name in names]
    for row in zip(*cells, strict=True):
        out.add_row(*row)
    return out


SHOWN_CAUSES = 8


def status_table(
    counts: Mapping[str, int],
    labels: CodeNames,
    title: str = "",
    causes: Mapping[str, Mapping[str, int]] | None = None,
) -> Table:
    """Return rows per status as a terminal table; `causes` are counted by name, for each status that has some."""
    from rich.table import Table

    out = Table("status", title=title, title_justify="left")
    out.add_column("rows", justify="right")
    out.add_column("meaning")
    if causes:
        out.add_column("by name", overflow="fold")
    for name, n in counts.items():
        found = sorted((causes or {}).get(name, {}).items(), key=lambda pair: -pair[1])
        words = [f"{cause}: {count:,}" for cause, count in found[:SHOWN_CAUSES]]
        words += [f"and {len(found) - SHOWN_CAUSES} more"] if len(found) > SHOWN_CAUSES else []
        out.add_row(name, f"{n:,}", labels.meanings.get(name, ""), *(["; ".join(words)] if causes else []))
    return out
