"""The output folder of a long job: it refuses foreign files, records the settings, and deletes only its own.

A new job derives a class from `OutputFolder` and lists its files. At its start one process calls

    folder.occupy(PathLock(folder.lock), stack)      the folder exists, holds nothing foreign, and is locked
    folder.claim(settings, overwrite=..., ...)       the job begins, or continues one of the same settings

The record is the first file of a job and the last one that `clear` removes: a folder with other files of a job and
without a record was copied in part or is about to be deleted.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.runs.lock import PathLock
from atomsieve.runs.output_files import atomic_write, disk_errors

Settings = Mapping[str, Any]
LONG = 60  # characters of a setting in a message
Changes = dict[str, tuple[Any, Any]]
"""Value before and after of every setting that differs, by its dotted key."""


@dataclass(frozen=True)
class OutputFolder(ABC):
    """The folder that a job writes.

    Attributes
    ----------
    path : of the folder.
    contents : name of the results in messages, in the plural.
    option : how the user chooses the folder.
    record_name : name of the file with the settings of the job.
    """

    path: Path

    contents: ClassVar[str]
    option: ClassVar[str] = "--out"
    record_name: ClassVar[str]

    @property
    def record(self) -> Path:
        """The file with the settings of the job."""
        return self.path / self.record_name

    @property
    def lock(self) -> Path:
        """The file that exists while a job writes here."""
        return self.path / "lock.json"

    @abstractmethod
    def list_files(self) -> list[Path]:
        """Return every file that a job writes here and may delete, the record last; not all need exist."""

    def list_folders(self) -> list[Path]:
        """Return every folder inside that is deleted with all that it holds."""
        return []

    def list_own_names(self) -> set[str]:
        """Return the names in the folder by which a job of this kind knows its own, even without a record."""
        return {path.name for path in (*self.list_folders(), *self.list_files()) if path.parent == self.path}

    def is_ours(self) -> bool:
        """Return whether a job of this kind made the folder."""
        return self.record.is_file()

    def list_foreign(self) -> list[str]:
        """Return the names in the folder that no job of this kind writes; drafts of a killed start are its own."""
        drafts, own = (self.lock.name, f".{self.record_name}."), self.list_own_names()
        return [name for name in sorted(os.listdir(self.path)) if name not in own and not name.startswith(drafts)]

    def make(self) -> None:
        """Make the folder unless it exists.

        Raises
        ------
        AtomSieveError
            if there is a file of that name, or the disk refuses it.
        """
        choose = f"choose another place with {self.option}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            message = f"{self.path} is a file, no folder for results; choose another {self.option}"
            raise AtomSieveError(message) from error
        except OSError as error:
            raise AtomSieveError(f"cannot make the results folder {self.path} ({error.strerror}); {choose}") from error

    def occupy(self, lock: PathLock, stack: ExitStack) -> None:
        """Make the folder, hold its lock until `stack` is left, and remove drafts that a killed job left.

        Raises
        ------
        AtomSieveError
            if it holds other files, another job is writing there, or the disk refuses it.
        """
        self.make()
        if not self.is_ours() and self.list_foreign():
            raise AtomSieveError(f"{self.path} holds other files than {self.contents}; choose another {self.option}")
        with disk_errors(self.path):
            stack.enter_context(lock)
            self.sweep()

    def sweep(self) -> None:
        """Remove unfinished drafts that a killed job left. The caller holds the lock."""
        for output in self.list_files():
            if output.parent == self.path:
                for draft in self.path.glob(f".{output.name}.[0-9]*"):
                    draft.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the files and folders of a job, the record last, and nothing else; the lock stays."""
        for path in self.list_folders():
            shutil.rmtree(path, ignore_errors=True)
        for path in self.list_files():
            path.unlink(missing_ok=True)

    def claim(
        self,
        settings: Settings,
        *,
        overwrite: bool,
        read_record: Callable[[], Settings],
        list_differences: Callable[[Settings, Settings], list[str]],
    ) -> Settings | None:
        """Begin a job, or agree to continue the one that is here; the caller holds the lock.

        settings : of the new job, plain data. overwrite : discard the earlier results.
        read_record : reads the record.
        list_differences : texts of the settings that differ and matter, given the earlier and the new settings.

        Returns
        -------
        settings of the earlier job if it is continued, None if a new one begins; then the record has been written.

        Raises
        ------
        AtomSieveError
            if the earlier job has other settings: the message names every difference. If the disk refuses the record.
        """
        text = json.dumps(settings, indent=1) + "\n"
        with disk_errors(self.path):
            if overwrite:
                self.clear()
            if not self.record.is_file():
                write_output(self.record, text.encode())
                return None
        earlier = read_record()
        if changed := list_differences(earlier, json.loads(text)):
            raise AtomSieveError(
                f"{self.path} holds {self.contents} of other settings ({'; '.join(changed)}); repeat the earlier "
                f"settings, choose another {self.option}, or discard them with --overwrite"
            )
        return earlier


