"""Files that answer a question to results: what a disk refuses becomes one line that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atomsieve.errors import AtomSieveError

FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 1 << 16  # bytes; with less than that free, an error without a number is taken for a full disk


def free_bytes(folder: Path) -> int:
    """Return what this user may still write to the disk of `folder`."""
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


def beside(path: Path, ending: str) -> Path:
    """Return the place beside a file or folder that is called like it, with `ending` added."""
    if path.name in ("", ".."):  # of `.` and `a/..`: what they are called is only known where they lead
        path = path.resolve()
    return path.with_name(path.name + ending)


def require_writable(path: Path) -> None:
    """Refuse a target whose folder takes no file, before anything is computed.

    Raises
    ------
    AtomSieveError
        if the folder is read-only, belongs to somebody else, or its disk is full.
    """
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise AtomSieveError(f"cannot write {path}: {folder} is read-only, or not yours; choose another place")
    if free_bytes(folder) == 0:
        raise AtomSieveError(f"cannot write {path}: no space left in {folder}; make room, or choose another place")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the disk of the target `path` refuses into one line; errors of other files pass through."""
    folder = path.absolute().parent
    try:
        yield
    except OSError as error:
        named = error.filename
        if isinstance(named, str) and folder not in (place := Path(named).absolute()).parents and place != folder:
            raise
        if not folder.is_dir():
            why = f"the folder {folder} is gone (moved or deleted meanwhile); make it again"
        elif error.errno in FULL or (error.errno is None and free_bytes(folder) < LITTLE):
            why = f"no space left in {folder} ({free_bytes(folder) / 1e6:.3f} MB free); make room"
        elif error.errno is None:
            raise  # not what a disk says
        else:
            limit = " (a limit on the size of files: ulimit -f, or the file system's own)"
            why = f"{error.strerror}{limit if error.errno == errno.EFBIG else ''}; mend it"
        raise AtomSieveError(f"cannot write {path}: {why}, or choose another place") from error
