"""The life of a dataset folder while it is written: locked, filled as `X.partial`, and given its name when complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from atomsieve.errors import DataError, UsageError
from atomsieve.runs.lock import PathLock
from atomsieve.runs.output_files import sync_folder
from atomsieve.structures.dataset.manifest import DatasetManifest, PartRow, is_dataset_folder
from atomsieve.structures.source import SourceInfo

RECORDS = "records"
"""Folder in an unfinished dataset for what its writer remembers; it is no part of the dataset."""
OUR_NAMES = re.compile(r"part-\d{5,}\.r\d{3,}\.bp(\.tmp)?|manifest\.json(\.tmp)?|\.manifest\.json\.\d+\.json|records")
"""What an unfinished folder may hold; one with anything else is never deleted."""


def require_name(path: str | Path) -> Path:
    """Return the path of a dataset to be made.

    Raises
    ------
    UsageError
        if it has no name, like `.`: the folder is written under a longer name first.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise UsageError(f"{path} is no name for a new folder; add one, such as {path / 'structures.bp'}")
    return path


class DatasetDraft:
    """The unfinished folder `<path>.partial` of the dataset `path`.

    Parameters
    ----------
    path : the dataset to make.
    overwrite : replace a dataset that is already there; anything else is never deleted.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = require_name(path)
        self.folder = self.path.with_name(f"{self.path.name}.partial")
        self._overwrite = overwrite
        self._lock: PathLock | None = None

    def begin(self, keep: Callable[[Path], bool] = lambda folder: False) -> bool:
        """Lock the dataset and make the folder; return True if the folder of an earlier run is kept.

        keep : asked whether an unfinished folder that is already there is to be continued, otherwise it is deleted. It
            may raise, which leaves everything as it is.

        Raises
        ------
        AtomSieveError
            if the dataset exists, is in use by another run, or the folder cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make {self.path.parent}: {error.strerror}") from error
        self._lock = PathLock(self.path.with_name(f"{self.path.name}.lock"), self.path).__enter__()
        try:
            self.check_target()
            if self.folder.exists():
                foreign = [p.name for p in self.folder.iterdir() if not OUR_NAMES.fullmatch(p.name)]
                if foreign:
                    raise DataError(f"{self.folder} is in the way and holds {foreign[0]!r}; move it away")
                if keep(self.folder):
                    return True
                shutil.rmtree(self.folder)
            self.folder.mkdir()
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise DataError(f"cannot make {self.folder}: {error.strerror}") from error
            raise
        return False

    def check_target(self) -> None:
        """Raise unless the dataset can be given its name."""
        if not os.path.lexists(self.path):
            return
        if not self._overwrite:
            raise UsageError(f"{self.path} exists; choose another name, or --overwrite to replace it")
        empty = self.path.is_dir() and not any(self.path.iterdir())
        if not (empty or is_dataset_folder(self.path)) or self.path.is_symlink():
            raise UsageError(f"{self.path} is not a dataset written by atomsieve; --overwrite does not delete it")

    def publish(self, parts: Sequence[PartRow], sources: Sequence[SourceInfo], notes: dict[str, str]) -> None:
        """Write the manifest and give the folder its name; everything but the parts is removed first."""
        if self._lock is not None:
            self._lock.check()
        try:
            shutil.rmtree(self.folder / RECORDS, ignore_errors=True)
            DatasetManifest.of(list(parts), list(sources), notes).save(self.folder)
            self.check_target()
            old = self.path.with_name(f"{self.path.name}.old-{os.getpid()}")
            if self.path.exists():
                self.path.rename(old)
            self.folder.rename(self.path)
            sync_folder(self.path.parent)
            if old.exists():
                shutil.rmtree(old)
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror or error}") from error

    def discard(self) -> None:
        """Remove the unfinished folder, if this run holds the lock, and release it."""
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.release()

    def release(self) -> None:
        """Release the lock; the folder stays."""
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None
