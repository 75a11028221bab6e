"""Report of a relaxation for people: reasons of the stops, and the best converged structures."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from atomsieve.calculators.relax_result import Stop
from atomsieve.text import format_duration, pluralize

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from atomsieve.followup.relax.run import RelaxSummary

SHOWN = {
    "rank": "rank\nscreened",
    "position": "position",
    "id": "id",
    "formula": "formula",
    "steps": "steps",
    "energy_per_atom [eV/atom]": "energy\neV/atom",
    "change": "change\neV/atom",
    "energy_above_hull [eV/atom]": "above hull\neV/atom",
    "sigma_energy_above_hull [eV/atom]": "±\neV/atom",
    "duplicate_of": "same as\nrank",
    "moved [Angstrom]": "moved\nÅ",
    "volume_ratio": "volume\nratio",
    "symmetry": "space group",
    "sigma_energy [eV]": "sigma\neV",
    "energy_std [eV]": "spread\neV",
    "in_domain": "in\ndomain",
}
"""Columns of the table on the terminal."""
DOUBTED = {
    "rank": "rank\nscreened",
    "position": "position",
    "id": "id",
    "formula": "formula",
    "steps": "steps",
    "reason": "reason",
    "volume_ratio": "volume\nratio",
    "moved [Angstrom]": "moved\nÅ",
    "symmetry": "space group",
    "passed": "what was passed",
}
"""Columns of the table of structures that ended beyond a limit."""
STILL = 1e-3
"""eV/Angstrom; smaller forces vanish by symmetry, or in a minimum."""
LEFT = ("id", "formula", "reason", "symmetry", "passed")


def best_table(result: RelaxSummary, shown: int) -> Table:
    """Return the best structures among those that converged: by energy above the hull if known, else per atom."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = [row for row in _read_rows(result) if row["reason"] == Stop.CONVERGED.name]
    for row in rows:
        before = float(row["energy_before [eV]"]) / max(int(row["natoms"]), 1)
        row["change"] = str(float(row["energy_per_atom [eV/atom]"]) - before)
    above = "energy_above_hull [eV/atom]"
    known = any(row.get(above) for row in rows)
    by, said = (above, "energy above the hull") if known else ("energy_per_atom [eV/atom]", "energy per atom")
    rows.sort(key=lambda row: (float(row[by] or "inf"), int(row["rank"])))
    place = _choose_place(rows)
    always = ("rank", place, "formula", "steps")
    hidden = {"position", "id"} - {place}
    names = [name for name in SHOWN if name not in hidden and (name in always or any(row.get(name) for row in rows))]
    title = f"{min(shown, len(rows))} of {len(rows):,} converged structures with the smallest {said}"
    return _fill(Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False), SHOWN, names, rows[:shown])


def doubted_table(result: RelaxSummary, shown: int) -> Table:
    """Return the first structures that ended beyond a limit on their change, in the order of the selection."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = [row for row in _read_rows(result) if Stop[row["reason"]].is_change]
    title = f"{min(shown, len(rows))} of {len(rows):,} structures whose result is not believed"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    hidden = {"position", "id"} - {_choose_place(rows)}
    return _fill(table, DOUBTED, [name for name in DOUBTED if name not in hidden], rows[:shown])


def _choose_place(rows: list[dict[str, str]]) -> str:
    """Return the column that says which structure a row is: its id where that is more than its position."""
    return "id" if any(row["id"] != row["position"] for row in rows) else "position"


def _count_motionless(result: RelaxSummary) -> int:
    """Return how many structures converged without a step and without a force."""
    rows = _read_rows(result)
    return sum(
        row["reason"] == Stop.CONVERGED.name and row["steps"] == "0" and float(row["max_force [eV/Angstrom]"]) < STILL
        for row in rows
    )


def _read_rows(result: RelaxSummary) -> list[dict[str, str]]:
    """Return the rows of relaxed.csv, with one more text: the space group, and that before where it was another."""
    with open(result.folder.table, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        before, now = (row[name].partition(" ")[0] for name in ("space_group_before", "space_group"))
        row["symmetry"] = now if before == now else f"{before} → {now}"
    return rows


def _fill(table: Table, headings: dict[str, str], names: list[str], rows: list[dict[str, str]]) -> Table:
    for name in names:
        table.add_column(headings[name], justify="left" if name in LEFT else "right")
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in names))
    return table


def _cell(name: str, text: str) -> str:
    if name in ("rank", "position", "steps", "duplicate_of", *LEFT):
        return text
    if name == "in_domain":
        return "yes" if text == "True" else "no"
    return f"{float(text):.4f}" if text else ""


def print_relaxation(screen: Console, result: RelaxSummary, shown: int) -> None:
    """Print how a relaxation ended."""
    if result.reasons.get(Stop.CONVERGED.name):
        screen.print(best_table(result, shown))
    if any(Stop[name].is_change for name in result.reasons):
        screen.print(doubted_table(result, shown))
    for name, count in result.reasons.items():
        screen.print(f"{count:>8,}  {name}: {Stop[name].meaning}", highlight=False, soft_wrap=True)
    if twins := sum(bool(row["duplicate_of"]) for row in _read_rows(result)):
        screen.print(
            f"{pluralize(twins, 'structure')} became the same as one of lower energy: duplicate_of", highlight=False
        )
    if result.reasons.get(Stop.CONVERGED.name) and (still := _count_motionless(result)):
        screen.print(
            f"{pluralize(still, 'structure')} converged without a step: forces may vanish there by symmetry alone; "
            "--rattle 0.01 leaves such points",
            highlight=False,
            soft_wrap=True,
        )
    if result.computed:
        rate = result.computed / max(result.seconds, 1e-9)
        screen.print(
            f"{pluralize(result.computed, 'structure')} in {format_duration(result.seconds)}, {rate:.2f} structures/s",
            highlight=False,
        )
    else:
        screen.print("all of it was done before", highlight=False)
    folder = result.folder
    screen.print(f"{folder.table}, {folder.extxyz.name}, {folder.dataset.name}", highlight=False, soft_wrap=True)
