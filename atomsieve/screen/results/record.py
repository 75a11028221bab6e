"""A results folder, opened for reading: its rows, its forces, and the names behind the codes in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.screen.results import ledger, run_record
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.code_names import CodeNames
from atomsieve.screen.results.columns import ROW, describe
from atomsieve.screen.results.files import ResultsFolder, partial_path
from atomsieve.screen.results.ledger import Entry
from atomsieve.screen.results.npy_file import FORCE, HEADER, MEMBER, require_size
from atomsieve.stability.phases import ReferenceSet
from atomsieve.structures import StructureReader


@dataclass(frozen=True)
class Results:
    """A results folder, opened for reading by `open_results`.

    Attributes
    ----------
    folder : names of its files.
    manifest : content of run.json.
    labels : names of heads, precisions, statuses and reasons.
    chunks : division of the input.
    ledger : entries of each durable chunk.
    complete : False while rows are missing; only durable chunks are read then.
    path : of the rows.
    moved_input : where the screened structures lie now; None: where run.json says.
    reader : the screened structures, where a run has them open; None: they are opened where they lie.
    references : reference sets by head, of a run that is under way; None: those in the folder.
    """

    folder: ResultsFolder
    manifest: dict[str, Any]
    labels: CodeNames
    chunks: Chunks
    ledger: dict[int, list[Entry]]
    complete: bool
    path: Path
    moved_input: Path | None = None
    reader: StructureReader | None = None
    references: Mapping[str, ReferenceSet] | None = None

    @property
    def heads(self) -> int:
        """Rows per structure."""
        return len(self.labels.heads)

    def durable(self) -> list[int]:
        """Return the chunks that can be read."""
        return list(range(self.chunks.count)) if self.complete else sorted(self.ledger)

    def rows(self) -> NDArray[Any]:
        """Return all rows, mapped from the file; those of chunks that are not durable yet are undefined.

        Raises
        ------
        AtomSieveError
            if the run has written none yet; DataError if the file is gone or has another size than its rows need.
        """
        if not self.ledger and not self.path.exists():
            raise AtomSieveError(f"{self.folder.path} has no rows yet; start or continue its run first")
        self.require_rows()
        return np.memmap(self.path, ROW, "r", HEADER, (self.chunks.n * self.heads,))

    def require_rows(self) -> None:
        """Refuse a row store that is gone, or of another size than its rows need."""
        require_size(self.path, HEADER + self.chunks.n * self.heads * ROW.itemsize, "run.json says")

    @property
    def forces_path(self) -> Path | None:
        """Path of the forces, complete or not; None if the run keeps none."""
        if not self.manifest["options"]["forces"]:
            return None
        return self.folder.forces if self.complete else partial_path(self.folder.forces)

    def forces(self, atoms: int) -> NDArray[Any] | None:
        """Return the forces `[atoms, H, 3] eV/Angstrom`, mapped from the file; None if the run kept none.

        `atoms` are those of all screened structures.

        Raises
        ------
        DataError
            if the file is gone, or has another size than these atoms need.
        """
        path, shape = self.forces_path, (atoms, self.heads, 3)
        if path is None:
            return None
        require_size(path, HEADER + math.prod(shape) * FORCE.itemsize, "the structures that were screened need")
        if not atoms:
            return np.zeros(shape, FORCE)  # an empty file cannot be mapped
        return np.memmap(path, FORCE, "r", HEADER, shape)

    @property
    def members_path(self) -> Path | None:
        """Path of the energies of the members, complete or not; None if the run keeps none."""
        if not self.members_count:
            return None
        return self.folder.members if self.complete else partial_path(self.folder.members)

    @property
    def members_count(self) -> int:
        """Number K of members whose energies the run keeps, 0 if it keeps none."""
        return int(self.manifest["options"].get("members", 0))

    def members(self) -> NDArray[Any] | None:
        """Return the energies `[rows, K] eV/atom` of the members minus that of the row, mapped; None if none are kept.

        Raises
        ------
        DataError
            if the file is gone, or has another size than the rows need.
        """
        path, shape = self.members_path, (self.chunks.n * self.heads, self.members_count)
        if path is None:
            return None
        require_size(path, HEADER + math.prod(shape) * MEMBER.itemsize, "run.json says")
        return np.memmap(path, MEMBER, "r", HEADER, shape)

    def iter_rows(self) -> Iterator[NDArray[Any]]:
        """Yield the rows of each durable chunk, in input order."""
        rows = self.rows()
        for chunk in self.durable():
            first, stop = self.chunks.span(chunk)
            yield rows[first * self.heads : stop * self.heads]


def make_results(
    folder: ResultsFolder,
    record: Mapping[str, Any],
    chunks: Chunks,
    reader: StructureReader,
    references: Mapping[str, ReferenceSet],
) -> Results:
    """Return the results of a run that is about to begin, without any row; `record` is the content of run.json."""
    rows, names = partial_path(folder.rows), CodeNames.of(record)
    return Results(
        folder, dict(record), names, chunks, {}, complete=False, path=rows, reader=reader, references=references
    )


def open_results(path: str | Path, moved_input: str | Path | None = None) -> Results:
    """Open the results folder of a screening, complete or not.

    moved_input : where the screened structures lie now, if they were moved; they are compared when they are opened.

    Raises
    ------
    AtomSieveError
        if the folder holds no results; DataError if they are damaged.
    """
    folder = ResultsFolder(Path(path))
    manifest, labels, chunks = _read_record(folder)
    entries, part = ledger.read(folder.ledger), partial_path(folder.rows)
    complete = folder.rows.exists()
    gone = len(entries) == chunks.count and not part.exists()  # of a complete run
    moved = None if moved_input is None else Path(moved_input)
    rows = folder.rows if complete or gone else part
    return Results(folder, manifest, labels, chunks, entries, complete, rows, moved)


def require_complete(results: Results) -> None:
    """Refuse results of a run that is not finished."""
    if not results.complete:
        raise AtomSieveError(f"{results.folder.path} is not complete; run the screening again first")


def _read_record(folder: ResultsFolder) -> tuple[dict[str, Any], CodeNames, Chunks]:
    """Return run.json, the names and the chunks that it states; errors name `screen run`, which starts afresh.

    Raises
    ------
    AtomSieveError
        if the folder holds no results; DataError if run.json is damaged, or of another version.
    """
    remedy = "start afresh with `screen run ... --overwrite`"
    try:
        found = run_record.read(folder)
        if run_record.record(found) != run_record.record({"columns": describe()}):
            raise DataError(f"{folder.run}: columns of another version of atomsieve; {remedy}")
        return found, CodeNames.of(found), Chunks.of(found)
    except DataError as error:
        if error.__cause__ is not None:
            raise DataError(f"{folder.run} is damaged: no valid JSON ({error.__cause__}); {remedy}") from error
        plain = json.loads(folder.run.read_text())
        known = plain.get("format") if isinstance(plain, dict) else None
        if known == run_record.FORMAT:
            raise
        if known is None:
            raise DataError(f"{folder.run} is damaged: it does not say its format; {remedy}") from error
        version = f"another version of atomsieve (format {known}, this one reads {run_record.FORMAT})"
        raise DataError(f"{folder.run} is of {version}; {remedy}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder.run} is damaged: it lacks what a run writes ({error}); {remedy}") from error
