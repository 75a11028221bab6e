"""The unfinished folder of a conversion: pieces that are done are recorded there, so that the same command goes on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.runs.output_files import atomic_write
from atomsieve.runs.output_folder import find_changes, format_changes
from atomsieve.structures.conversion.counts import decode_counts, encode
from atomsieve.structures.conversion.piece import PieceRecord
from atomsieve.structures.conversion.plan import Plan
from atomsieve.structures.dataset.draft import RECORDS, DatasetDraft
from atomsieve.structures.dataset.manifest import PartRow
from atomsieve.structures.dataset.part_writer import DiskError
from atomsieve.structures.source import SourceInfo

PLAN = "plan.json"


class UnfinishedError(AtomSieveError):
    """An error after which the pieces that are done stay, so that the same command goes on."""


class Records:
    """The unfinished folders of all sets of a conversion, and the records of its pieces in the first of them.

    Attributes
    ----------
    continued : pieces that an earlier run had done.
    void : the data or the call are wrong, as another rank has found: nothing is to be continued.
    """

    def __init__(self, plan: Plan, *, overwrite: bool) -> None:
        self.plan = plan
        self.overwrite = overwrite
        self.drafts = {name: DatasetDraft(path, overwrite=overwrite) for name, path in plan.outputs.items()}
        self.folder = next(iter(self.drafts.values())).folder / RECORDS
        self.continued = 0
        self.void = False

    def begin(self) -> list[int]:
        """Lock the outputs, make the folders or take those of an earlier run up; return the pieces to convert.

        Raises
        ------
        AtomSieveError
            if an output exists or is in use, or an unfinished conversion of other inputs or options is in the way.
        """
        kept = False
        try:
            for k, draft in enumerate(self.drafts.values()):
                kept = draft.begin(self._is_continued if k == 0 else _answer(kept))
        except BaseException:
            for draft in self.drafts.values():
                draft.release()
            raise
        self.folder.mkdir(exist_ok=True)
        atomic_write(self.folder / PLAN, json.dumps({"digest": self.plan.digest, **self.plan.settings}).encode())
        return self._find_todo()

    def _is_continued(self, folder: Path) -> bool:
        """Return True if the unfinished folder is of this conversion.

        Raises
        ------
        UsageError
            if it holds finished pieces of another one.
        """
        records = folder / RECORDS
        try:
            earlier = json.loads((records / PLAN).read_text())
        except (OSError, ValueError):
            return False
        if not self.plan.resumable or not any(records.glob("piece-*.json")):
            return False
        if earlier.pop("digest", None) == self.plan.digest:
            return True
        if self.overwrite:
            return False
        changed = format_changes(find_changes(earlier, self.plan.settings, lists=True), longest=60, kept=57)
        raise UsageError(
            f"{folder} holds an unfinished conversion of other inputs or options ({'; '.join(changed[:6])}); repeat "
            "that command to finish it, or start anew with --overwrite"
        )

    def _find_todo(self) -> list[int]:
        """Return the pieces without a record whose parts are there; remove what an earlier run left of them."""
        names: dict[str, set[str]] = {name: set() for name in self.drafts}
        todo = []
        for piece in self.plan.pieces:
            record = None
            with suppress(OSError, ValueError, KeyError):
                record = self.read(piece.number)
            if record is None or not self._is_whole(record):
                todo.append(piece.number)
                continue
            self.continued += 1
            for name, parts in record.parts.items():
                names[name].update(part.path for part in parts)
        for name, draft in self.drafts.items():
            for path in draft.folder.iterdir():
                if path.name.startswith("part-") and path.name not in names[name]:
                    shutil.rmtree(path)
        return todo

    def _is_whole(self, record: PieceRecord) -> bool:
        def size(path: Path) -> int:
            return path.stat().st_size if path.is_file() else -1

        return all(
            size(self.drafts[name].folder / part.path / file) == row.size
            for name, parts in record.parts.items()
            for part in parts
            for file, row in part.files.items()
        )

    def path(self, number: int) -> Path:
        """Return the file of the record of a piece."""
        return self.folder / f"piece-{number:05d}.json"

    def read(self, number: int) -> PieceRecord:
        """Read the record of a piece."""
        return decode_record(json.loads(self.path(number).read_text()))

    def remove(self, number: int) -> None:
        """Remove a piece that is to be converted again: its record first, then its parts."""
        self.path(number).unlink()
        for draft in self.drafts.values():
            for path in draft.folder.iterdir():
                if re.fullmatch(rf"part-\d+\.r{number:03d}\.bp(\.tmp)?", path.name):
                    shutil.rmtree(path)

    @property
    def any(self) -> bool:
        """True if any piece is recorded."""
        return any(self.folder.glob("piece-*.json"))

    def leave(self, error: BaseException) -> None:
        """End without a dataset: remove what there is, unless the same command may go on with the pieces done."""
        wrong = self.void or (isinstance(error, DataError | UsageError) and not isinstance(error, DiskError))
        keep = self.plan.resumable and not wrong and self.any
        for draft in self.drafts.values():
            if keep:
                draft.release()
            else:
                draft.discard()

    def release(self) -> None:
        """Release the locks."""
        for draft in self.drafts.values():
            draft.release()


def _answer(value: bool) -> Callable[[Path], bool]:
    return lambda _: value


def write_record(path: Path, record: PieceRecord) -> None:
    """Write the record of a piece, durably and whole; its parts are durable already."""
    try:
        atomic_write(path, json.dumps(encode_record(record)).encode())
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def encode_record(record: PieceRecord) -> dict[str, Any]:
    """Return a record as plain data."""
    return {
        "number": record.number,
        "parts": {name: [part.model_dump() for part in parts] for name, parts in record.parts.items()},
        "sources": [[s.name, s.level_of_theory, count] for s, count in record.sources.items()],
        "counts": encode(record.counts),
        "begins": record.begins,
        "ends": record.ends,
        "failed": record.failed,
    }


def decode_record(plain: dict[str, Any]) -> PieceRecord:
    """Return the record of plain data."""
    return PieceRecord(
        plain["number"],
        {name: [PartRow.model_validate(part) for part in parts] for name, parts in plain["parts"].items()},
        {SourceInfo(name, level): count for name, level, count in plain["sources"]},
        decode_counts(plain["counts"]),
        plain["begins"],
        plain["ends"],
        plain["failed"],
    )
