"""The columns of a screening result: name, dtype, unit and meaning, stated once.

`rows.npy` holds one record of these columns per structure and head, sorted by (position, head). Manifests, tables,
exports, `--by` and `--where` derive from this table; nothing else repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError, unknown


@dataclass(frozen=True)
class Column:
    """One column of the row store.

    Attributes
    ----------
    name : the field of the record, and the name in `--by` and `--where`.
    dtype : little-endian dtype on disk and in memory.
    unit : unit, empty where none applies.
    doc : one line for people.
    """

    name: str
    dtype: str
    unit: str
    doc: str


COLUMNS: dict[str, Column] = {
    c.name: c
    for c in (
        Column("position", "<i8", "", "place of the structure in the input, from 0"),
        Column("id", "<i8", "", "id of the structure in the input"),
        Column("energy", "<f8", "eV", "total energy, mean over the members; NaN unless status is OK"),
        Column("energy_per_atom", "<f8", "eV/atom", "energy / natoms"),
        Column("energy_std", "<f4", "eV", "spread of the total energy: unbiased standard deviation over the members"),
        Column("sigma_energy", "<f4", "eV", "calibrated standard error of the energy; NaN if uncalibrated"),
        Column("interval_energy", "<f4", "eV", "half width of the 90 % interval of the energy; NaN if uncalibrated"),
        Column("max_force", "<f4", "eV/Angstrom", "largest force on an atom (Euclidean norm)"),
        Column("max_force_std", "<f4", "eV/Angstrom", "largest spread of the force on an atom (norm of the spreads)"),
        Column("sigma_force", "<f4", "eV/Angstrom", "largest calibrated standard error of a force component"),
        Column("distance", "<f4", "", "distance in feature space from the training data; the limit is 1"),
        Column("natoms", "<i4", "", "number of atoms"),
        Column("outside", "<u4", "", "bits of the reasons against it: `reasons` of run.json; text shows their names"),
        Column("head", "u1", "", "index into `heads` of run.json; text and filters show its name"),
        Column("precision", "u1", "", "index into `precisions` of run.json; text and filters show its name"),
        Column("status", "u1", "", "0 is OK, else the reason why there are no numbers; names: `statuses` of run.json"),
        Column("in_domain", "?", "", "every element was seen by the head and the structure is like its training data"),
    )
}
"""Every column by name, in record order; the order keeps every field aligned and the record at 72 bytes."""

ROW = np.dtype([(c.name, c.dtype) for c in COLUMNS.values()])
"""The record dtype of `rows.npy`."""

MEASURED: tuple[str, ...] = (
    "energy",
    "energy_per_atom",
    "energy_std",
    "sigma_energy",
    "interval_energy",
    "max_force",
    "max_force_std",
    "sigma_force",
    "distance",
)
"""Columns that are NaN in a row without result."""

CODES = ("status", "outside", "in_domain", "head", "precision")
"""Columns of flags and codes: they filter and group rows, and do not rank them."""
OF_SPREAD = ("energy_std", "sigma_energy", "interval_energy", "max_force_std", "sigma_force")
"""Columns that need the spread over all members."""
AUTOMATIC = "auto"
"""The ranking that takes the best column there is (`results.stability.choose_ranking`)."""
PLAIN = "energy_per_atom"
"""The column that ranks where nothing is known about stability."""
NO_REASON = "none"
"""Stands for no reason in the column `outside`, where its text cannot be empty."""


def blank_rows(n: int) -> NDArray[Any]:
    """Return `n` rows without result: zeros, and NaN in every measured column."""
    rows = np.zeros(n, ROW)
    for name in MEASURED:
        rows[name] = np.nan
    return rows


def column(name: str) -> Column:
    """Return the column called `name`; the error for an unknown name lists the columns and the nearest."""
    if name not in COLUMNS:
        raise unknown("column", name, COLUMNS)
    return COLUMNS[name]


def rankable(name: str) -> Column:
    """Return the column to rank by; flags and codes are refused."""
    found = column(name)
    if found.name in CODES:
        raise UsageError(f"rows cannot be ranked by {name!r}, a code; rank by one of {', '.join(MEASURED)} or natoms")
    return found


def describe() -> list[dict[str, str]]:
    """Return the table as plain data for run.json."""
    return [{"name": c.name, "dtype": c.dtype, "unit": c.unit, "doc": c.doc} for c in COLUMNS.values()]


def reasons_text(code: int, reasons: Mapping[int, str]) -> str:
    """Return the names of the reasons in a value of `outside`, joined by +; empty where there is none."""
    known = sum(reasons)
    names = [name for bit, name in sorted(reasons.items()) if int(code) & bit]
    return "+".join([*names, *([str(int(code) & ~known)] if int(code) & ~known else [])])


def format_value(name: str, value: Any) -> str:
    """Write one value as text that reads back to the same number; NaN is empty."""
    kind = COLUMNS[name].dtype
    if kind.startswith("<f"):
        return "" if np.isnan(value) else (f"{value:.9g}" if kind == "<f4" else repr(float(value)))
    return str(bool(value)) if kind == "?" else str(int(value))
