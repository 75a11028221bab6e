"""Words of messages."""

from __future__ import annotations

from collections.abc import Sequence


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, which takes an s for all but one: `1 chunk`, `2,048 chunks`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def join_choices(words: Sequence[str]) -> str:
    """Return words as the choices of a sentence: `onnx, torchscript or pt2`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
