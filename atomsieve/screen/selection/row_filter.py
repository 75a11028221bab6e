"""Row filters: the expressions of `--where`, compiled for the columns of rows and checked before any work."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError, unknown
from atomsieve.screen.results.columns import COLUMNS, NO_REASON, OF_SPREAD, ROW, reasons_text
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.table import ResultColumn, list_columns_beside
from atomsieve.stability.columns import COLUMNS as STABILITY

Where = Callable[[NDArray[Any]], NDArray[np.bool_]]
"""Returns for each row [n] whether it fulfils an expression."""


def compile_row_filter(
    text: str | None,
    heads: list[str],
    statuses: Mapping[int, str],
    reasons: Mapping[int, str] | None = None,
    precisions: Sequence[str] = (),
    columns: Mapping[str, ResultColumn] | None = None,
) -> Where | None:
    """Compile `--where` over the columns; `head`, `precision`, `status` and `outside` are compared by name.

    columns : those that exist beside `rows.npy`, by name; a column of the same name replaces one of `rows.npy`.

    Example: `status == "TOO_LARGE"`. Each reason is also a flag, in lower case: `not unseen_pair`. Without a reason,
    `outside` equals both "none" and "", because some exported files cannot hold an empty text.
    """
    if text is None:
        return None
    from atomsieve.structures.expression import compile_where

    bits = {name.lower(): bit for bit, name in (reasons or {}).items()}
    beside = columns or {}
    compiled = compile_where(text, [*COLUMNS, *bits, *beside]).with_text("outside", NO_REASON, "")
    status_names = np.array([statuses.get(code, str(code)) for code in range(256)])
    names = {"head": np.array(heads, str), "precision": np.array(precisions, str), "status": status_names}
    for name, allowed in (("head", heads), ("precision", precisions), ("status", list(statuses.values()))):
        for value in sorted(compiled.texts(name) - set(allowed)):
            raise unknown(f"{name} in the row filter", value, allowed)
    for value in sorted(compiled.texts("outside")):
        _check_reasons(value, reasons or {})

    def values(name: str, rows: NDArray[Any]) -> NDArray[Any]:
        if name in beside:
            return beside[name].values(rows)
        if name in bits:
            return (rows["outside"] & np.uint32(bits[name])) != 0
        if name == "outside":
            codes, which = np.unique(rows["outside"], return_inverse=True)
            return np.array([reasons_text(code, reasons or {}) for code in codes], str)[which]
        return names[name][rows[name]] if name in names else rows[name]

    def where(rows: NDArray[Any]) -> NDArray[np.bool_]:
        needed = compiled.names or {"position"}  # one column gives the number of rows
        return compiled({n: values(n, rows) for n in needed})

    where(np.zeros(0, ROW))  # finds e.g. a text compared with a number, before any work
    return where


def _check_reasons(value: str, reasons: Mapping[int, str]) -> None:
    """Refuse a text that `outside` cannot equal: unknown names, or names in another order."""
    order = [name for _, name in sorted(reasons.items())]
    given = value.split("+") if value else []
    for name in given:
        if name not in order:
            raise unknown("reason in the row filter", name, [*order, NO_REASON] if len(given) == 1 else order)
    proper = "+".join(name for name in order if name in given)
    if proper != value:
        raise UsageError(f"outside is never {value!r} in the row filter; write {proper!r}, or the flags in lower case")


def compile_filter(results: Results, text: str | None) -> Where | None:
    """Compile a row filter for the rows of `results`; None keeps all rows."""
    if text is None:
        return None
    names = results.labels
    beside = list_columns_beside(results)
    where = compile_row_filter(text, names.heads, names.statuses, names.reasons, names.precisions, beside)
    require_columns(results, find_names(text), text)
    return where


def restrict_to_head(results: Results, where: str | None, head: str | None) -> str | None:
    """Return the filter `where`, checked by itself, for the rows of one head only; unchanged if `head` is None."""
    if head is None:
        return where
    if head not in results.labels.heads:
        raise unknown("head", head, results.labels.heads)
    own = f"head == {head!r}"
    if where is None:
        return own
    compile_filter(results, where)  # by itself: brackets that do not close would be completed by those added here
    return f"({where}\n) and {own}"  # on a line of its own, so that no comment hides the closing bracket


def require_columns(results: Results, names: Iterable[str], where: str | None) -> None:
    """Refuse columns that only some rows have: those of the spread, where fewer members screened first.

    A filter `where` that compares the precision states itself which rows are meant.
    """
    cascade, asked = results.manifest.get("cascade"), sorted(set(names).intersection(OF_SPREAD))
    if asked and cascade is not None and "/" in cascade["first"] and "precision" not in find_names(where):
        raise UsageError(
            f"only the rows that the cascade recomputed have {asked[0]!r}, the others are by fewer members "
            f"({cascade['first']}); choose among the recomputed ones with --where "
            f"\"precision == '{cascade['then']}'\", or screen without --cascade-members"
        )


def find_columns_beside(results: Results, names: Iterable[str], where: str | None) -> list[ResultColumn]:
    """Return the columns beside `rows.npy` that a table of rows shows: a text id, and what ranks and filters.

    names : of the columns that rank. where : a filter that was compiled before. Formulas have a place of their own.
    """
    wanted = {*names, *find_names(where), "id"}
    return [c for name, c in list_columns_beside(results).items() if name in wanted and name != "formula"]


def uses_stability(by: str, where: str | None) -> bool:
    """Return whether a ranking or a filter that was compiled before names a column about stability."""
    return not STABILITY.keys().isdisjoint({by, *find_names(where)})


def find_names(where: str | None) -> set[str]:
    """Return the names in a row filter that was compiled before."""
    tree = ast.parse((where or "True").strip(), mode="eval")
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
