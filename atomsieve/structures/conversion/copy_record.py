"""What is known of a dataset that was converted from a file: its record, what was left out, and notes for users.

`converted.json` in the copy is written last: a copy without it is not whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError
from atomsieve.runs.output_files import atomic_write
from atomsieve.structures.conversion.convert import ConvertOptions
from atomsieve.structures.conversion.validation import ConversionCounts
from atomsieve.structures.dataset.manifest import is_dataset_folder
from atomsieve.text import pluralize

RECORD = "converted.json"
VERSION = 2
"""Counts up when the same file and options give another dataset, so that no earlier copy is taken."""
LISTED = 100
"""Places of structures that could not be read, of those that a summary lists."""
SHOWN = 3
_LABELS = ("energy", "forces", "stress", "virial", "charge", "spin")


@dataclass(frozen=True)
class Unreadable:
    """The structures of a file that could not be read.

    Attributes
    ----------
    read : structures of the file, readable or not. reasons : how many for each reason.
    places : place, reason and detail of the first of them.
    """

    read: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    places: tuple[tuple[str, str, str], ...] = ()

    @property
    def count(self) -> int:
        """How many."""
        return sum(self.reasons.values())

    def describe(self) -> dict[str, Any]:
        """Return them as plain data, the first `LISTED` with their places."""
        listed = [dict(zip(("where", "reason", "detail"), row, strict=True)) for row in self.places[:LISTED]]
        return {"read": self.read, "count": self.count, "reasons": dict(self.reasons), "first": listed}

    def format_lines(self) -> list[str]:
        """Return lines for people; none if all were read."""
        if not self.count:
            return []
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in self.reasons.items())
        lines = [f"{self.count:,} of {pluralize(self.read, 'structure')} could not be read and are left out: {reasons}"]
        lines += [f"  {where}: {reason}{detail and f' ({detail})'}" for where, reason, detail in self.places[:SHOWN]]
        if self.count > SHOWN:
            lines.append(f"  and {self.count - SHOWN:,} more")
        return lines


@dataclass(frozen=True)
class DatasetCopy:
    """A dataset to open.

    Attributes
    ----------
    path : of the dataset folder. given : what the user named; the same where that is a dataset already.
    content : digest of the given file; empty where nothing was converted. fresh : it was converted just now.
    unreadable : structures that are not in the dataset. notes : what a user should know about what was taken and left.
    """

    path: Path
    given: Path
    content: str = ""
    fresh: bool = False
    unreadable: Unreadable = field(default_factory=Unreadable)
    notes: tuple[str, ...] = ()

    @property
    def is_copy(self) -> bool:
        """True if `path` was converted from `given`."""
        return bool(self.content)


def read_record(copy: Path) -> dict[str, Any] | None:
    """Return the record of a whole copy, None if there is none."""
    try:
        found: dict[str, Any] = json.loads((copy / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("version") == VERSION and is_dataset_folder(copy) else None


def make_copy(path: Path, record: dict[str, Any], *, fresh: bool = False) -> DatasetCopy:
    """Return the copy that a record describes."""
    places = tuple((where, reason, detail) for where, reason, detail in record["unreadable"]["places"])
    bad = Unreadable(record["unreadable"]["read"], record["unreadable"]["reasons"], places)
    return DatasetCopy(path, path, record["content"], fresh, bad, tuple(record["notes"]))


def list_notes(tally: ConversionCounts, options: ConvertOptions) -> Iterator[str]:
    """Yield a sentence for each thing that a user should know about what was taken from a file, and what was left."""
    for note, count in tally.notes.most_common():
        yield f"{pluralize(count, 'structure')}: {note}"
    yield from tally.carried.list_notes(tally.read - sum(tally.skipped.values()))
    if options.keys.none:
        return
    if taken := ", ".join(tally.found.describe_taken()):
        yield f"labels: {taken}"
    for words in tally.found.describe_units():
        yield f"units: {words}"
    known = [key for key in (options.keys.id, options.source_key, options.level_key) if key]
    settled = [name for name in _LABELS if getattr(options.keys, name) is not None]
    yield from tally.found.list_notes(known, settled)


def describe_skipped(tally: ConversionCounts, path: Path, shown: str) -> dict[str, Any]:
    """Return the structures left out as plain data; `shown` stands for the path in their places."""
    places = [[where.replace(str(path), shown, 1), reason, detail] for where, reason, detail in tally.places]
    return {"read": tally.read, "reasons": dict(tally.skipped.most_common()), "places": places}


def write_record(copy: Path, record: dict[str, Any]) -> None:
    """Write the record, which makes the copy whole.

    Raises
    ------
    AtomSieveError
        if the disk refuses it.
    """
    try:
        atomic_write(copy / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise AtomSieveError(f"cannot write {copy / RECORD}: {error.strerror or error}; make room there") from error
