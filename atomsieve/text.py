"""Numbers, times and lists as words in messages to users."""

from __future__ import annotations

from collections.abc import Sequence


def pluralize(n: int, noun: str) -> str:
    """Return a number with its noun, which takes an s for all but one: `1 chunk`, `2,048 chunks`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def join_choices(words: Sequence[str]) -> str:
    """Return words as the choices of a sentence: `onnx, torchscript or pt2`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def format_duration(seconds: float) -> str:
    """Format a duration for messages: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
