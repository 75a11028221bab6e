"""Counts of a conversion as plain data, whatever fields they have."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from atomsieve.structures.conversion.validation import ConversionCounts


def encode(value: Any) -> Any:
    """Return counts as plain data for JSON: mappings as lists of pairs, since keys may be tuples."""
    if is_dataclass(value):
        return {one.name: encode(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return [[encode(key), encode(inner)] for key, inner in value.items()]
    if isinstance(value, set):
        return sorted(encode(inner) for inner in value)
    if isinstance(value, list | tuple):
        return [encode(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def decode_counts(plain: dict[str, Any]) -> ConversionCounts:
    """Return the counts of which `encode` gave the plain data."""
    out = ConversionCounts()
    _fill(out, plain)
    return out


def _fill(target: Any, plain: dict[str, Any]) -> None:
    for one in fields(target):
        empty, value = getattr(target, one.name), plain[one.name]
        if is_dataclass(empty):
            _fill(empty, value)
        elif isinstance(empty, dict):
            for key, inner in value:
                empty[_freeze(key)] = _freeze(inner)
        elif isinstance(empty, set):
            empty.update(_freeze(inner) for inner in value)
        elif isinstance(empty, list):
            empty.extend(_freeze(inner) for inner in value)
        else:
            setattr(target, one.name, value)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(inner) for inner in value) if isinstance(value, list) else value
