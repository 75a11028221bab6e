"""Output files: written whole or not at all, and with errors of one line.

    atomic_write(path, data)                   a small file, of bytes
    with atomic_draft(path) as draft: ...      a file that some other function writes
    with atomic_folder(path) as draft: ...     a folder of several files

Who calls them chooses the error: `output_errors` for a file that answers one command, `disk_errors` for the folder of a
run that can be continued.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atomsieve.errors import AtomSieveError

FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 1 << 16  # bytes; with less than that free, an error without a number is taken for a full disk
LIMIT = " (a limit on the size of files: ulimit -f, or the file system's own)"
GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
AGAIN = "run the same command again to continue"


def get_free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write to the disk of `folder`."""
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


def sibling_path(path: Path, ending: str) -> Path:
    """Return the path in the same folder whose name is that of `path` with `ending` added."""
    if path.name in ("", ".."):  # `.` and `a/..` have a name only once they are resolved
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
    if get_free_bytes(folder) == 0:
        raise AtomSieveError(f"cannot write {path}: no space left in {folder}; make room, or choose another place")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the file `path`, or of its drafts, into a one-line error; those of other files pass through.

    Raises
    ------
    AtomSieveError
        with the file and the remedy.
    """
    folder = path.absolute().parent
    try:
        yield
    except OSError as error:
        named = error.filename
        if isinstance(named, str) and folder not in (place := Path(named).absolute()).parents and place != folder:
            raise
        if not folder.is_dir():
            why = f"the folder {folder} is gone (moved or deleted meanwhile); make it again"
        elif error.errno in FULL or (error.errno is None and get_free_bytes(folder) < LITTLE):
            why = f"no space left in {folder} ({get_free_bytes(folder) / 1e6:.3f} MB free); make room"
        elif error.errno is None:
            raise  # no error of the disk
        else:
            why = f"{error.strerror}{LIMIT if error.errno == errno.EFBIG else ''}; mend it"
        raise AtomSieveError(f"cannot write {path}: {why}, or choose another place") from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the disk that holds the folder `path` into a one-line error with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in GONE or not path.is_dir():
            what = f"the folder {path} or a file in it is gone (moved or deleted while it was written)"
            raise AtomSieveError(f"{what}; finished chunks are safe where they are: put it back and {AGAIN}") from error
        if error.errno in FULL:
            free = get_free_bytes(path)
            raise AtomSieveError(
                f"no space left for results in {path} ({free / 1e6:.3f} MB free); finished chunks are safe: make room "
                f"and {AGAIN}"
            ) from error
        raise AtomSieveError(
            f"cannot write results in {path}: {error.strerror}{LIMIT if error.errno == errno.EFBIG else ''}; finished "
            f"chunks are safe: mend it and {AGAIN}"
        ) from error


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    sync_file(path)


def draft_path(path: Path) -> Path:
    """Return where this process drafts the file `path`: in the same folder, hidden, with the same endings."""
    return path.with_name(f".{path.name}.{os.getpid()}{''.join(path.suffixes)}")


@contextmanager
def atomic_draft(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give the path of a draft to write; it replaces `path` when the block ends, or is removed if the block fails.

    A reader of `path` sees the old or the new content, never a part.

    durable : sync the draft before it replaces the file, and the folder afterwards, so that the new content survives a
        crash of the machine.
    """
    draft = draft_path(path)
    try:
        yield draft
        if durable:
            sync_file(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it replaces `path` when the block ends, or is removed if the block fails.

    An earlier `path` is deleted just before: the caller makes sure that it may be. A block whose files are to
    survive a crash of the machine syncs them itself.
    """
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp makes it private
        if path.exists():
            shutil.rmtree(path)
        os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def atomic_write(path: Path, data: bytes) -> None:
    """Write a small file durably; a reader sees the old or the new content, never a part.

    Raises
    ------
    OSError
        if the disk refuses it; see `output_errors` and `disk_errors`.
    """
    with atomic_draft(path) as draft:
        draft.write_bytes(data)
