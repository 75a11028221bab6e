"""Error bounds between two precisions, and row filters evaluated as yes, no or undecided within them.

An error is measured in units of a scale, because structures with large forces have large errors: `q` of a column is a
pure number, and its bound for a row is `q x scale`. Scales per column, with the cheaper row's own values:

    energy_per_atom                           1 eV + 1 Angstrom x max_force
    energy, energy_std, sigma_, interval_     natoms x the same
    max_force, max_force_std, sigma_force     1 eV/Angstrom + the value itself
    distance                                  1 + the value itself
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.predict.status import Status
from atomsieve.screen.results.columns import COLUMNS, MEASURED, OF_SPREAD
from atomsieve.screen.selection.row_filter import Where, compile_row_filter
from atomsieve.structures.expression import compile_where

FLAGS = frozenset({"in_domain", "outside", "far_from_training"})
"""Columns that depend on whether `distance` is above its limit."""
LIMIT = 1.0
"""Of `distance`."""
FLOOR = 1e-6
"""Smallest error assumed: about the rounding of FP32, which also depends on the other structures of a batch."""
TINY = 5e-324

Mask = NDArray[np.bool_]
Span = tuple[NDArray[np.float64], NDArray[np.float64]]
Bounds = Mapping[str, float]


def error_scale(name: str, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the scale [n] of the error of a column, see above."""
    if name in ("max_force", "max_force_std", "sigma_force", "distance"):
        return 1.0 + np.abs(rows[name].astype(np.float64))
    force = rows["max_force"].astype(np.float64)
    per_atom = 1.0 + np.where(np.isfinite(force), np.abs(force), 0.0)
    return per_atom if name == "energy_per_atom" else per_atom * np.maximum(rows["natoms"], 1)


def measure_errors(cheap: NDArray[Any], better: NDArray[Any]) -> dict[str, float]:
    """Return the largest error of each measured column, in units of its scale, over rows [n] that are OK in both."""
    both = (cheap["status"] == Status.OK) & (better["status"] == Status.OK)
    out = {}
    for name in MEASURED:
        a, b = cheap[name][both].astype(np.float64), better[name][both].astype(np.float64)
        found = np.abs(a - b) / error_scale(name, cheap[both])
        found = found[np.isfinite(found)]
        if len(found):
            out[name] = float(found.max())
    return out


def merge_largest(several: Sequence[Bounds]) -> dict[str, float]:
    """Return the largest value of each column."""
    return {name: max(e[name] for e in several if name in e) for name in MEASURED if any(name in e for e in several)}


def span(name: str, rows: NDArray[Any], bounds: Bounds) -> Span:
    """Return the smallest and the largest value [n] that a column can have in the better precision.

    A row that is in the better precision already (`precision` above 0) has its own value. A column without a bound
    can have any value.
    """
    values = rows[name].astype(np.float64)
    if name not in MEASURED:
        return values, values
    room = np.where(rows["precision"] > 0, 0.0, bounds.get(name, np.inf) * error_scale(name, rows))
    return values - room, values + room


Truth = Callable[[NDArray[Any], Bounds], tuple[Mask, Mask]]
Number = Callable[[NDArray[Any], Bounds], Span]


@dataclass(frozen=True)
class Tables:
    """Names behind the codes in rows, as `atomsieve.screen.selection.row_filter.compile_row_filter` takes them."""

    heads: list[str]
    statuses: Mapping[int, str]
    reasons: Mapping[int, str]

    def compile(self, text: str) -> Where:
        """Compile an expression without measured columns."""
        where = compile_row_filter(text, self.heads, self.statuses, self.reasons)
        assert where is not None
        return where


