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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.runs.hashing import hash_file, hash_json
from atomsieve.runs.lock import PathLock
from atomsieve.runs.mpi import Communicator
from atomsieve.structures.conversion.convert import ConvertOptions, ConvertReport, Input, convert
from atomsieve.structures.conversion.copy_record import (
    RECORD,
    VERSION,
    DatasetCopy,
    describe_skipped,
    list_notes,
    make_copy,
    read_record,
    write_record,
)
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.dataset.manifest import is_dataset_folder
from atomsieve.structures.dataset.open import open_structures
from atomsieve.structures.dataset.reader import FileReader
from atomsieve.structures.formats import find_files, read_blocks
from atomsieve.text import pluralize

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

STDIN, STDIN_SHOWN = "-", "standard input"
"""Name of the standard input, and what messages call it."""
FOLDER = "converted"
"""Usual name of the folder of copies, beside what a command writes."""
SCRATCH = ".converting-"
"""Beginning of the names of folders of temporary copies."""
SOURCE_KEY, LEVEL_KEY = "source", "level_of_theory"
"""Keys under which the exports of this package write the source and its level, so that files state them."""
MOST_SOURCES = 50
"""More values than this in the first structures are no names of sources."""
PAUSE = 0.2  # seconds between looks at the lock of another process
_DATASET_ENDINGS = (".bp", ".adios")


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
    comm: Communicator | None = None,
) -> DatasetCopy:
    """Return the dataset of a path: the path itself if it is one, else its copy in `folder`, converted if need be.

    options : how the file is read. labels : take energies, forces and stress. need_sources : refuse labels that have no
        source; else a source is taken where structures state one under `SOURCE_KEY`.
    keep_bad : keep structures that no model accepts. owner : makes a copy that no other owner uses.
    comm : the ranks of a job, which all make this call and share the work.

    Raises
    ------
    DataError
        if nothing is there, or nothing in it can be read.
    UsageError
        if labels have no source; if options are given for a dataset, which is read as it is.
    """
    path, reading, comm = Path(given), options or ReadOptions(), comm or Communicator()
    rules = {"labels": labels, "need_sources": need_sources, "keep_bad": keep_bad}
    if str(path) == STDIN:
        copy = comm.run_on_first(_ensure_stdin, folder, reading, rules, owner, console)
        return replace(copy, given=path)
    if comm.run_on_first(_check_call, path, reading):
        return DatasetCopy(path, path)
    return _ensure_copy(path, folder, reading, rules, owner, console, comm, str(path))


def _check_call(path: Path, reading: ReadOptions) -> bool:
    """Return whether the path is a dataset, which takes no options."""
    check_input(path, reading.format)
    if not is_dataset(path):
        return False
    if given := reading.list_given():
        words = ", ".join(name.replace("_", "-") for name in given)
        raise UsageError(f"{path} is a dataset, which is read as it is; leave out {words}")
    return True


def _ensure_stdin(
    folder: Path, reading: ReadOptions, rules: Mapping[str, bool], owner: str, console: Console | None
) -> DatasetCopy:
    """Return the copy of the standard input, which this process alone reads and converts."""
    chosen = reading if reading.format is not None else replace(reading, format="extxyz")
    with _spool_stdin(folder) as spool:
        return _ensure_copy(spool, folder, chosen, rules, owner, console, Communicator(), STDIN_SHOWN)


@contextmanager
def open_any(
    given: str | Path, options: ReadOptions | None = None, *, folder: Path | None = None, labels: bool = True
) -> Iterator[FileReader]:
    """Open structures of any readable file, as `open_with_copy` does."""
    with open_with_copy(given, options, folder=folder, labels=labels) as (reader, _):
        yield reader


@contextmanager
def open_with_copy(
    given: str | Path,
    options: ReadOptions | None = None,
    *,
    folder: Path | None = None,
    scratch_in: Path | None = None,
    labels: bool = True,
    verify: str = "full",
    console: Console | None = None,
) -> Iterator[tuple[FileReader, DatasetCopy]]:
    """Open structures of any readable file; give the reader, and what is known of the conversion.

    folder : of copies of files that are no datasets; None makes a copy that is removed at the end, in the folder
        `scratch_in`, or where temporary files go. Labels need no source. The other parameters are those of
        `ensure_dataset` and `open_structures`.
    """
    near = scratch_in if scratch_in is not None and scratch_in.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=near) as scratch:
        place = folder or Path(scratch)
        copy = ensure_dataset(given, place, options, labels=labels, need_sources=False, console=console)
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


