"""Rows as people read them: names for codes, formulas, CSV and terminal tables."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.screen.results.columns import COLUMNS, format_value, reasons_text
from atomsieve.structures.interface import StructureReader

if TYPE_CHECKING:
    from rich.table import Table

GAP = 64  # structures; wanted ones closer than this are read in one piece
PIECE = 20_000


@dataclass(frozen=True)
class Labels:
    """Names behind the codes of the columns `head`, `precision`, `status` and `outside`."""

    heads: list[str]
    precisions: list[str]
    statuses: dict[int, str]
    meanings: dict[str, str]
    reasons: dict[int, str]

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> Labels:
        """Return the labels of a run.json."""
        statuses = manifest["statuses"]
        return Labels(
            heads=list(manifest["heads"]),
            precisions=list(manifest["precisions"]),
            statuses={int(code): status["name"] for code, status in statuses.items()},
            meanings={status["name"]: status["meaning"] for status in statuses.values()},
            reasons={int(bit): reason["name"] for bit, reason in manifest.get("reasons", {}).items()},
        )

    def status(self, code: int) -> str:
        """Return the name of a status code."""
        return self.statuses.get(int(code), str(code))

    def text(self, name: str, value: Any) -> str:
        """Return one value of a row as text."""
        if name == "head":
            return self.heads[int(value)]
        if name == "precision":
            return self.precisions[int(value)]
        if name == "outside":
            return reasons_text(value, self.reasons)
        return self.status(value) if name == "status" else format_value(name, value)


def pieces(positions: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges (start, stop) of the input that together hold the sorted `positions`, not much else besides."""
    runs = np.flatnonzero(np.diff(positions) > GAP) + 1
    for run in np.split(positions, runs) if len(positions) else []:
        while len(run):
            inside = int(np.searchsorted(run, run[0] + PIECE))
            yield int(run[0]), int(run[inside - 1]) + 1
            run = run[inside:]


def formula(numbers: NDArray[np.uint8]) -> str:
    """Return the chemical formula in Hill order: C, H, then by symbol; without C all by symbol."""
    from ase.data import chemical_symbols

    found, counts = np.unique(numbers, return_counts=True)
    amounts = {
        chemical_symbols[z] if z < len(chemical_symbols) else f"[{z}]": int(n)
        for z, n in zip(found, counts, strict=True)
    }
    first = [s for s in ("C", "H") if s in amounts] if "C" in amounts else []
    order = first + sorted(set(amounts) - set(first))
    return "".join(s + (str(amounts[s]) if amounts[s] > 1 else "") for s in order)


def formulas(positions: NDArray[np.int64], reader: StructureReader) -> dict[int, str]:
    """Return the formula of each structure at `positions` of the input."""
    wanted = np.unique(positions)
    found = {}
    for start, stop in pieces(wanted):
        batch = reader.read(start, stop, ())
        for p in wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]:
            own = slice(int(batch.ptr[p - start]), int(batch.ptr[p - start + 1]))
            found[int(p)] = formula(batch.numbers[own])
    return found


def csv_of_top(rows: NDArray[Any], labels: Labels, names: Mapping[int, str]) -> str:
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
    labels: Labels,
    names: Mapping[int, str] | None = None,
    title: str = "",
    by: str | Sequence[str] = "",
    groups: tuple[str, Sequence[str]] | None = None,
) -> Table:
    """Return the rows as a terminal table, best first, without columns that say nothing here.

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


def _cell(name: str, value: Any, labels: Labels) -> str:
    if COLUMNS[name].dtype.startswith("<f"):
        return f"{value:.4f}" if np.isfinite(value) else ""
    if COLUMNS[name].dtype == "?":
        return "yes" if value else "no"
    return labels.text(name, value)


def ranked_together(labels: Labels, by: str, where: str | None) -> str | None:
    """Return a line for people if energies of several heads were ranked together."""
    if by not in ("energy", "energy_per_atom") or len(labels.heads) == 1 or "head" in (where or ""):
        return None
    return (
        f"{len(labels.heads)} heads are ranked together, and energies of different heads have different zeros; --head "
        f"chooses one: {', '.join(labels.heads)}"
    )


def status_table(counts: Mapping[str, int], labels: Labels, title: str = "") -> Table:
    """Return rows per status as a terminal table."""
    from rich.table import Table

    out = Table("status", title=title, title_justify="left")
    out.add_column("rows", justify="right")
    out.add_column("meaning")
    for name, n in counts.items():
        out.add_row(name, f"{n:,}", labels.meanings.get(name, ""))
    return out