class OpenFilter:
    """A row filter over rows whose measured columns are known within bounds.

    Called with rows [n] and the bounds it returns two masks [n]: which rows may fulfil the filter in the better
    precision, and which certainly do.

    Parameters
    ----------
    text : the filter; None keeps all rows.
    members : False if the cheaper rows lack the spread over all members.

    Attributes
    ----------
    used : measured columns that the filter depends on.

    Raises
    ------
    UsageError
        for a column or an operation that has no bound.
    """

    def __init__(self, text: str | None, tables: Tables, *, members: bool = True) -> None:
        self._tables, self._text = tables, text or ""
        self.used: set[str] = set()
        self._members = members
        self._truth: Truth | None = None
        if text is not None:
            compiled = compile_where(text, [*COLUMNS, *(name.lower() for name in tables.reasons.values())])
            if "precision" in compiled.names:
                raise UsageError(
                    "the row filter asks for 'precision', which depends on what the cascade recomputes; leave it out, "
                    "and filter by it when the results are there (screen export, screen top)"
                )
            tables.compile(text)  # its own errors before ours
            self._truth = self._boolean(ast.parse(text.strip(), mode="eval").body)

    def __call__(self, rows: NDArray[Any], bounds: Bounds) -> tuple[Mask, Mask]:
        """Return (may, must)."""
        if self._truth is None:
            return np.ones(len(rows), bool), np.ones(len(rows), bool)
        with np.errstate(all="ignore"):
            return self._truth(rows, bounds)

    def _names(self, node: ast.AST) -> set[str]:
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        if not self._members:
            for name in sorted(names.intersection(OF_SPREAD)):
                raise no_bound_error(name)
        return names

    def _boolean(self, node: ast.AST) -> Truth:
        names = self._names(node)
        if not names.intersection(MEASURED):
            return self._leaf(node, bool(names & FLAGS))
        match node:
            case ast.BoolOp(op=op, values=values):
                return _join([self._boolean(value) for value in values], isinstance(op, ast.And))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _negate(self._boolean(operand))
            case ast.Compare(left=left, ops=[ast.In() | ast.NotIn() as op], comparators=[members]):
                equal = [self._link(left, ast.Eq(), e) for e in members.elts]  # type: ignore[attr-defined]
                found = _join(equal, False)
                return _negate(found) if isinstance(op, ast.NotIn) else found
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = [left, *comparators]
                links = [self._link(a, op, b) for a, op, b in zip(sides[:-1], ops, sides[1:], strict=True)]
                return _join(links, True)
            case ast.Call(func=ast.Name(id=("isnan" | "isfinite") as name), args=[ast.Name() as arg]):
                number, test = self._number(arg), {"isnan": np.isnan, "isfinite": np.isfinite}[name]

                def test_exactly(rows: NDArray[Any], bounds: Bounds) -> tuple[Mask, Mask]:
                    mask = test(sum(number(rows, {**dict.fromkeys(MEASURED, 0.0)})) / 2)
                    return mask, mask

                return test_exactly
        raise _no_bound_for(node)

    def _leaf(self, node: ast.AST, unsure: bool) -> Truth:
        where = self._tables.compile(ast.unparse(node))
        if unsure:
            self.used.add("distance")

        def leaf(rows: NDArray[Any], bounds: Bounds) -> tuple[Mask, Mask]:
            mask = where(rows)
            if not unsure:
                return mask, mask
            low, high = span("distance", rows, bounds)
            either = (rows["status"] == Status.OK) & (low <= LIMIT) & (high > LIMIT)
            return mask | either, mask & ~either

        return leaf

    def _link(self, left: ast.AST, op: ast.cmpop, right: ast.AST) -> Truth:
        a, b = self._number(left), self._number(right)

        def link(rows: NDArray[Any], bounds: Bounds) -> tuple[Mask, Mask]:
            return _compare(op, a(rows, bounds), b(rows, bounds))

        return link

    def _number(self, node: ast.AST) -> Number:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return lambda rows, bounds: (np.full(len(rows), float(value)),) * 2
            case ast.Name(id=("nan" | "inf") as name):
                return lambda rows, bounds: (np.full(len(rows), float(name)),) * 2
            case ast.Name(id=name) if name in MEASURED or name in ("position", "id", "natoms"):
                if name in MEASURED:
                    self.used.add(name)
                return lambda rows, bounds: span(name, rows, bounds)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                inner = self._number(operand)
                return inner if isinstance(sign, ast.UAdd) else lambda rows, bounds: _minus(inner(rows, bounds))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                a, b, combine = self._number(left), self._number(right), _ARITHMETIC[type(op)]
                return lambda rows, bounds: combine(a(rows, bounds), b(rows, bounds))
            case ast.Call(func=ast.Name(id=("min" | "max") as name), args=[left, right]):
                a, b, pick = self._number(left), self._number(right), np.minimum if name == "min" else np.maximum

                def pick_span(rows: NDArray[Any], bounds: Bounds) -> Span:
                    x, y = a(rows, bounds), b(rows, bounds)
                    return _bound_result(pick(x[0], y[0]), pick(x[1], y[1]), x, y)

                return pick_span
            case ast.Call(func=ast.Name(id="abs"), args=[arg]):
                inner = self._number(arg)
                return lambda rows, bounds: _abs(inner(rows, bounds))
        raise _no_bound_for(node)


def _no_bound_for(node: ast.AST) -> UsageError:
    """Return the error for an expression that has no error bound."""
    return UsageError(
        f"{ast.unparse(node)[:60]!r} in the row filter has no error bound, which a cascade needs; allowed with "
        "measured columns: comparisons, and, or, not, in, + - * /, abs, min, max, and isnan, isfinite of a "
        "column"
    )


