"""Names of the precisions in which an ensemble is evaluated. Needs no torch."""

from __future__ import annotations

from atomsieve.errors import unknown

PRECISIONS = ("fp64", "fp32", "bf16")
"""From the most exact to the cheapest. In bf16 the operands of matrix products have 8 significant bits; everything else
is FP32."""


def check_precision(name: str, what: str = "precision") -> None:
    """Raise UsageError, with the nearest name, unless `name` is a precision; `what` is what the message calls it."""
    if name not in PRECISIONS:
        raise unknown(what, name, PRECISIONS)


def item_size(precision: str) -> int:
    """Return the bytes of one number in arrays of features and edges."""
    return 8 if precision == "fp64" else 4
