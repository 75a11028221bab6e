"""Puts the pieces of a conversion together: checks where spans meet, adds counts up, and publishes the datasets."""

from __future__ import annotations

import csv
import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.runs.output_files import atomic_write, output_errors
from atomsieve.structures.carried import FILE as CARRIED
from atomsieve.structures.carried import ID, ROWS, CarriedFile, hash_texts
from atomsieve.structures.conversion.options import ConvertOptions
from atomsieve.structures.conversion.piece import PieceRecord, check_keys
from atomsieve.structures.conversion.plan import Piece, Plan
from atomsieve.structures.conversion.records import Records, UnfinishedError
from atomsieve.structures.conversion.validation import SKIPPED_KEPT, ConversionCounts
from atomsieve.structures.dataset.bp5 import Bp5Reader
from atomsieve.structures.dataset.manifest import PartRow
from atomsieve.structures.dataset.part_writer import add_source
from atomsieve.structures.source import SourceInfo
from atomsieve.text import pluralize

if TYPE_CHECKING:
    import pyarrow as pa

IDS_CHECKED = 200_000_000
"""Of more ids than that (8 bytes each in memory) nobody checks whether one is given twice."""
SKIPPED_HEADER = ("place", "reason", "detail")
PATIENCE = 30.0  # seconds until a file that another machine wrote is seen here


@dataclass(frozen=True)
class ConvertReport:
    """Result of a conversion.

    Attributes
    ----------
    outputs : structures of each dataset.
    atoms : of all of them.
    sources : structures per source.
    tally : what was read, taken and left out.
    seconds : it took, in this run.
    skipped_file : list of the structures left out, None if there are none.
    continued : pieces, of `pieces` in all, that an earlier run had done.
    remarks : what the user should know.
    """

    outputs: dict[Path, int]
    atoms: int
    sources: dict[SourceInfo, int]
    tally: ConversionCounts
    seconds: float
    skipped_file: Path | None = None
    pieces: int = 1
    continued: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def written(self) -> int:
        """Number of structures written."""
        return sum(self.outputs.values())


@dataclass
class Whole:
    """All pieces together.

    Attributes
    ----------
    parts : of each set, in the order of the structures, with ids and sources of the whole.
    sources : structures per source; the order is that of their numbers.
    counts : of all pieces.
    """

    parts: dict[str, list[PartRow]]
    sources: dict[SourceInfo, int]
    counts: ConversionCounts


def require_spans_meet(plan: Plan, records: Records, convert: Callable[[Piece, int], None]) -> int:
    """Compare where each span ends with where the next one begins; convert those again that began elsewhere.

    convert : converts a piece again whose first structure begins at a byte, and records it.

    Returns
    -------
    the number of pieces that were converted again.
    """
    again = 0
    expected: int | None = None
    previous: Piece | None = None
    for piece in plan.pieces:
        if not piece.by_bytes:
            previous, expected = None, None
            continue
        record = read_record(records, piece.number)
        if previous is None or not piece.follows(previous):
            expected = piece.start
        elif expected is not None and not _begins_where(record, piece, expected):
            records.remove(piece.number)
            convert(piece, expected)
            again += 1
            record = read_record(records, piece.number)
        expected = expected if record.ends is None else record.ends
        previous = piece
    return again


def _begins_where(record: PieceRecord, piece: Piece, expected: int) -> bool:
    """Return True if the first structure of a piece begins where the last one before it ended."""
    if record.failed:
        return False
    if record.begins is None:
        return piece.stop is not None and expected >= piece.stop
    return record.begins == expected


