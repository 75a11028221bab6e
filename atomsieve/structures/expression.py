"""Row filters: a small expression over columns, checked against a whitelist and evaluated by numpy, never by Python.

    keep = compile_where("max_force < 2 and source in ('mptrj', 'wbm')", columns)
    mask = keep({"max_force": ..., "source": ...})      # bool [rows]

Grammar: column names, numbers, strings, `True`/`False`, `nan`, `inf`; `+ - * / // % **`; `== != < <= > >=` (chains
too); `in`/`not in` a literal list; `and`, `or`, `not`; `abs`, `sqrt`, `exp`, `log`, `log10`, `isnan`, `isfinite`,
`min`, `max`.
"""

from __future__ import annotations

import ast
import copy
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError, unknown

MAX_LENGTH = 4000
"""Longest text accepted; longer lists belong in a file of ids."""
MAX_DEPTH = 60
"""Deepest nesting accepted."""

Columns = Mapping[str, NDArray[Any]]

_FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "abs": (np.abs, 1),
    "sqrt": (np.sqrt, 1),
    "exp": (np.exp, 1),
    "log": (np.log, 1),
    "log10": (np.log10, 1),
    "isnan": (np.isnan, 1),
    "isfinite": (np.isfinite, 1),
    "min": (np.minimum, 2),
    "max": (np.maximum, 2),
}
_TRUTH_FUNCTIONS = frozenset({"isnan", "isfinite"})
_CONSTANTS: dict[str, Any] = {"nan": np.float64(np.nan), "inf": np.float64(np.inf)}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_HINTS = {
    ast.BitAnd: "use 'and' instead of '&'",
    ast.BitOr: "use 'or' instead of '|'",
    ast.Invert: "use 'not' instead of '~'",
}


@dataclass(frozen=True)
class Where:
    """A checked row filter. Call it with columns [rows] to get the mask [rows].

    Attributes
    ----------
    text : what the user wrote.
    names : the columns it needs, so that a reader can leave the others on disk.
    """

    text: str
    names: frozenset[str]
    _tree: ast.expr = field(repr=False, compare=False)

    def __call__(self, columns: Columns) -> NDArray[np.bool_]:
        """Return the mask [rows].

        Raises
        ------
        UsageError
            if a needed column is missing, or text is compared with numbers.
        """
        rows = {name: _widen(_column(columns, name)) for name in self.names}
        with np.errstate(all="ignore"):
            mask = _require_truth(_evaluate(self._tree, rows, self.text), self.text)
        length = len(next(iter(rows.values()))) if rows else _any_length(columns)
        return np.broadcast_to(mask, (length,)).copy()

    def texts(self, name: str) -> set[str]:
        """Return the texts that a column is compared with, so that names that do not exist can be refused."""
        return {str(leaf.value) for leaf in _find_texts(self._tree, name)}

    def with_text(self, name: str, old: str, new: str) -> Where:
        """Return the filter with the text `old` replaced by `new` in comparisons with the column `name`."""
        tree = copy.deepcopy(self._tree)
        for leaf in _find_texts(tree, name):
            leaf.value = new if leaf.value == old else leaf.value
        return Where(self.text, self.names, tree)


