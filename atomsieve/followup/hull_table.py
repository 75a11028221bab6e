"""The table of a hull: its columns, its file, and lines for people."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, require, unknown
from atomsieve.followup.hull import ROUNDING, Hull, compute_hull
from atomsieve.followup.hull_references import (
    Entries,
    HullReferences,
    gather_references,
    make_entries,
    require_all_members,
)
from atomsieve.models.precision import PRECISIONS
from atomsieve.runs.output_files import atomic_draft, output_errors
from atomsieve.screen.results.caveats import describe_mixed_precisions
from atomsieve.screen.results.formulas import hill_formula, read_formulas
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import open_screened_input
from atomsieve.screen.results.table import read_ids
from atomsieve.screen.results.targets import check_target
from atomsieve.screen.selection.select import Selection, select_one_head
from atomsieve.text import pluralize

NEAR_HULL = 0.05
"""eV/atom; rows at most so far above the hull are counted in the lines for people."""


@dataclass(frozen=True)
class HullTable:
    """The energies of chosen rows relative to a hull, as a table.

    Attributes
    ----------
    columns : values by the names of `COLUMNS`, lowest above the hull first, rows without a hull last.
    hull : the energies. references : the entries that they are relative to.
    known : number of rows whose hull is known: the first ones of the table.
    notes : lines that qualify the rows.
    """

    columns: dict[str, list[Any]]
    hull: Hull
    references: HullReferences
    known: int
    notes: list[str]


def make_hull(
    results: Results,
    selection: Selection,
    references: Sequence[Path],
    out: Path,
    *,
    ensemble: Path | None = None,
    overwrite: bool = False,
) -> HullTable:
    """Compare the selected rows, of one head, with reference phases, and write the table to `out` (.csv, .parquet).

    references : results folders of the same ensemble and head, or structures, which are computed now.
    ensemble : folder of the ensemble that screened, if it was moved.

    Raises
    ------
    UsageError
        if a name is not allowed, or references are of another ensemble or head; AtomSieveError if `out` is there
        already, a run is not complete, or no row is selected.
    """
    check_output(out, overwrite, results)
    head, rows = select_one_head(results, selection)
    if not len(rows):
        raise AtomSieveError(
            f"no row of {results.folder.path} has a result and fulfils --where; there is nothing to compare"
        )
    names = results.labels.precisions
    used = require_all_members(results, rows, f"give --where \"precision == '{names[-1]}'\"")
    known = gather_references(results, head, min(used, key=PRECISIONS.index), references, ensemble)
    with open_screened_input(results) as reader:
        entries = make_entries(reader, rows)
    hull = compute_hull(entries, known.entries)
    formulas = read_formulas(results, rows)
    formula, ids = [formulas[p] for p in rows["position"].tolist()], read_ids(results, rows)
    table = build_table(rows, formula, head, names, hull, known.entries, ids)
    write_table(table, results, out, overwrite=overwrite)
    notes = []
    if charged := len(rows) - int(entries.usable.sum()):
        notes.append(f"{charged:,} rows are charged: a charged structure has no place on a hull")
    if len(known.precisions | used) > 1:
        notes.append(f"references in {', '.join(sorted(known.precisions))}, rows in {', '.join(sorted(used))}")
    if line := describe_mixed_precisions(results, [rows]):
        notes.append(line)
    return HullTable(table, hull, known, int(np.isfinite(hull.above).sum()), notes)


def format_hull_lines(table: HullTable) -> list[str]:
    """Return lines for people below the table: references, rows near the hull, missing elements, notes."""
    hull, references = table.hull, table.references
    above = hull.above[np.isfinite(hull.above)]
    head = table.columns["head"][0]
    lines = [
        f"references: {len(references.entries):,} entries of head {head}, {references.failed:,} without result, "
        f"{references.outside:,} outside of its domain"
    ]
    if table.known:
        lines.append(
            f"{pluralize(table.known, 'row')} in {pluralize(hull.systems, 'chemical system')}: "
            f"{np.count_nonzero(above <= 0):,} on or below the hull of the references (within {ROUNDING:g} eV/atom), "
            f"{np.count_nonzero(above <= NEAR_HULL):,} at most {NEAR_HULL:g} eV/atom above it"
        )
    if missing := sorted({z for row in hull.missing for z in row}):
        n = sum(bool(row) for row in hull.missing)
        which = f"{pluralize(n, 'row')} {'has' if n == 1 else 'have'} no hull" if table.known else "no row has a hull"
        lines.append(
            f"{which}: no reference is the element {', '.join(element_symbol(z) for z in missing)}; add structures of "
            "these elements to --references"
        )
    return [*lines, *table.notes]


COLUMNS: dict[str, str] = {
    "position": "",
    "id": "",
    "formula": "",
    "natoms": "",
    "head": "",
    "precision": "",
    "energy_per_atom": "eV/atom",
    "formation_energy": "eV/atom",
    "energy_above_hull": "eV/atom",
    "energy_above_all": "eV/atom",
    "energy_std_per_atom": "eV/atom",
    "in_domain": "",
    "decomposes_to": "",
    "missing": "",
}
"""Columns of the table of a hull, with their units."""


def element_symbol(number: int) -> str:
    """Return the symbol of an element."""
    return hill_formula(np.array([number], np.uint8))


def build_table(
    rows: NDArray[Any],
    names: list[str],
    head: str,
    precisions: list[str],
    hull: Hull,
    references: Entries,
    ids: Sequence[int | str] | None = None,
) -> dict[str, list[Any]]:
    """Return the table, lowest above the hull first, rows without a hull last; `names` are the rows' formulas.

    precisions : names behind the column `precision` of the rows. ids : of the rows; None takes their integers.
    """
    order = np.lexsort((rows["position"], np.nan_to_num(hull.above, nan=np.inf)))
    labels = {i: _reduced_formula(references, i) for k in order for _, i in hull.phases[k]}
    with np.errstate(invalid="ignore"):
        spread = rows["energy_std"] / rows["natoms"]
    found: dict[str, list[Any]] = {
        "position": rows["position"][order].tolist(),
        "id": rows["id"][order].tolist() if ids is None else [ids[k] for k in order.tolist()],
        "formula": [names[k] for k in order],
        "natoms": rows["natoms"][order].tolist(),
        "head": [head] * len(order),
        "precision": [precisions[code] for code in rows["precision"][order].tolist()],
        "energy_per_atom": rows["energy_per_atom"][order].tolist(),
        "formation_energy": hull.formation[order].tolist(),
        "energy_above_hull": hull.above[order].tolist(),
        "energy_above_all": hull.above_all[order].tolist(),
        "energy_std_per_atom": spread[order].tolist(),
        "in_domain": rows["in_domain"][order].tolist(),
        "decomposes_to": [" + ".join(f"{x:.3g} {labels[i]}" for x, i in hull.phases[k]) for k in order],
        "missing": [" ".join(element_symbol(z) for z in hull.missing[k]) for k in order],
    }
    return found


def _reduced_formula(entries: Entries, k: int) -> str:
    own = slice(*np.searchsorted(entries.structure, [k, k + 1]))
    counts = entries.count[own]
    return hill_formula(np.repeat(entries.element[own], counts // np.gcd.reduce(counts)).astype(np.uint8))


def write_table(table: dict[str, list[Any]], results: Results, out: Path, *, overwrite: bool = False) -> None:
    """Write the table of rows of `results` as .csv or .parquet.

    Raises
    ------
    UsageError
        for another ending; AtomSieveError if the file is there already.
    """
    check_output(out, overwrite, results)
    with output_errors(out), atomic_draft(out, durable=False) as draft:
        _write(table, draft)


def _write(table: dict[str, list[Any]], path: Path) -> None:
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow([f"{name} [{unit}]" if unit else name for name, unit in COLUMNS.items()])
            lines.writerows(zip(*([_text(v) for v in column] for column in table.values()), strict=True))
        return
    pa = require("pyarrow", "data", "writing Parquet")
    parquet = require("pyarrow.parquet", "data", "writing Parquet")
    made = pa.table(table)
    fields = [field.with_metadata({"unit": COLUMNS[field.name]}) for field in made.schema]
    parquet.write_table(made.cast(pa.schema(fields)), path)


def check_output(out: Path, overwrite: bool, results: Results) -> None:
    """Refuse a table that cannot be written, before anything is computed."""
    if out.suffix not in (".csv", ".parquet"):
        raise unknown("format of the table", out.suffix.lstrip("."), ("csv", "parquet"))
    check_target(out, overwrite, results)


def _text(value: Any) -> Any:
    return ("" if np.isnan(value) else repr(value)) if isinstance(value, float) else value
