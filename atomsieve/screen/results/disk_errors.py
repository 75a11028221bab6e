"""Disk errors while results are written, as one-line messages with the remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atomsieve.errors import AtomSieveError

GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
AGAIN = "run the same command again to continue"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the disk that holds the folder `path` into a one-line error with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in GONE or not path.is_dir():
            what = f"the folder {path} or a file in it is gone (moved or deleted while it was written)"
            raise AtomSieveError(f"{what}; finished chunks are safe where they are: put it back and {AGAIN}") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
            raise AtomSieveError(
                f"no space left for results in {path} ({free / 1e6:.3f} MB free); finished chunks are safe: make room "
                f"and {AGAIN}"
            ) from error
        limit = " (a limit on the size of files: ulimit -f, or the file system's own)"
        raise AtomSieveError(
            f"cannot write results in {path}: {error.strerror}{limit if error.errno == errno.EFBIG else ''}; finished "
            f"chunks are safe: mend it and {AGAIN}"
        ) from error
