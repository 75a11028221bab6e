"""Reads files of codes, for the tests: items as the reader gives them, and labels in this package's units."""

from __future__ import annotations

from pathlib import Path

from atomsieve.structures.block import build_block
from atomsieve.structures.formats import FORMATS, BadItem, Item, ReadRequest, find_format
from atomsieve.structures.labels import FoundLabels, LabelKeys, LabelTally, find_labels
from atomsieve.structures.units import Units

FILES = Path(__file__).parents[2] / "files" / "codes"


def read_all(path: Path, kind: str | None = None, **options: object) -> tuple[list[Item], list[BadItem]]:
    """Return the structures and the bad ones of a file, whose format its name or its content tells."""
    found = kind or find_format(path)
    assert found is not None, path
    read = FORMATS[found].read
    assert read is not None
    rows = list(read(ReadRequest(path, **options)))  # type: ignore[arg-type]
    items = [row for row in rows if isinstance(row, Item)]
    return items, [row for row in rows if isinstance(row, BadItem)]


def labels_of(items: list[Item], keys: LabelKeys | None = None, units: Units | None = None) -> FoundLabels:
    """Return the labels of structures as a conversion takes them: eV, eV/Angstrom, eV/Angstrom^3."""
    found = find_labels(build_block(items), keys or LabelKeys(), units or Units(), LabelTally())
    assert not found.reasons
    return found
