"""Words of messages."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, which takes an s for all but one: `1 chunk`, `2,048 chunks`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
