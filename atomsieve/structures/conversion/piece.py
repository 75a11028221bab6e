"""Converts one piece of an input into parts of its own, and records what it found."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atomsieve.errors import AtomSieveError, DataError, Interrupted, UsageError, nearest
from atomsieve.structures.block import Block, SourceColumn, gather_blocks
from atomsieve.structures.conversion.carry import ALL, NONE
from atomsieve.structures.conversion.options import ConvertOptions
from atomsieve.structures.conversion.plan import STDIN_FILE, Piece, Plan
from atomsieve.structures.conversion.reference_frames import take_references
from atomsieve.structures.conversion.sources import find_sources
from atomsieve.structures.conversion.validation import KEYS_KEPT, BlockValidator, ConversionCounts, ValidBlock
from atomsieve.structures.dataset.manifest import PartRow
from atomsieve.structures.dataset.part_writer import DiskError, PartWriter, add_source
from atomsieve.structures.formats.reading import read_found
from atomsieve.structures.formats.scan import NO_FILE, FoundFile, stamp_file
from atomsieve.structures.item import BadItem, Item
from atomsieve.structures.source import SourceInfo

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Watch = Callable[[float, int, int], None]
"""Called after each block with the fraction of the piece, structures read and skipped; may raise to leave."""

PERIOD = 0.05
"""Seconds between reports of files that fill no block yet."""
NEARLY = 0.999
"""Most that is reported of a piece whose structures are still being written."""


@dataclass(frozen=True)
class Job:
    """What a process needs to convert pieces.

    Attributes
    ----------
    options, sources : of the conversion.
    alone : the input is one file; else a file that cannot be read costs itself only.
    folders : unfinished folder of each set, and the dataset that it becomes.
    """

    options: ConvertOptions
    sources: tuple[SourceInfo, ...]
    folders: dict[str, tuple[Path, Path]]
    alone: bool = True

    @staticmethod
    def of(plan: Plan, options: ConvertOptions) -> Job:
        """Return the job of a plan."""
        folders = {name: (path.with_name(f"{path.name}.partial"), path) for name, path in plan.outputs.items()}
        return Job(options, plan.sources, folders, sum(row.get("files", 0) for row in plan.settings["inputs"]) == 1)


@dataclass
class PieceRecord:
    """What the conversion of a piece gave.

    Attributes
    ----------
    number : of the piece.
    parts : finished parts of each set.
    sources : structures of each source, the known ones first, then in order of appearance; parts number them so.
    counts : of the structures read and skipped; ids of the parts begin at 0 unless they were given.
    begins, ends : where its first structure begins and its last one ends, None where it has none or spans have no
        meaning.
    failed : why it could not be read from where a first structure seemed to begin; it is converted again.
    """

    number: int
    parts: dict[str, list[PartRow]]
    sources: dict[SourceInfo, int]
    counts: ConversionCounts = field(default_factory=ConversionCounts)
    begins: int | None = None
    ends: int | None = None
    failed: str = ""


def convert_piece(job: Job, piece: Piece, watch: Watch, begins: int | None = None) -> PieceRecord:
    """Convert a piece.

    begins : where its first structure begins, once that is known; a span of bytes may begin in the middle of one. If
        what was found there at first cannot be read, the record says so, and nothing is wrong yet.

    Raises
    ------
    AtomSieveError
        if a file cannot be read, or changed since the plan was made, or the output cannot be written.
    """
    sets = _Sets(job, piece.number)
    validator = _make_validator(job.options)
    record = PieceRecord(piece.number, {}, sets.sources, validator.tally)
    guessed = piece.by_bytes and piece.start > 0 and begins is None
    try:
        if begins is None or piece.stop is None or begins < piece.stop:
            _read_piece(job, piece, begins, watch, validator, sets, record)
        record.parts = sets.finish()
    except (DiskError, Interrupted):
        raise
    except Exception as error:  # every kind: a reader that begins at the wrong place may find anything
        if guessed:
            log.debug("piece %d", piece.number, exc_info=True)
            return PieceRecord(piece.number, {}, dict.fromkeys(job.sources, 0), failed=str(error))
        if isinstance(error, OSError):
            where = error.filename or next(piece.runs[0].files()).path
            raise DataError(f"cannot read {where}: {error.strerror or error}") from error
        if isinstance(error, AtomSieveError) and piece.by_bytes and piece.start:
            raise type(error)(f"{error} (places counted from byte {begins:,} of the file)") from error
        raise
    finally:
        sets.close()
    return record


def _read_piece(
    job: Job,
    piece: Piece,
    begins: int | None,
    watch: Watch,
    validator: BlockValidator,
    sets: _Sets,
    record: PieceRecord,
) -> None:
    """Hand all valid structures of a piece to the sets. Small files fill a block together: it has a cost of its own."""
    done, fraction, reported = 0, 0.0, time.monotonic()
    carry = job.options.as_carry()

    def tick(value: float) -> None:
        nonlocal fraction
        fraction = value

    def report() -> None:
        nonlocal reported
        reported = time.monotonic()
        part = min((done + fraction) / piece.n_files, NEARLY)
        watch(part, validator.tally.read, sum(validator.tally.skipped.values()))

    def read(files: Iterable[FoundFile]) -> Iterator[Block | Item | BadItem]:
        nonlocal done, fraction
        for found in files:
            if found.size < 0:
                yield BadItem(NO_FILE, found.path)
            else:
                request = job.options.ask(Path(found.path), tick)
                if piece.stop is not None:
                    sure = begins is not None or piece.start == 0 or not piece.by_bytes
                    start = piece.start if begins is None else begins
                    request = replace(request, start=start, stop=piece.stop, sure=sure)
                skip_bad_file = not job.alone and piece.stop is None
                yield from read_found(request, found.kind, skip_bad_file=skip_bad_file)
                _require_unchanged(found)
            done, fraction = done + 1, 0.0
            if time.monotonic() - reported > PERIOD:
                report()

    for run in piece.runs:
        for block in gather_blocks(read(run.files())):
            if block.stop > 0:
                record.begins = block.start if record.begins is None else record.begins
                record.ends = block.stop
            valid = validator(block)
            sources = find_sources(valid, run.source, job.options)
            if job.options.element_references:
                energy = validator.units.over(block.units).factor("energy")
                valid, sources = take_references(valid, sources, validator.tally, energy)
            labels = {key for _, key in validator.tally.found.taken}
            sets.add(valid, sources, carry.tabulate(block, valid.kept, labels, validator.tally.carried))
            report()


def _make_validator(options: ConvertOptions) -> BlockValidator:
    return BlockValidator(
        options.keys, units=options.units, keep_bad=options.keep_bad, charge=options.charge, spin=options.spin
    )


def check_keys(options: ConvertOptions, counts: ConversionCounts) -> None:
    """Raise a UsageError if a key that was asked for was in no structure."""
    validator = _make_validator(options)
    validator.tally = counts
    validator.check_keys()
    wanted = {*(options.carry or ()), *filter(None, [options.text_id])} - {ALL, NONE}
    for key in sorted(wanted - counts.carried.keys - {column for column, _, _ in counts.carried.taken}):
        if counts.read and len(counts.keys) < KEYS_KEPT:
            seen = ", ".join(sorted(counts.keys)[:20])
            what = "has one value per atom, which is not carried" if key in counts.keys else "is in no structure"
            raise UsageError(f"{key!r} {what}{nearest(key, counts.keys - {key})}; the keys there: {seen}")


def _require_unchanged(found: FoundFile) -> None:
    if found.path != STDIN_FILE and stamp_file(found.path) != (found.size, found.mtime_ns):
        raise DataError(f"{found.path} was written while it was converted; wait until it is complete, and start again")


class _Sets:
    """Hands valid structures to the writers of their sets, with their sources."""

    def __init__(self, job: Job, number: int) -> None:
        self.split = job.options.split
        self.sources = dict.fromkeys(job.sources, 0)
        self.writers = {
            name: PartWriter(
                folder,
                path,
                sources=job.sources,
                step_size=job.options.step_size,
                positions=job.options.positions,
                writer=number,
            )
            for name, (folder, path) in job.folders.items()
        }

    def add(self, valid: ValidBlock, sources: SourceColumn, carried: pa.Table | None) -> None:
        """Add the structures of a block, each with its source and a row of what it carries."""
        if not len(valid.batch):
            return
        found, first, counts = np.unique(sources.numbers, return_index=True, return_counts=True)
        for k in np.argsort(first).tolist():  # in order of appearance
            if found[k] >= 0:
                self._count(sources.known[found[k]], int(counts[k]))
        batch = valid.batch
        if self.sources:
            places = {source: k for k, source in enumerate(self.sources)}
            heads = np.array([*(places.get(source, -1) for source in sources.known), -1], np.int32)
            batch = batch.replace(head=heads[sources.numbers])  # -1 is the last place
        if self.split is None:
            self.writers[""].append(batch, carried)
            return
        chosen = np.array(self.split.choose(valid))
        for name, writer in self.writers.items():
            own = np.flatnonzero(chosen == name)
            if len(own):
                writer.append(batch.take(own), None if carried is None else carried.take(own))

    def _count(self, source: SourceInfo, count: int) -> None:
        if source not in self.sources:
            for writer in self.writers.values():  # all sets list the same sources in the same order
                add_source(writer.sources, source)
        self.sources[source] = self.sources.get(source, 0) + count

    def finish(self) -> dict[str, list[PartRow]]:
        """Finish the parts of all sets."""
        return {name: writer.finish() for name, writer in self.writers.items()}

    def close(self) -> None:
        """Close what an error left open."""
        for writer in self.writers.values():
            writer.abandon()
