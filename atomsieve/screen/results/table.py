"""The columns of a results folder as people see them: those of `rows.npy`, formulas, and all else known of its rows.

`rows.npy` holds what a run computed. All other columns stand beside it and are found by the position of a row, when
they are asked for: `list_columns` opens no file. Filters, rankings, groups, tables and exports take values through
`ResultColumn`, so that a new provider serves all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError, unknown
from atomsieve.screen.results.carried import CarriedReader, list_carried
from atomsieve.screen.results.columns import CODES, COLUMNS, MEASURED, reasons_text
from atomsieve.screen.results.explain import explain_rows, has_failed_rows
from atomsieve.screen.results.formulas import FormulaReader
from atomsieve.screen.results.joined import JoinedReader, list_joined
from atomsieve.screen.results.property_columns import PropertyReader, list_property_columns
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.stability import StabilityReader, has_references
from atomsieve.stability.columns import COLUMNS as STABILITY
from atomsieve.structures.carried import ID, CarriedColumn

Kind = Literal["number", "text", "flag"]
Values = Callable[[NDArray[Any]], NDArray[Any]]
"""From rows [n] (dtype `ROW`, in any order, repeats allowed) to their values [n]: float64 (NaN where missing), objects
of type str ("" where missing), or bool."""


@dataclass(frozen=True)
class ResultColumn:
    """One column of a results folder.

    Attributes
    ----------
    name : in `--by`, `--where`, `--per`, and as the heading of tables and exports.
    kind : number, text or flag; it decides what `values` returns.
    unit : unit, empty where none applies.
    doc : one line for people.
    values : values of rows; see `Values`. It may raise `AtomSieveError` if a file that holds them is gone.
    aside : tables show it only if they are asked for it.
    """

    name: str
    kind: Kind
    unit: str
    doc: str
    values: Values
    aside: bool = False


Columns = dict[str, ResultColumn]


def list_own_columns(results: Results) -> Columns:
    """Return the columns of `rows.npy`; codes are texts, by name."""
    labels = results.labels

    def read_reasons(rows: NDArray[Any]) -> NDArray[Any]:
        codes, which = np.unique(rows["outside"], return_inverse=True)
        return np.array([reasons_text(code, labels.reasons) for code in codes], object)[which.reshape(-1)]

    texts: dict[str, Values] = {
        "head": _look_up("head", labels.heads),
        "precision": _look_up("precision", labels.precisions),
        "status": _look_up("status", [labels.status(code) for code in range(256)]),
        "outside": read_reasons,
    }
    found: Columns = {}
    for column in COLUMNS.values():
        kind: Kind = "text" if column.name in texts else "flag" if column.dtype == "?" else "number"
        values = texts.get(column.name) or _read_field(column.name, bool if kind == "flag" else np.float64)
        found[column.name] = ResultColumn(column.name, kind, column.unit, column.doc, values)
    return found


def _look_up(name: str, texts: list[str]) -> Values:
    known = np.array(texts, object)
    return lambda rows: known[rows[name]]


def _read_field(name: str, dtype: Any) -> Values:
    return lambda rows: rows[name].astype(dtype)


def list_formula_columns(results: Results) -> Columns:
    """Return `formula`, `reduced_formula` and `chemsys`, read from the structures that were screened."""
    reader = FormulaReader(results)
    docs = {
        "formula": "formula of the whole structure, in Hill order",
        "reduced_formula": "formula divided by its greatest common divisor, in Hill order",
        "chemsys": "elements of the structure, by symbol, joined by -",
    }
    return {
        name: ResultColumn(name, "text", "", doc, lambda rows, name=name: reader.read(rows["position"], name))  # type: ignore[misc]
        for name, doc in docs.items()
    }


def list_carried_columns(results: Results) -> Columns:
    """Return the columns that the input carries; a text `id` stands in place of the integers of the rows."""
    reader = CarriedReader(results)

    def make(name: str, column: CarriedColumn) -> ResultColumn:
        doc = "of the input" if name == column.name else f"{column.name} of the input"
        return ResultColumn(
            name, to_kind(column.kind), "", doc, lambda rows: reader.read(rows["position"], column.name)
        )

    return {name: make(name, column) for name, column in list_carried(results)}


def list_computed_properties(results: Results) -> Columns:
    """Return the columns of `atomsieve properties` beside the results: moduli and phonons of some rows."""
    reader = PropertyReader(results)

    def make(name: str, kind: Kind, unit: str, doc: str) -> ResultColumn:
        return ResultColumn(name, kind, unit, doc, lambda rows: reader.read(rows, name, kind), aside=True)

    return {name: make(name, *about) for name, about in list_property_columns(results).items()}  # type: ignore[arg-type]


def list_stability_columns(results: Results) -> Columns:
    """Return the columns about stability, where the run has reference sets."""
    if not has_references(results):
        return {}
    reader = StabilityReader(results)
    return {
        name: ResultColumn(name, "number", unit, doc, lambda rows, name=name: reader.read(rows, name))  # type: ignore[misc]
        for name, (unit, doc) in STABILITY.items()
    }


def list_reasons_of_failure(results: Results) -> Columns:
    """Return `why`, the reason of a status by name, where any row has no result."""
    if not has_failed_rows(results):
        return {}
    doc = "why there is no result, for this structure: unseen elements, atoms that touch, charge"
    return {"why": ResultColumn("why", "text", "", doc, lambda rows: explain_rows(results, rows))}


def list_joined_columns(results: Results) -> Columns:
    """Return the columns that were joined from tables; see `joined.join_table`."""
    reader = JoinedReader(results)

    def make(column: CarriedColumn) -> ResultColumn:
        doc = "of a table that was joined"
        return ResultColumn(
            column.name, to_kind(column.kind), "", doc, lambda rows: reader.read(rows["position"], column.name)
        )

    return {column.name: make(column) for column in list_joined(results)}


def to_kind(kind: str) -> Kind:
    """Return the kind of a result column for that of a carried one."""
    if kind in ("int", "float"):
        return "number"
    return "flag" if kind == "flag" else "text"


PROVIDERS: tuple[Callable[[Results], Columns], ...] = (
    list_own_columns,
    list_formula_columns,
    list_carried_columns,
    list_stability_columns,
    list_computed_properties,
    list_reasons_of_failure,
    list_joined_columns,
)
"""Functions that list columns of a results folder, in the order of tables. None reads values or opens files."""


def list_columns(results: Results) -> Columns:
    """Return all columns of a results folder by name; no file is opened until values are asked for.

    A name that an earlier provider has taken gets a number at its end, and its line for people says so.
    """
    found: Columns = {}
    for provider in PROVIDERS:
        for name, column in provider(results).items():
            free, n = name, 1
            if name == ID and column.kind == "text" and is_of_rows(found[ID]):
                del found[ID]  # the text replaces the integers, which are places in the input
            while free in found:
                n += 1
                free = f"{name}_{n}"
            if free != name:
                column = dataclasses.replace(column, name=free, doc=f"{column.doc} ({name!r} is another column)")
            found[free] = column
    return found


def list_columns_beside(results: Results) -> Columns:
    """Return the columns that do not come from `rows.npy`, or that replace one of them (a text `id`)."""
    return {name: column for name, column in list_columns(results).items() if not is_of_rows(column)}


def is_of_rows(column: ResultColumn) -> bool:
    """Return whether a column is one of `rows.npy`."""
    return column.name in COLUMNS and (column.name, column.kind) != ("id", "text")


def list_shown_columns(results: Results, by: str = "") -> list[ResultColumn]:
    """Return the columns beside `rows.npy` that tables and exports have: all of the input, computed ones if cheap.

    by : a column that ranks, which is there in any case. `formula` and `chemsys` are left out: tables have a place for
    the one, and the other is in it.
    """
    found = list_columns_beside(results)
    found = {name: column for name, column in found.items() if not column.aside or name == by}
    return [column for name, column in found.items() if name not in ("formula", "chemsys") or name == by]


@dataclass(frozen=True)
class FrozenValues:
    """Values of some rows, by position and head: no closure, since the first rank sends columns to the others."""

    found: NDArray[Any]
    places: dict[tuple[int, int], int]

    def __call__(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the values of rows that are among them."""
        return self.found[[self.places[int(row["position"]), int(row["head"])] for row in rows]]


