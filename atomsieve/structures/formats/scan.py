"""Finds files of structures and their formats, with sizes and times; keeps no object for each of a million files."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from atomsieve.errors import DataError, unknown
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.registry import FORMATS, readable

log = logging.getLogger(__name__)

VAGUE_ENDINGS = (".out", ".log", ".txt", ".output", ".data", ".xyz")
"""Endings that several formats share: the content of such a file is looked at."""
NO_FILE = "a link to nothing"
HEAD_BYTES = 1 << 16


class FoundFile(NamedTuple):
    """A file, or a folder that is one dataset, and its format; `size` in bytes is -1 for a link to nothing."""

    path: str
    kind: str
    size: int
    mtime_ns: int


def find_format(path: Path) -> str | None:
    """Return the name of the format of a file to read, by its name (without `.gz`) or its first bytes, or None."""
    return _Names().find(str(path))


class _Names:
    """The names of files of all formats that can be read; one object serves a whole folder."""

    def __init__(self) -> None:
        self.rows = [(key, row) for key, row in FORMATS.items() if row.read is not None]
        self.patterns = [
            (re.compile(fnmatch.translate(pattern)), key) for key, row in self.rows for pattern in row.patterns
        ]
        self.parts = [
            (re.compile(fnmatch.translate(pattern)), key) for key, row in FORMATS.items() for pattern in row.parts
        ]

    def find(self, path: str) -> str | None:
        """Return the format of a file by its name or its first bytes."""
        name = os.path.basename(path).removesuffix(".gz")
        for pattern, key in self.patterns:
            if pattern.match(name):
                return key
        lower = name.lower()
        if lower.endswith(VAGUE_ENDINGS) and (found := _format_by_content(path)) is not None:
            return found
        for key, row in self.rows:
            if lower.endswith(row.endings):
                return key
        return next((key for key, row in self.rows if name.startswith(row.beginnings)), None)

    def find_owner(self, path: str) -> str | None:
        """Return the format of which a file is a mere part, None for others."""
        name = os.path.basename(path)
        return next((key for pattern, key in self.parts if pattern.match(name)), None)


def _format_by_content(path: str | Path) -> str | None:
    """Return the format that the first bytes of a file tell, None if none does or it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # a folder may hold a million of them
            head = file.read(HEAD_BYTES)
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except (OSError, zlib.error):
        return None
    return next((key for key, row in FORMATS.items() if row.looks_like is not None and row.looks_like(head)), None)


def _folder_format(path: Path) -> str | None:
    """Return the format of a folder that is one dataset by itself."""
    return next((key for key, row in FORMATS.items() if row.is_folder(path)), None)


def find_files(path: Path, wanted: str | None = None) -> list[tuple[Path, str]]:
    """Return the files to convert at a path with their formats: the file itself, or all that a folder holds, sorted.

    Raises
    ------
    DataError
        if nothing is there, it cannot be read, or no format is known.
    """
    return [(Path(found.path), found.kind) for found in scan_files(path, wanted) if found.size >= 0]


def scan_files(path: Path, wanted: str | None = None, leave: frozenset[str] = frozenset()) -> Iterator[FoundFile]:
    """Yield the files to convert at a path: the file itself, or all that a folder holds, sorted folder by folder.

    Links to files are followed, and links to folders outside of `path`, once each.

    leave : paths that are not entered, such as those of the output.

    Raises
    ------
    DataError
        if nothing is there, it cannot be read, or no format is known.
    """
    if wanted is not None and wanted not in readable():
        raise unknown("format", wanted, readable())
    if not os.path.lexists(path):
        raise DataError(f"{path} does not exist")
    if not path.exists():
        raise DataError(f"{path} is a link to {os.readlink(path)}, which does not exist")
    names = _Names()
    folder_format = _folder_format(path) if path.is_dir() else None
    if not path.is_dir() or folder_format is not None:
        yield _find_one(path, wanted, folder_format, names)
        return
    walk = _Walk(wanted, leave, names, os.path.realpath(path))
    found = False
    for file in walk.enter(str(path)):
        found = True
        yield file
    if not found:
        raise DataError(f"{path} holds no file of a known format ({', '.join(readable())})")
    if walk.covered:
        log.warning(
            "%d files are left out, since a fuller output of the same calculation lies beside them (%s: %s); --format "
            "reads one kind alone",
            len(walk.covered),
            *walk.covered[0],
        )