def read_record(records: Records, number: int) -> PieceRecord:
    """Read the record of a piece, which another machine may have written a moment ago."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return records.read(number)
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def put_together(plan: Plan, records: Records, options: ConvertOptions) -> Whole:
    """Add up the records of all pieces, in order.

    Raises
    ------
    DataError
        if no structure is left, or a source comes with two levels of theory.
    UsageError
        if a key that was asked for is nowhere.
    """
    whole = Whole({name: [] for name in plan.outputs}, dict.fromkeys(plan.sources, 0), ConversionCounts())
    names = list(plan.sources)
    here, before = "", 0  # the file of which a span is at hand, and structures in its earlier spans
    for piece in plan.pieces:
        record = read_record(records, piece.number)
        for source, count in record.sources.items():
            add_source(names, source)
            whole.sources[source] = whole.sources.get(source, 0) + count
        heads = [names.index(source) for source in record.sources]
        changes = {
            "first_id": whole.counts.read if options.keys.id is None else 0,
            "heads": None if heads == list(range(len(heads))) else heads,
        }
        for name, parts in record.parts.items():
            whole.parts[name] += [part.model_copy(update=changes) for part in parts]
        if piece.by_bytes:
            path = next(piece.runs[0].files()).path
            before = 0 if piece.start == 0 or path != here else before
            here = path
            _count_on(record.counts, path, before)
            before += record.counts.read
        whole.counts.merge(record.counts)
    check_keys(options, whole.counts)
    if not any(parts for parts in whole.parts.values()):
        first = next(iter(whole.counts.first.values()), "")
        raise DataError(
            f"no structure is left of {whole.counts.read} read: {format_skipped(whole.counts.skipped)}"
            + (f"; the first: {first}" if first else "")
        )
    return whole


def _count_on(counts: ConversionCounts, path: str, before: int) -> None:
    """Let the places in a span count from the beginning of its file: `FILE: frame 3` becomes frame `before` + 3."""
    pattern = re.compile(rf"{re.escape(path)}: (frame) (\d+)")

    def move(text: str) -> str:
        found = pattern.match(text)
        return text if found is None else f"{path}: {found[1]} {int(found[2]) + before}{text[found.end() :]}"

    if before:
        counts.first = {reason: move(place) for reason, place in counts.first.items()}
        counts.found.first = {what: move(place) for what, place in counts.found.first.items()}
        counts.places = [(move(place), reason, detail) for place, reason, detail in counts.places]


def check_ids(whole: Whole, records: Records, options: ConvertOptions) -> str:
    """Refuse ids that are given twice; return a remark for the user, empty where there is none.

    Raises
    ------
    AtomSieveError
        with their number, the first one, and the ways out.
    """
    key = options.keys.id
    if key is None:
        return _check_text_ids(whole, records, options)
    total = sum(part.structures for parts in whole.parts.values() for part in parts)
    if total > IDS_CHECKED:
        return f"{total:,} ids from {key!r} are too many to check that none is given twice"
    ids = np.concatenate([*_read_ids(whole, records), np.zeros(0, np.int64)])
    ordered = np.sort(ids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return ""
    repeated = np.isin(ids, twice)
    first = int(ids[repeated][0])
    said = f"{len(twice):,} structures have the id of an earlier one under {key!r} (the first: {first})"
    if options.allow_duplicate_ids:
        return f"{said}; --ids and tables cannot tell them apart"
    several = len(records.plan.pieces) > 1
    kept = "; the converted pieces are kept, the same command with it ends at once" if several else ""
    raise (UnfinishedError if several else DataError)(
        f"{said}: leave --id-key out to number the structures, convert the files one by one, or take them as they are "
        f"with --allow-duplicate-ids{kept}"
    )


def _check_text_ids(whole: Whole, records: Records, options: ConvertOptions) -> str:
    """Refuse text ids that are given twice where the user named their key; else return a remark on them."""
    if not any(column == ID for column, _, _ in whole.counts.carried.taken):
        return ""
    total = sum(part.structures for parts in whole.parts.values() for part in parts)
    if total > IDS_CHECKED:
        return f"{total:,} text ids are too many to check that none is given twice"
    hashes = np.concatenate([*_hash_ids(whole, records), np.zeros(0, np.uint64)])
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return ""
    first = _find_text(whole, records, int(twice[0]))
    said = f"{pluralize(len(twice), 'structure')} with the text id of an earlier one (such as {first!r})"
    if options.text_id is None or options.allow_duplicate_ids:
        return f"{said}; their places in the input tell them apart"
    several = len(records.plan.pieces) > 1
    kept = "; the converted pieces are kept, the same command with it ends at once" if several else ""
    raise (UnfinishedError if several else DataError)(
        f"{said} under {options.text_id!r}: name another key, leave --id-key out, or take them as they are with "
        f"--allow-duplicate-ids{kept}"
    )


def _iter_ids(whole: Whole, records: Records) -> Iterator[pa.Array]:
    """Yield the text ids of all parts, some thousands at a time; a part without them is left out."""
    for name, parts in whole.parts.items():
        for part in parts:
            if any(row.name == ID for row in part.carried):
                opened = CarriedFile(records.drafts[name].folder / part.path / CARRIED, part.structures)
                for start in range(0, part.structures, ROWS):
                    yield opened.read(start, min(start + ROWS, part.structures)).column(ID)


def _hash_ids(whole: Whole, records: Records) -> Iterator[NDArray[np.uint64]]:
    for column in _iter_ids(whole, records):
        yield hash_texts(column.combine_chunks().drop_null())


def _find_text(whole: Whole, records: Records, hashed: int) -> str:
    """Return the text with a hash, cut for a message."""
    for column in _iter_ids(whole, records):
        texts = column.combine_chunks().drop_null()
        if len(found := np.flatnonzero(hash_texts(texts) == np.uint64(hashed))):
            return str(texts[int(found[0])].as_py())[:60]
    return ""


def _read_ids(whole: Whole, records: Records) -> Iterator[NDArray[np.int64]]:
    for name, parts in whole.parts.items():
        for part in parts:
            opened = Bp5Reader(records.drafts[name].folder / part.path)
            try:
                yield from (opened.read("id", k, 0, step.structures) for k, step in enumerate(part.steps))
            finally:
                opened.close()


def publish(records: Records, whole: Whole, skipped: Path | None) -> Path | None:
    """Give the datasets their names, and list the structures left out in a file if there are any; return its path."""
    notes = whole.counts.manifest_notes()
    listed = None if skipped is None else write_skipped(skipped, whole.counts)
    # The first one holds the records: it comes last, so that a crash in between can be continued.
    for name, draft in reversed(records.drafts.items()):
        draft.publish(whole.parts[name], list(whole.sources), notes)
    records.release()
    return listed


def write_skipped(path: Path, counts: ConversionCounts) -> Path | None:
    """List the structures left out, the first `SKIPPED_KEPT` of them; a list of an earlier conversion is replaced."""
    header = ",".join(SKIPPED_HEADER)
    if not counts.skipped:
        if path.is_file() and path.read_bytes()[: len(header)] == header.encode():
            path.unlink()
        return None
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(SKIPPED_HEADER)
    table.writerows(counts.places)
    if (total := sum(counts.skipped.values())) > len(counts.places):
        table.writerow([f"({total - SKIPPED_KEPT:,} more)", "", ""])
    with output_errors(path):
        atomic_write(path, text.getvalue().encode(errors="surrogateescape"))
    return path


def format_skipped(skipped: Counter[str]) -> str:
    """Return counts by reason in one line."""
    return "; ".join(f"{count} {reason}" for reason, count in skipped.most_common()) or "nothing skipped"