def no_bound_error(name: str) -> UsageError:
    """Return the error for a column of the spread where fewer members screen first."""
    return UsageError(
        f"column {name!r} has no error bound with --cascade-members: a part of the members does not have the spread "
        "of all; leave out --cascade-members, or rank and filter by another column"
    )


def rank_span(by: str, descending: bool, rows: NDArray[Any], bounds: Bounds) -> Span:
    """Return the span of the key that ranks the rows, smallest first."""
    found = span(by, rows, bounds)
    return _minus(found) if descending else found


def check_rankable(by: str, *, members: bool) -> None:
    """Refuse to rank by a column that has no bound."""
    assert by in COLUMNS
    if not members and by in OF_SPREAD:
        raise no_bound_error(by)


def _join(parts: list[Truth], every: bool) -> Truth:
    join = np.logical_and.reduce if every else np.logical_or.reduce

    def join_masks(rows: NDArray[Any], bounds: Bounds) -> tuple[Mask, Mask]:
        may, must = zip(*(part(rows, bounds) for part in parts), strict=True)
        return join(may), join(must)

    return join_masks


def _negate(part: Truth) -> Truth:
    def negate_masks(rows: NDArray[Any], bounds: Bounds) -> tuple[Mask, Mask]:
        may, must = part(rows, bounds)
        return ~must, ~may

    return negate_masks


def _compare(op: ast.cmpop, a: Span, b: Span) -> tuple[Mask, Mask]:
    """Return (may, must) of a comparison; false with NaN, as in the plain filter, except for !=."""
    (al, ah), (bl, bh) = a, b
    loose = _loose(a) | _loose(b)
    match op:
        case ast.Lt():
            may, must = al < bh, ah < bl
        case ast.LtE():
            may, must = al <= bh, ah <= bl
        case ast.Gt():
            may, must = ah > bl, al > bh
        case ast.GtE():
            may, must = ah >= bl, al >= bh
        case _:
            may, must = (al <= bh) & (bl <= ah), (al == ah) & (bl == bh) & (al == bl)
            may, must = (~must, ~may) if isinstance(op, ast.NotEq) else (may, must)
    return may | loose, must & ~loose


def _minus(a: Span) -> Span:
    return -a[1], -a[0]


def _loose(a: Span) -> Mask:
    """Return where any value is possible, NaN among them."""
    return np.isneginf(a[0]) & np.isposinf(a[1])


def _bound_result(low: NDArray[np.float64], high: NDArray[np.float64], *operands: Span) -> Span:
    """Return a result that is NaN where an operand is, and anything where NaN may come of operands that are not."""
    ends = np.stack([end for a in operands for end in a])
    none = np.isnan(ends).any(axis=0)
    moves = np.logical_or.reduce([a[0] != a[1] for a in operands])
    loose = np.logical_or.reduce([_loose(a) for a in operands]) | (moves & (np.isnan(low) | np.isnan(high)))
    unsigned = np.where(moves & (low == 0) & (high == 0), TINY, 0.0)  # 1 / 0 and 1 / -0 differ
    return (
        np.where(none, np.nan, np.where(loose, -np.inf, low - unsigned)),
        np.where(none, np.nan, np.where(loose, np.inf, high + unsigned)),
    )


def _plus(a: Span, b: Span) -> Span:
    return _bound_result(a[0] + b[0], a[1] + b[1], a, b)


def _less(a: Span, b: Span) -> Span:
    return _plus(a, _minus(b))


def _times(a: Span, b: Span) -> Span:
    ends = [x * y for x in a for y in b]
    return _bound_result(np.minimum.reduce(ends), np.maximum.reduce(ends), a, b)


def _over(a: Span, b: Span) -> Span:
    """Return the quotient; any value where the divisor may be zero."""
    ends = [x / y for x in a for y in b]
    through_zero = (b[0] <= 0) & (b[1] >= 0) & (b[0] != b[1])
    low = np.where(through_zero, -np.inf, np.minimum.reduce(ends))
    return _bound_result(low, np.where(through_zero, np.inf, np.maximum.reduce(ends)), a, b)


def _abs(a: Span) -> Span:
    low, high = np.abs(a[0]), np.abs(a[1])
    crosses = (a[0] <= 0) & (a[1] >= 0)
    return _bound_result(np.where(crosses, 0.0, np.minimum(low, high)), np.maximum(low, high), a)


_ARITHMETIC: dict[type[ast.operator], Callable[[Span, Span], Span]] = {
    ast.Add: _plus,
    ast.Sub: _less,
    ast.Mult: _times,
    ast.Div: _over,
}