def _find_one(path: Path, wanted: str | None, folder_format: str | None, names: _Names) -> FoundFile:
    kind = wanted or folder_format or names.find(str(path)) or _format_by_content(path)
    if path.is_file() and wanted is None and (owner := names.find_owner(str(path))) is not None:
        raise DataError(
            f"{path} is read together with {FORMATS[owner].patterns[0]} ({owner}) beside it: name that file"
        )
    if kind is None:
        raise DataError(
            f"{path}: the format cannot be told from the name; name it with --format, one of {', '.join(readable())}"
        )
    return FoundFile(str(path), kind, *stamp_file(str(path)))


class _Walk:
    """Goes through the files of a folder and those below it.

    Attributes
    ----------
    covered : files that were left out, since a fuller output lies beside them, and that output.
    """

    def __init__(self, wanted: str | None, leave: frozenset[str], names: _Names, root: str) -> None:
        self.wanted, self.leave, self.names = wanted, leave, names
        self.entered = [root]  # real paths of where it began, and of folders that links led to
        self.covered: list[tuple[str, str]] = []

    def enter(self, folder: str) -> Iterator[FoundFile]:
        """Yield the files of a folder, sorted, each folder in its place among them."""
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
        here: list[FoundFile | str] = []
        for name in names:
            path = os.path.join(folder, name)
            if path not in self.leave and (found := self._look_at(path)) is not None:
                here.append(found)
        for entry in self._leave_out_covered(folder, here):
            if isinstance(entry, str):
                yield from self.enter(entry)
            else:
                yield entry

    def _look_at(self, path: str) -> FoundFile | str | None:
        """Return a file of a known format, the path of a folder to enter, or None."""
        try:
            found = os.stat(path)
        except OSError as error:
            if not os.path.islink(path):
                raise DataError(f"cannot read {path}: {error.strerror}") from error
            kind = self._kind(path)
            return None if kind is None else FoundFile(path, kind, -1, 0)
        if stat.S_ISREG(found.st_mode):
            kind = self._kind(path)
            return None if kind is None else FoundFile(path, kind, found.st_size, found.st_mtime_ns)
        if not stat.S_ISDIR(found.st_mode):
            return None
        kind = _folder_format(Path(path))
        if kind is not None:
            return FoundFile(path, kind, *stamp_file(path)) if self.wanted in (None, kind) else None
        return None if os.path.islink(path) and not self._is_new(path) else path

    def _kind(self, path: str) -> str | None:
        kind = self.names.find(path) if self.names.find_owner(path) is None else None
        return kind if self.wanted in (None, kind) else None

    def _is_new(self, link: str) -> bool:
        """Return True for a link to a folder that is entered nowhere else, and note that it is entered."""
        real = os.path.realpath(link)
        if any(os.path.commonpath([real, other]) in (real, other) for other in self.entered):
            return False
        self.entered.append(real)
        return True

    def _leave_out_covered(self, folder: str, here: Sequence[FoundFile | str]) -> Iterator[FoundFile | str]:
        """Yield what is in a folder, without files that repeat a part of a fuller output of the same calculation."""
        covered: dict[tuple[str, str], str] = {}
        for entry in here:
            if isinstance(entry, FoundFile) and FORMATS[entry.kind].covers:
                rest = _rest_of_name(FORMATS[entry.kind], entry.path)
                for other in FORMATS[entry.kind].covers if rest is not None else ():
                    covered.setdefault((other, rest or ""), entry.path)
        for entry in here:
            fuller = None
            if covered and isinstance(entry, FoundFile):
                rest = _rest_of_name(FORMATS[entry.kind], entry.path)
                fuller = None if rest is None else covered.get((entry.kind, rest))
            if fuller is None:
                yield entry
            elif isinstance(entry, FoundFile):
                self.covered.append((entry.path, fuller))


def _rest_of_name(row: Format, path: str) -> str | None:
    """Return what stands in a name for the `*` of a format's pattern or after its beginning: it tells runs apart."""
    name = os.path.basename(path).removesuffix(".gz")
    for pattern in (*row.patterns, *(f"{word}*" for word in row.beginnings)):
        before, _, after = pattern.partition("*")
        if fnmatch.fnmatchcase(name, pattern):
            return name[len(before) : len(name) - len(after)]
    return None


def stamp_file(path: str) -> tuple[int, int]:
    """Return size in bytes and time (ns) of a file, or of all that a folder holds; they change when it is written.

    (-1, 0) for a link to nothing, (0, 0) for what cannot be read twice.
    """
    try:
        found = os.stat(path)
    except OSError:
        return -1, 0
    if stat.S_ISDIR(found.st_mode):
        size, newest = 0, 0
        for folder, _, names in os.walk(path):
            for name in set(names) - {"lock.mdb"}:  # reading an LMDB writes its lock
                one = os.stat(os.path.join(folder, name))
                size, newest = size + one.st_size, max(newest, one.st_mtime_ns)
        return size, newest
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (0, 0)