@dataclass(frozen=True)
class _Task:
    """A file to be converted.

    Attributes
    ----------
    path, target : the file and the copy. shown : name of the file in messages. reading, options : how it is read.
    about : what the record of the copy says of them.
    """

    path: Path
    target: Path
    shown: str
    reading: ReadOptions
    options: ConvertOptions
    about: dict[str, Any]


def _ensure_copy(
    path: Path,
    folder: Path,
    reading: ReadOptions,
    rules: Mapping[str, bool],
    owner: str,
    console: Console | None,
    comm: Communicator,
    shown: str,
) -> DatasetCopy:
    """Return the copy of a file; the ranks of a job share its conversion.

    rules : `labels`, `need_sources`, `keep_bad`. shown : name of the file in messages.
    """
    found = comm.run_on_first(_look_up, path, folder, reading, rules, owner, shown)
    screen = console if comm.rank == 0 else None
    copy = found if isinstance(found, DatasetCopy) else _convert_once(found, screen, comm)
    if screen is not None and not copy.fresh:
        screen.print(f"{shown} was converted before: {copy.path}", highlight=False, soft_wrap=True)
    return replace(copy, given=path)


def _look_up(
    path: Path, folder: Path, reading: ReadOptions, rules: Mapping[str, bool], owner: str, shown: str
) -> DatasetCopy | _Task:
    """Return the copy if its files have not changed since they were read, else what is to be done."""
    options = reading.as_convert_options(labels=rules["labels"], keep_bad=rules["keep_bad"])
    options = replace(options, need_sources=rules["need_sources"], list_skipped=False)
    topology = None if options.topology is None else hash_file(options.topology)
    plain = json.loads(json.dumps([asdict(options), reading.list_given(), topology], default=str))
    wanted = hash_json([VERSION, owner, plain])
    files = find_files(path, reading.format)
    stamps = hash_json([[str(file.absolute()), kind, _stamp(file)] for file, kind in files])
    if (copy := _find_by_stamps(folder, wanted, stamps)) is not None:
        return copy
    if rules["labels"] and not rules["need_sources"] and reading.source is None and reading.source_key is None:
        options = replace(options, **find_source_keys(files, options))
    content = _digest(path, files)
    key = hash_json([content, wanted])[:12]
    name = "stdin" if shown == STDIN_SHOWN else _short_name(path.resolve().name)
    target = next(iter(sorted(folder.glob(f"*-{key}.bp"))), folder / f"{name}-{key}.bp")
    about = {"version": VERSION, "content": content, "options": wanted, "stamps": stamps}
    return _Task(path, target, shown, reading, options, about)


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
        found = read_record(path)
        if found is not None and found["options"] == wanted and found["stamps"] == stamps:
            return make_copy(path, found)
    return None


def _convert_once(task: _Task, console: Console | None, comm: Communicator) -> DatasetCopy:
    """Convert unless another process has done so meanwhile; the same file under a new name only gets a new record."""
    with ExitStack() as stack:
        known = comm.run_on_first(_take_turn, task, stack, console)
        if known is not None:
            return known
        inputs = [Input(task.path, task.reading.source_info())]
        report = convert(inputs, task.target, replace(task.options, overwrite=True), console, comm=comm)
        comm.reset_claims()
        comm.reset_counts()
        return comm.run_on_first(_record, task, report, console)


def _take_turn(task: _Task, stack: ExitStack, console: Console | None) -> DatasetCopy | None:
    """Lock the copy until `stack` is left; return it if another process has converted meanwhile."""
    stack.enter_context(_hold_lock(task.target, console))
    known = read_record(task.target)
    if known is not None and all(known[name] == task.about[name] for name in ("content", "options")):
        write_record(task.target, known | task.about)
        return make_copy(task.target, known)
    if console is not None:
        scratch = task.target.parent.name.startswith(SCRATCH)
        place = "into a temporary dataset" if scratch else f"once, into {task.target}"
        console.print(f"converting {task.shown} {place}", highlight=False, soft_wrap=True)
    return None


def _record(task: _Task, report: ConvertReport, console: Console | None) -> DatasetCopy:
    """Record that the copy is whole, and say what was taken and left."""
    record = task.about | {
        "reading": task.reading.list_given(),
        "unreadable": describe_skipped(report.tally, task.path, task.shown),
        "notes": list(list_notes(report.tally, task.options)),
    }
    write_record(task.target, record)
    if console is not None:
        what = f"converted {pluralize(report.written, 'structure')} in {report.seconds:.1f} s"
        for line in (what, *(f"note: {note}" for note in record["notes"])):
            console.print(line, highlight=False, soft_wrap=True)
    return make_copy(task.target, record, fresh=True)


@contextmanager
def _hold_lock(target: Path, console: Console | None) -> Iterator[None]:
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
