"""Structures of any readable file as a dataset: a file that is none is converted once, and the copy is used again.

    copy = ensure_dataset("candidates.extxyz", Path("converted"))
    with open_structures(copy.path) as reader: ...

A copy is `NAME-KEY.bp` in the given folder. Its key is a digest of the content of the file and of the options, so a
changed file gets another copy, and a renamed one keeps its own. `converted.json` in the copy is written last: a copy
without it is not whole, and is made again. A lock lets one process convert while others that want the same copy wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.runs.hashing import hash_file, hash_json
from atomsieve.runs.lock import PathLock
from atomsieve.runs.output_files import atomic_write
from atomsieve.structures.convert import ConvertOptions, Input, convert
from atomsieve.structures.formats import find_files, read_blocks
from atomsieve.structures.manifest import is_dataset_folder
from atomsieve.structures.open import open_structures
from atomsieve.structures.read_options import ReadOptions
from atomsieve.structures.reader import FileReader
from atomsieve.structures.validation import ConversionCounts
from atomsieve.text import pluralize

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

STDIN = "-"
"""Name of the standard input."""
FOLDER = "converted"
"""Usual name of the folder of copies, beside what a command writes."""
RECORD = "converted.json"
VERSION = 1
"""Counts up when the same file and options give another dataset, so that no earlier copy is taken."""
LISTED = 100
"""Places of structures that could not be read, of those that a summary lists."""
SHOWN = 3
SCRATCH = ".converting-"
"""Beginning of the names of folders of temporary copies."""
SOURCE_KEY, LEVEL_KEY = "source", "level_of_theory"
"""Keys under which the exports of this package write the source and its level, so that files state them."""
MOST_SOURCES = 50
"""More values than this in the first structures are no names of sources."""
PAUSE = 0.2  # seconds between looks at the lock of another process
_DATASET_ENDINGS = (".bp", ".adios")


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


def is_dataset(path: Path) -> bool:
    """Return True for what `open_structures` opens: a dataset folder or a BP5 directory, whatever its state."""
    if not path.is_dir():
        return path.suffix.lower() in _DATASET_ENDINGS
    held = any((path / name).exists() for name in ("md.idx", "data.0")) or is_dataset_folder(path)
    return held or path.suffix.lower() in _DATASET_ENDINGS


def check_input(path: Path, form: str | None = None) -> None:
    """Refuse a path where no structures are, before anything is loaded or computed.

    Raises
    ------
    DataError
        if nothing is there, or no format is known.
    """
    if str(path) == STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("- reads extended XYZ from standard input, and nothing is piped into it; name a file")
    elif not path.exists():
        open_structures(path)  # raises the error that says what is there
    elif path.is_file() and not is_dataset(path):
        find_files(path, form)  # raises the error on an unknown format


def ensure_dataset(
    given: str | Path,
    folder: Path,
    options: ReadOptions | None = None,
    *,
    labels: bool = True,
    need_sources: bool = True,
    keep_bad: bool = False,
    owner: str = "",
    console: Console | None = None,
) -> DatasetCopy:
    """Return the dataset of a path: the path itself if it is one, else its copy in `folder`, converted if need be.

    options : how the file is read. labels : take energies, forces and stress. need_sources : refuse labels that have no
        source; else a source is taken where structures state one under `SOURCE_KEY`.
    keep_bad : keep structures that no model accepts. owner : makes a copy that no other owner uses.

    Raises
    ------
    DataError
        if nothing is there, or nothing in it can be read.
    UsageError
        if labels have no source; if options are given for a dataset, which is read as it is.
    """
    path, reading = Path(given), options or ReadOptions()
    if str(path) == STDIN:
        with _spool_stdin(folder) as spool:
            chosen = reading if reading.format is not None else replace(reading, format="extxyz")
            made = _ensure_copy(spool, folder, chosen, labels, need_sources, keep_bad, owner, console, STDIN)
            return replace(made, given=path)
    check_input(path, reading.format)
    if is_dataset(path):
        if given_options := reading.list_given():
            words = ", ".join(name.replace("_", "-") for name in given_options)
            raise UsageError(f"{path} is a dataset, which is read as it is; leave out {words}")
        return DatasetCopy(path, path)
    return _ensure_copy(path, folder, reading, labels, need_sources, keep_bad, owner, console, "")


@contextmanager
def open_any(
    given: str | Path,
    options: ReadOptions | None = None,
    *,
    folder: Path | None = None,
    scratch_in: Path | None = None,
    labels: bool = True,
    need_sources: bool = False,
    verify: str = "full",
    console: Console | None = None,
) -> Iterator[FileReader]:
    """Open structures of any readable file.

    folder : of copies of files that are no datasets; None makes a copy that is removed at the end, in the folder
        `scratch_in`, or where temporary files go. The other parameters are those of `ensure_dataset` and
        `open_structures`.
    """
    with open_with_copy(
        given,
        options,
        folder=folder,
        scratch_in=scratch_in,
        labels=labels,
        need_sources=need_sources,
        verify=verify,
        console=console,
    ) as (reader, _):
        yield reader


@contextmanager
def open_with_copy(
    given: str | Path,
    options: ReadOptions | None = None,
    *,
    folder: Path | None = None,
    scratch_in: Path | None = None,
    labels: bool = True,
    need_sources: bool = False,
    verify: str = "full",
    console: Console | None = None,
) -> Iterator[tuple[FileReader, DatasetCopy]]:
    """Open structures as `open_any` does; give the reader, and what is known of the conversion."""
    near = scratch_in if scratch_in is not None and scratch_in.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=near) as scratch:
        copy = ensure_dataset(
            given, folder or Path(scratch), options, labels=labels, need_sources=need_sources, console=console
        )
        with open_structures(copy.path, verify=verify) as reader:
            for line in copy.unreadable.format_lines():
                log.warning("%s", line.strip())
            yield reader, copy


def remove_copy(path: Path) -> None:
    """Remove a converted dataset, its record first: what is left of it is not taken for whole."""
    (path / RECORD).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.parent.rmdir()  # if it was the last one


# -- copies --------------------------------------------------------------------------------------------------------


def _ensure_copy(
    path: Path,
    folder: Path,
    reading: ReadOptions,
    labels: bool,
    need_sources: bool,
    keep_bad: bool,
    owner: str,
    console: Console | None,
    name: str,
) -> DatasetCopy:
    shown = "standard input" if name == STDIN else str(path)
    options = replace(
        reading.as_convert_options(labels=labels, keep_bad=keep_bad), need_sources=need_sources, list_skipped=False
    )
    topology = None if options.topology is None else hash_file(options.topology)
    plain = json.loads(json.dumps([asdict(options), reading.list_given(), topology], default=str))
    wanted = hash_json([VERSION, owner, plain])
    files = find_files(path, reading.format)
    if labels and not need_sources and reading.source is None and reading.source_key is None:
        options = replace(options, **find_source_keys(files, options))
    stamps = hash_json([[str(file.absolute()), kind, _stamp(file)] for file, kind in files])
    copy = _find_by_stamps(folder, wanted, stamps)
    if copy is None:
        content = _digest(path, files)
        key = hash_json([content, wanted])
        found = next(iter(sorted(folder.glob(f"*-{key[:12]}.bp"))), None)
        target = found or folder / f"{'stdin' if name == STDIN else _short_name(path.resolve().name)}-{key[:12]}.bp"
        about = {"version": VERSION, "content": content, "options": wanted, "stamps": stamps}
        copy = _convert_once(path, target, about, reading, options, console, shown)
    if console is not None and not copy.fresh:
        console.print(f"{shown} was converted before: {copy.path}", highlight=False, soft_wrap=True)
    return replace(copy, given=path)


def _short_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)[:60].strip(".") or "structures"


def _stamp(file: Path) -> list[int]:
    """Return size and time of change of a file, or of all that a folder holds."""
    found = sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]
    return [number for p in found for number in (p.stat().st_size, p.stat().st_mtime_ns)]


def digest_content(path: Path, form: str | None = None) -> str:
    """Return a digest of the content of a file, or of all in a folder, with formats and, in a folder, names in it."""
    return _digest(path, find_files(path, form))


def find_source_keys(files: list[tuple[Path, str]], options: ConvertOptions) -> dict[str, Any]:
    """Return `source_key`, and `level_key`, if the first structures of files state their source; else nothing."""
    for file, kind in files[:1]:
        for block in read_blocks(options.ask(file, lambda fraction: None), kind):
            column = block.info.get(SOURCE_KEY)
            names = set() if column is None else {str(value) for value in column.values.tolist()}
            if not 0 < len(names) <= MOST_SOURCES:
                return {}
            return {"source_key": SOURCE_KEY, **({"level_key": LEVEL_KEY} if LEVEL_KEY in block.info else {})}
    return {}


def _digest(path: Path, files: list[tuple[Path, str]]) -> str:
    rows = []
    for file, kind in files:
        place = "" if file == path else str(file.relative_to(path))
        parts = sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]
        rows.append([kind, place, [hash_file(part) for part in parts]])
    return hash_json(rows)


def _find_by_stamps(folder: Path, wanted: str, stamps: str) -> DatasetCopy | None:
    """Return a whole copy whose files have not changed since they were read, without reading them again."""
    for path in sorted(folder.glob("*.bp")):
        found = _read_record(path)
        if found is not None and found["options"] == wanted and found["stamps"] == stamps:
            return _as_copy(path, found)
    return None


def _read_record(copy: Path) -> dict[str, Any] | None:
    """Return the record of a whole copy, None if there is none."""
    try:
        found: dict[str, Any] = json.loads((copy / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("version") == VERSION and is_dataset_folder(copy) else None


def _as_copy(path: Path, record: dict[str, Any], *, fresh: bool = False) -> DatasetCopy:
    places = tuple((where, reason, detail) for where, reason, detail in record["unreadable"]["places"])
    bad = Unreadable(record["unreadable"]["read"], record["unreadable"]["reasons"], places)
    return DatasetCopy(path, path, record["content"], fresh, bad, tuple(record["notes"]))


def _convert_once(
    path: Path,
    target: Path,
    about: dict[str, Any],
    reading: ReadOptions,
    options: ConvertOptions,
    console: Console | None,
    shown: str,
) -> DatasetCopy:
    """Convert unless another process has done so meanwhile; the same file under a new name only gets a new record."""
    with _take_turn(target, console):
        known = _read_record(target)
        if known is not None and all(known[name] == about[name] for name in ("content", "options")):
            _write_record(target, known | about)
            return _as_copy(target, known)
        if console is not None:
            once = f"once, into {target}" if not target.parent.name.startswith(SCRATCH) else "into a temporary dataset"
            console.print(f"converting {shown} {once}", highlight=False, soft_wrap=True)
        report = convert([Input(path, reading.source_info())], target, replace(options, overwrite=True), console)
        record = about | {
            "reading": reading.list_given(),
            "unreadable": _describe_skipped(report.tally, path, shown),
            "notes": list(list_notes(report.tally, options)),
        }
        _write_record(target, record)
        if console is not None:
            what = f"converted {pluralize(report.written, 'structure')} in {report.seconds:.1f} s"
            for line in (what, *(f"note: {note}" for note in record["notes"])):
                console.print(line, highlight=False, soft_wrap=True)
        return _as_copy(target, record, fresh=True)


def list_notes(tally: ConversionCounts, options: ConvertOptions) -> Iterator[str]:
    """Yield a sentence for each thing that a user should know about what was taken from a file, and what was left."""
    for note, count in tally.notes.most_common():
        yield f"{pluralize(count, 'structure')}: {note}"
    if options.keys.none:
        return
    if taken := ", ".join(tally.found.describe_taken()):
        yield f"labels: {taken}"
    for words in tally.found.describe_units():
        yield f"units: {words}"
    known = [key for key in (options.keys.id, options.source_key, options.level_key) if key]
    settled = [name for name in _LABELS if getattr(options.keys, name) is not None]
    yield from tally.found.list_notes(known, settled)


_LABELS = ("energy", "forces", "stress", "virial", "charge", "spin")


def _describe_skipped(tally: ConversionCounts, path: Path, shown: str) -> dict[str, Any]:
    places = [[where.replace(str(path), shown, 1), reason, detail] for where, reason, detail in tally.places]
    return {"read": tally.read, "reasons": dict(tally.skipped.most_common()), "places": places}


def _write_record(copy: Path, record: dict[str, Any]) -> None:
    try:
        atomic_write(copy / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise AtomSieveError(f"cannot write {copy / RECORD}: {error.strerror or error}; make room there") from error


@contextmanager
def _take_turn(target: Path, console: Console | None) -> Iterator[None]:
    """Hold the lock of a copy; wait while another process of any host converts into it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AtomSieveError(
            f"cannot make the folder {target.parent} for converted structures ({error.strerror}); choose another "
            "output, or convert first: atomsieve data convert"
        ) from error
    path, told = target.with_name(f"{target.name}.making"), False
    while True:
        lock = PathLock(path, target)
        try:
            lock.__enter__()
            break
        except AtomSieveError as error:
            if error.__cause__ is not None:  # of the disk; else another process holds it
                raise
        if not told and console is not None:
            console.print(f"another process converts into {target}; waiting for it", highlight=False, soft_wrap=True)
        told = True
        time.sleep(PAUSE)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextmanager
def _spool_stdin(folder: Path) -> Iterator[Path]:
    """Write the standard input to a file, named by its content, until the block ends."""
    check_input(Path(STDIN))
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(prefix=".stdin-", dir=folder, delete=False) as draft:
        place = Path(draft.name)
        try:
            read: Callable[[int], bytes] = sys.stdin.buffer.read
            while block := read(1 << 22):
                digest.update(block)
                draft.write(block)
            draft.close()
            if not place.stat().st_size:
                raise DataError("standard input is empty; pipe extended XYZ into it, or name a file")
            yield place
        finally:
            with suppress(FileNotFoundError):
                place.unlink()