@dataclass(frozen=True)
class RecordedFolder(OutputFolder):
    """A folder whose record is JSON with the format and the settings of a job, compared when it is continued.

    Class attributes: `version` is the format of the record; `compared` are its sections that must agree, of which
    `selection` is named only if nothing else differs.
    """

    version: ClassVar[int]
    compared: ClassVar[tuple[str, ...]]

    def begin_or_continue(self, wanted: dict[str, Any], left: Sequence[Path], *, overwrite: bool) -> None:
        """Begin a job, or continue the one in the folder; the caller holds the lock.

        left : files and folders of an earlier job that are there.

        Raises
        ------
        AtomSieveError
            if an earlier job had other settings: the message names every difference. If there are results without
            settings.
        """
        if left and not overwrite and not self.record.is_file():
            raise AtomSieveError(
                f"{self.path} holds {', '.join(path.name for path in left)} without {self.record_name}, which says "
                "what was asked; choose another --out, or discard them with --overwrite"
            )
        self.claim(wanted, overwrite=overwrite, read_record=self.read, list_differences=self.list_differences)

    def read(self) -> dict[str, Any]:
        """Read the record."""
        try:
            found = json.loads(self.record.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.record} cannot be read ({error}); start afresh with --overwrite") from error
        if not isinstance(found, dict) or found.get("format") != self.version:
            raise DataError(f"{self.record} is of another version; start afresh with --overwrite")
        return found

    def list_differences(self, old: Settings, new: Settings) -> list[str]:
        """Return the differences of two records as `key: old -> new`."""
        changes = find_changes({n: old.get(n) for n in self.compared}, {n: new.get(n) for n in self.compared})
        first = {key: values for key, values in changes.items() if not key.startswith("selection")}
        return format_changes(first or changes, longest=LONG, kept=LONG - 3)


def write_output(path: Path, data: bytes) -> None:
    """Write a small file of an output folder: atomically, durably, and with the remedy if the disk refuses it."""
    with disk_errors(path.parent):
        atomic_write(path, data)


# -- settings ------------------------------------------------------------------------------------------------------


def flatten(value: Any, prefix: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys; with `lists`, items of lists too, by their number."""
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif lists and isinstance(value, list):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, below in pairs:
        out.update(flatten(below, f"{prefix}.{key}" if prefix else str(key), lists=lists))
    return out


def find_changes(old: Settings, new: Settings, *, lists: bool = False) -> Changes:
    """Return the settings that differ, in their order, those of `old` first; an absent setting is None."""
    before, after = flatten(old, lists=lists), flatten(new, lists=lists)
    pairs = {key: (before.get(key), after.get(key)) for key in (*before, *after)}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


def format_changes(changes: Changes, *, longest: int, kept: int) -> list[str]:
    """Return each change as `key: old -> new`; values of more than `longest` characters keep their first `kept`."""

    def shorten(value: Any) -> str:
        text = "(none)" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return text if len(text) <= longest else f"{text[:kept]}..."

    return [f"{key}: {shorten(old)} -> {shorten(new)}" for key, (old, new) in changes.items()]