def _find_texts(tree: ast.expr, name: str) -> Iterator[ast.Constant]:
    """Yield the texts that a column is compared with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Name) and side.id == name for side in sides):
                inside = (leaf for side in sides for leaf in ast.walk(side))
                yield from (leaf for leaf in inside if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str))


def compile_where(text: str, columns: Iterable[str]) -> Where:
    """Check a row filter against the columns that exist and return it ready to evaluate.

    Raises
    ------
    UsageError
        naming the part that is not allowed, or the unknown column and the nearest one.
    """
    known = sorted(set(columns))
    if not text.strip():
        raise UsageError("the row filter is empty; give a condition such as 'natoms < 50'")
    if len(text) > MAX_LENGTH:
        raise UsageError(f"the row filter has {len(text)} characters, at most {MAX_LENGTH} are allowed")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        hint = "; compare with '=='" if _has_single_equals(text) else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "nested too deeply"
        raise UsageError(f"cannot read the row filter {text!r}: {reason}{hint}") from error
    names: set[str] = set()
    kind = _check(tree, known, names, text, 0)
    if kind in ("number", "text"):
        raise UsageError(f"the row filter {text!r} gives a {kind}, not true or false; compare it with something")
    return Where(text, frozenset(names), tree)


def _has_single_equals(text: str) -> bool:
    stripped = text.replace("==", "").replace("!=", "").replace("<=", "").replace(">=", "")
    return "=" in stripped


def _refuse(node: ast.AST, text: str) -> UsageError:
    hint = next((f"; {words}" for kind, words in _HINTS.items() if isinstance(getattr(node, "op", None), kind)), "")
    try:
        shown = ast.unparse(node)[:60]
    except (RecursionError, ValueError):
        shown = type(node).__name__
    return UsageError(
        f"{shown!r} is not allowed in a row filter{hint}; allowed: columns, numbers, strings, + - * / // % **, "
        f"comparisons, in, and, or, not, {', '.join(_FUNCTIONS)}"
    )


def _check(node: ast.AST, known: list[str], names: set[str], text: str, depth: int) -> str:
    """Refuse nodes outside of the whitelist, gather column names; return truth, number, text or any (a column)."""
    if depth > MAX_DEPTH:
        raise UsageError(f"the row filter is nested more than {MAX_DEPTH} deep")

    def sub(child: ast.AST) -> str:
        return _check(child, known, names, text, depth + 1)

    def wants(child: ast.AST, *kinds: str) -> None:
        if sub(child) not in (*kinds, "any"):
            raise UsageError(f"{ast.unparse(child)!r} in the row filter must be a {' or '.join(kinds)}")

    match node:
        case ast.Constant():
            return _check_constant(node, text)
        case ast.Name(id=name):
            if name not in known and name in _CONSTANTS:
                return "number"
            if name not in known:
                raise unknown("column", name, known)
            names.add(name)
            return "any"
        case ast.BoolOp(values=values):
            for value in values:
                wants(value, "truth")
            return "truth"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            wants(operand, "truth")
            return "truth"
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            wants(operand, "number")
            return "number"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            wants(left, "number")
            wants(right, "number")
            return "number"
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            _check_comparison(node, [left, *comparators], ops, sub, text)
            return "truth"
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in _FUNCTIONS:
                raise unknown("function", name, _FUNCTIONS)
            if len(args) != _FUNCTIONS[name][1]:
                raise UsageError(f"{name} takes {_FUNCTIONS[name][1]} value(s), got {len(args)} in {text!r}")
            for arg in args:
                wants(arg, "number")
            return "truth" if name in _TRUTH_FUNCTIONS else "number"
    raise _refuse(node, text)


def _check_constant(node: ast.Constant, text: str) -> str:
    value = node.value
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UsageError(f"the integer {str(value)[:24]}... in the row filter does not fit 64 bits")
        return "number"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "text"
    raise _refuse(node, text)


def _check_comparison(
    node: ast.Compare, sides: list[ast.expr], ops: list[ast.cmpop], sub: Callable[[ast.AST], str], text: str
) -> None:
    kinds = [sub(sides[0])]
    for op, right in zip(ops, sides[1:], strict=True):
        if isinstance(op, ast.In | ast.NotIn):
            if len(ops) != 1 or not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
                raise UsageError(f"'in' in the row filter needs a list of values, e.g. source in ['a', 'b']: {text!r}")
            kinds += [_literal_kind(element, sub, text) for element in right.elts]
        elif type(op) in _COMPARISONS:
            kinds.append(sub(right))
        else:
            raise _refuse(node, text)
    stated = set(kinds) - {"any"}
    if len(stated) > 1:
        raise UsageError(f"{ast.unparse(node)!r} in the row filter compares a {' with a '.join(sorted(stated))}")


def _literal_kind(element: ast.expr, sub: Callable[[ast.AST], str], text: str) -> str:
    bare = element.operand if isinstance(element, ast.UnaryOp) and isinstance(element.op, ast.USub) else element
    if not isinstance(bare, ast.Constant):
        raise UsageError(f"a list in the row filter may hold only numbers or strings: {text!r}")
    return sub(element)


def _column(columns: Columns, name: str) -> NDArray[Any]:
    if name not in columns:
        raise unknown("column", name, columns)
    return np.asarray(columns[name])


def _any_length(columns: Columns) -> int:
    return len(next(iter(columns.values()))) if columns else 1


def _widen(array: NDArray[Any]) -> NDArray[Any]:
    """Return the column in a dtype in which a literal neither wraps round nor rounds: int64, float64, bool or text."""
    if array.dtype.kind in "iu" and array.dtype != np.uint64:
        return array.astype(np.int64, copy=False)
    if array.dtype.kind == "f":
        return array.astype(np.float64, copy=False)
    # objects of type str: an array of fixed width would need room for the longest text in every row
    return np.array([str(value) for value in array], object) if array.dtype.kind == "O" else array


def _require_truth(value: Any, text: str) -> NDArray[np.bool_]:
    array = np.asarray(value)
    if array.dtype != bool:
        raise UsageError(f"a column in the row filter {text!r} is used as true or false, but it holds {array.dtype}")
    return array


def _is_text(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "USO"


def _compare(op: ast.cmpop, left: Any, right: Any, text: str) -> Any:
    if _is_text(left) != _is_text(right):
        raise UsageError(f"the row filter {text!r} compares text with numbers")
    return _COMPARISONS[type(op)](left, right)


def _number(value: Any, text: str) -> Any:
    if _is_text(value):
        raise UsageError(f"the row filter {text!r} computes with text")
    return value.astype(np.int64) if np.asarray(value).dtype == bool else value


def _evaluate(node: ast.AST, rows: Columns, text: str) -> Any:
    """Evaluate a checked tree; every operation is numpy on int64, float64, bool or text."""
    match node:
        case ast.Constant(value=constant):
            return np.array(constant, np.int64) if type(constant) is int else np.array(constant)
        case ast.Name(id=name):
            return rows[name] if name in rows else _CONSTANTS[name]
        case ast.BoolOp(op=op, values=values):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            result = _require_truth(_evaluate(values[0], rows, text), text)
            for other in values[1:]:
                result = join(result, _require_truth(_evaluate(other, rows, text), text))
            return result
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_require_truth(_evaluate(operand, rows, text), text)
        case ast.UnaryOp(op=op, operand=operand):
            value = _number(_evaluate(operand, rows, text), text)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            a, b = (_number(_evaluate(side, rows, text), text) for side in (left, right))
            if isinstance(op, ast.Pow):  # integer powers wrap round or refuse negative exponents
                a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            return _ARITHMETIC[type(op)](a, b)
        case ast.Compare(left=left, ops=[ast.In() | ast.NotIn() as op], comparators=[members]):
            value = _evaluate(left, rows, text)
            found = np.zeros(np.shape(value), bool)
            for member in members.elts:  # type: ignore[attr-defined]
                found |= _compare(ast.Eq(), value, _evaluate(member, rows, text), text)
            return ~found if isinstance(op, ast.NotIn) else found
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [_evaluate(side, rows, text) for side in (left, *comparators)]
            links = [_compare(link, a, b, text) for link, a, b in zip(ops, sides[:-1], sides[1:], strict=True)]
            return functools.reduce(np.logical_and, links)
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name][0](*(_number(_evaluate(arg, rows, text), text) for arg in args))
    raise AssertionError(f"unchecked node {type(node).__name__}")