def freeze_column(column: ResultColumn, rows: NDArray[Any]) -> ResultColumn:
    """Return a column that knows its values of these rows, and reads no file; other rows have none.

    Values that cannot be read, because the input is gone, are missing.
    """
    try:
        values = column.values(rows)
    except AtomSieveError:
        values = {"text": np.full(len(rows), "", object), "flag": np.zeros(len(rows), bool)}.get(
            column.kind, np.full(len(rows), np.nan)
        )
    places = {(int(row["position"]), int(row["head"])): k for k, row in enumerate(rows)}
    return dataclasses.replace(column, values=FrozenValues(values, places))


def read_ids(results: Results, rows: NDArray[Any]) -> list[int | str]:
    """Return the id of each row for people: the text that the input states, else the integer."""
    column = list_columns(results)[ID]
    return list(column.values(rows)) if column.kind == "text" else rows["id"].tolist()


Ranking = str | ResultColumn
"""What rows are ranked by: a column of `rows.npy` by its name, read from the rows alone, or any other column."""


def resolve_ranking(name: str, columns: Columns) -> Ranking:
    """Return the column called `name` to rank by.

    Raises
    ------
    UsageError
        if there is none, or it holds no numbers.
    """
    if name not in columns and name in STABILITY:
        raise UsageError(
            f"rows cannot be ranked by {name}: the run has no references of its head; make them with `atomsieve "
            "references make ENSEMBLE`, and run the same command again: it ranks by them and computes nothing anew"
        )
    if name not in columns:
        raise unknown("column", name, columns)
    if columns[name].kind != "number":
        numbers = [*MEASURED, "natoms", *(c.name for c in columns.values() if c.kind == "number")]
        what = "a code" if name in CODES else f"a {columns[name].kind}"
        raise UsageError(
            f"rows cannot be ranked by {name!r}, {what}; rank by one of {', '.join(dict.fromkeys(numbers))}"
        )
    return name if is_of_rows(columns[name]) else columns[name]


def name_ranking(by: Ranking) -> str:
    """Return the name of the column that ranks."""
    return by if isinstance(by, str) else by.name


def read_ranking(by: Ranking, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the values [n] that rank the rows [n]."""
    return rows[by].astype(np.float64) if isinstance(by, str) else by.values(rows)


def format_column(column: ResultColumn, values: NDArray[Any]) -> list[str]:
    """Return values of a column as texts that read back to the same values; a missing number is empty."""
    if column.kind == "number":
        return ["" if value != value else repr(value).removesuffix(".0") for value in values.tolist()]
    return [str(value) for value in values.tolist()]
