"""Writes a dataset folder: parts of many steps, durable and complete before anyone can take it for a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.dataset.draft import DatasetDraft
from atomsieve.structures.dataset.manifest import PartRow
from atomsieve.structures.dataset.part_writer import PartWriter, add_source
from atomsieve.structures.source import SourceInfo

if TYPE_CHECKING:
    import pyarrow as pa


class Comm(Protocol):
    """The exchanges that several writing ranks need; an mpi4py communicator has them."""

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """Return the root's object on every rank."""

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """Return the objects of all ranks on the root."""


class StructureWriter:
    """Context manager that writes batches to the dataset folder `path`.

    The folder appears under its name only when everything is durable; until then it is `<path>.partial`. Leaving the
    context by an exception removes the unfinished folder.

    Parameters
    ----------
    path : folder to make, by habit ending in `.bp`.
    sources : sources of the structures; field `head` is an index into it, which batches may leave out if there is one.
    step_size : structures per step, the unit of reading; `step_atoms` limits a step of large structures.
    overwrite : replace a dataset that is already there; anything else is never deleted.
    positions : "float64", or "float32" to halve the size of large candidate files.
    notes : free text by name, kept in the manifest.
    rank, n_ranks, comm : several ranks write one dataset, each its own parts; structures are ordered by rank.

    Raises
    ------
    AtomSieveError
        if the path exists, is in use by another run, or cannot be written (a full disk).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        sources: Sequence[SourceInfo] = (),
        step_size: int = 20_000,
        step_atoms: int = 1_000_000,
        overwrite: bool = False,
        positions: str = "float64",
        notes: dict[str, str] | None = None,
        rank: int = 0,
        n_ranks: int = 1,
        comm: Comm | None = None,
    ) -> None:
        if n_ranks > 1 and comm is None:
            raise UsageError(f"{n_ranks} ranks need a communicator to agree on one manifest")
        self._draft = DatasetDraft(path, overwrite=overwrite)
        self._parts = PartWriter(
            self._draft.folder,
            self._draft.path,
            sources=sources,
            step_size=step_size,
            step_atoms=step_atoms,
            positions=positions,
            writer=rank,
        )
        self._notes = dict(notes or {})
        self._rank, self._comm = rank, comm if n_ranks > 1 else None
        self._open = False

    @property
    def path(self) -> Path:
        """The dataset to make."""
        return self._draft.path

    @property
    def sources(self) -> list[SourceInfo]:
        """The sources so far."""
        return self._parts.sources

    @property
    def n_structures(self) -> int:
        """Number of structures so far."""
        return self._parts.n_structures

    @property
    def n_atoms(self) -> int:
        """Number of atoms so far."""
        return self._parts.n_atoms

    def __enter__(self) -> StructureWriter:
        error: AtomSieveError | None = None
        if self._rank == 0:
            try:
                self._draft.begin()
            except AtomSieveError as caught:
                error = caught
        if self._comm is not None:
            error = self._comm.bcast(error)
        if error is not None:
            raise error
        self._open = True
        return self

    def add_source(self, source: SourceInfo) -> int:
        """Add a source unless it is known, and return its index (the value for `head`)."""
        return add_source(self._parts.sources, source)

    def append(self, batch: StructureBatch, carried: pa.Table | None = None) -> None:
        """Add structures at the end. The arrays may be reused by the caller only after `close`.

        carried : a row of carried columns for each structure (`atomsieve.structures.carried`), None for none.

        Raises
        ------
        DataError
            if the batch is malformed, or its `head` names no source.
        """
        if not self._open:
            raise UsageError(f"the writer of {self.path} is not open; use it in a with statement")
        self._parts.append(batch, carried)

    def close(self) -> None:
        """Finish the last part and the manifest, and give the folder its name."""
        if not self._open:
            return
        self._open = False
        rows: list[tuple[list[dict[str, Any]], list[SourceInfo]]] | None
        mine = ([part.model_dump() for part in self._parts.finish()], self.sources)
        rows = [mine] if self._comm is None else self._comm.gather(mine)
        error: AtomSieveError | None = None
        if rows is not None:
            try:
                self._publish(rows)
            except AtomSieveError as caught:
                error = caught
        if self._comm is not None:
            error = self._comm.bcast(error)
        if error is not None:
            raise error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self._abandon()

    def _publish(self, rows: list[tuple[list[dict[str, Any]], list[SourceInfo]]]) -> None:
        sources = rows[0][1]
        if any(other != sources for _, other in rows):
            raise UsageError("the ranks of one writer must have the same sources in the same order")
        self._draft.publish([PartRow.model_validate(row) for mine, _ in rows for row in mine], sources, self._notes)

    def _abandon(self) -> None:
        """Release the lock; remove the folder that an exception left unfinished."""
        self._open = False
        try:
            self._parts.abandon()
        finally:
            self._draft.discard()


def write_structures(
    path: str | Path, batch: StructureBatch, sources: Sequence[SourceInfo] = (), **options: Any
) -> None:
    """Write one batch as a dataset folder; `options` are those of `StructureWriter`."""
    with StructureWriter(path, sources=sources, **options) as writer:
        writer.append(batch)
