"""Writes a dataset folder: parts of many steps, durable and complete before anyone can take it for a dataset."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.runs.hashing import compute_file_crc, hash_file
from atomsieve.runs.lock import PathLock
from atomsieve.runs.output_files import sync_file, sync_folder
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.bp5 import DATA_FILES, Bp5Writer
from atomsieve.structures.fields import FIELDS
from atomsieve.structures.manifest import DatasetManifest, FileRow, PartRow, StepRow, is_dataset_folder
from atomsieve.structures.source import SourceInfo

STEPS_PER_PART = 1000
"""A directory of more steps takes noticeably long to open."""
_OUR_NAMES = re.compile(r"part-\d{5,}\.r\d{3,}\.bp(\.tmp)?|manifest\.json(\.tmp)?|\.manifest\.json\.\d+\.json")


class Comm(Protocol):
    """The exchanges that several writing ranks need; an mpi4py communicator has them."""

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """Return the root's object on every rank."""

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """Return the objects of all ranks on the root."""


def to_disk(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as it lies in files: contiguous, the disk dtype, 1-D or [rows,k]."""
    field = FIELDS[name]
    dtype = array.dtype if name == "positions" else field.disk
    columns = int(np.prod(field.trailing))
    shape = (len(array), columns) if field.trailing else (len(array),)
    return np.ascontiguousarray(array.reshape(shape), dtype)


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
        if positions not in ("float64", "float32"):
            raise UsageError(f"positions must be float64 or float32, got {positions!r}")
        if step_size < 1 or step_atoms < 1:
            raise UsageError(f"step size must be at least 1, got {step_size} structures, {step_atoms} atoms")
        if n_ranks > 1 and comm is None:
            raise UsageError(f"{n_ranks} ranks need a communicator to agree on one manifest")
        self.path = require_name(path)
        self.sources: list[SourceInfo] = list(sources)
        self.n_structures = 0
        self.n_atoms = 0
        self._step_size, self._step_atoms, self._overwrite = step_size, step_atoms, overwrite
        self._positions, self._notes = np.dtype(positions), dict(notes or {})
        self._rank, self._comm = rank, comm if n_ranks > 1 else None
        self._folder = self.path.with_name(f"{self.path.name}.partial")
        self._lock: PathLock | None = None
        self._open = False
        self._pending: list[StructureBatch] = []
        self._pending_structures = self._pending_atoms = 0
        self._fields: tuple[str, ...] = ()
        self._part: Bp5Writer | None = None
        self._steps: list[StepRow] = []
        self._parts: list[PartRow] = []

    # -- the caller's side ---------------------------------------------------------------------------------------

    def __enter__(self) -> StructureWriter:
        error: AtomSieveError | None = None
        if self._rank == 0:
            try:
                self._begin()
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
        if source not in self.sources:
            if any(known.name == source.name for known in self.sources):
                raise DataError(f"source {source.name!r} comes with two levels of theory; give it two names")
            self.sources.append(source)
        return self.sources.index(source)

    def append(self, batch: StructureBatch) -> None:
        """Add structures at the end. The arrays may be reused by the caller only after `close`.

        Raises
        ------
        DataError
            if the batch is malformed, or its `head` names no source.
        """
        if not self._open:
            raise UsageError(f"the writer of {self.path} is not open; use it in a with statement")
        if len(batch) == 0:
            return
        batch = self._with_head(batch.validate())
        self.n_structures += batch.n_structures
        self.n_atoms += batch.n_atoms
        self._pending.append(batch)
        self._pending_structures += batch.n_structures
        self._pending_atoms += batch.n_atoms
        if self._pending_structures >= self._step_size or self._pending_atoms >= self._step_atoms:
            self._cut_steps(final=False)

    def close(self) -> None:
        """Finish the last part and the manifest, and give the folder its name."""
        if not self._open:
            return
        self._open = False
        self._cut_steps(final=True)
        self._end_part()
        rows: list[tuple[list[dict[str, Any]], list[SourceInfo]]] | None
        mine = ([part.model_dump() for part in self._parts], self.sources)
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

    # -- steps and parts -----------------------------------------------------------------------------------------

    def _with_head(self, batch: StructureBatch) -> StructureBatch:
        if batch.head is None:
            if len(self.sources) > 1:
                raise DataError(f"batches need the field head: the file has {len(self.sources)} sources")
            if self.sources:
                return batch.replace(head=np.zeros(len(batch), np.int32))
            return batch
        low, high = int(batch.head.min()), int(batch.head.max())
        if high >= len(self.sources) or low < -1:
            raise DataError(f"head runs from {low} to {high}, but the file has {len(self.sources)} sources")
        return batch

    def _cut_steps(self, *, final: bool) -> None:
        """Write full steps. Where a step ends depends on the structures only, not on the batches they came in."""
        if not self._pending:
            return
        batch = StructureBatch.concatenate(self._pending)
        start = 0
        while start < len(batch):
            limit = int(batch.ptr[start]) + self._step_atoms
            stop = int(np.searchsorted(batch.ptr, limit, side="right")) - 1
            stop = max(min(stop, start + self._step_size), start + 1)
            if stop >= len(batch) and not final and stop - start < self._step_size:
                break
            stop = min(stop, len(batch))
            self._write_step(batch.slice(start, stop))
            start = stop
        rest = batch.slice(start, len(batch))
        self._pending = [rest] if len(rest) else []
        self._pending_structures, self._pending_atoms = rest.n_structures, rest.n_atoms

    def _write_step(self, batch: StructureBatch) -> None:
        present = batch.present()
        wanted = tuple(name for name in FIELDS if name in present or name in self._fields)
        if wanted != self._fields or (self._part is not None and self._part.steps >= STEPS_PER_PART):
            self._end_part()
            self._fields = wanted
        counts = batch.counts.astype(np.int32)
        arrays: dict[str, NDArray[Any]] = {"natoms": counts}
        for name in self._fields[1:]:
            field = FIELDS[name]
            array = present.get(name)
            if array is None:
                array = np.full(field.shape(batch.n_structures, batch.n_atoms), field.missing, field.dtype)
            arrays[name] = to_disk(name, array.astype(self._positions, copy=False) if name == "positions" else array)
        self._check_space(sum(a.nbytes for a in arrays.values()))
        if self._part is None:
            name = f"part-{len(self._parts):05d}.r{self._rank:03d}.bp.tmp"
            self._part = Bp5Writer(self._folder / name)
        start = self._steps[-1].end if self._steps else 0
        sources = json.dumps([[s.name, s.level_of_theory] for s in self.sources])
        end = self._part.write(arrays, {} if self._steps else {"atomsieve/sources": sources})
        self._steps.append(
            StepRow(
                structures=batch.n_structures,
                atoms=batch.n_atoms,
                end=end,
                crc32=compute_file_crc(self._part.path / "data.0", start, end),
                counts_crc32=zlib.crc32(counts.tobytes()),
            )
        )

    def _check_space(self, needed: int) -> None:
        """Raise before the disk is full: ADIOS2 ends the process when it cannot write."""
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        needed += needed // 50 + 262_144
        if free < needed:
            raise DataError(
                f"no space left for {self.path}: {needed / 1e6:.3f} MB needed for the next step, {free / 1e6:.3f} MB "
                "free; make room or write elsewhere"
            )

    def _end_part(self) -> None:
        """Close the part, make it durable, remove its temporary name, and record its files."""
        if self._part is None:
            return
        part, self._part = self._part, None
        part.close()
        final = part.path.with_suffix("")
        try:
            for name in DATA_FILES:
                sync_file(part.path / name)
            sync_folder(part.path)
            part.path.rename(final)
            sync_folder(self._folder)
            files = {
                name: FileRow(
                    size=(final / name).stat().st_size, sha256="" if name == "data.0" else hash_file(final / name)
                )
                for name in DATA_FILES
            }
        except OSError as error:
            raise DataError(f"cannot write {final}: {error.strerror or error}") from error
        self._parts.append(
            PartRow(
                path=final.name,
                fields=list(self._fields),
                positions=self._positions.name,
                structures=sum(s.structures for s in self._steps),
                atoms=sum(s.atoms for s in self._steps),
                files=files,
                steps=self._steps,
            )
        )
        self._steps = []

    # -- the folder ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make {self.path.parent}: {error.strerror}") from error
        self._lock = PathLock(self.path.with_name(f"{self.path.name}.lock"), self.path).__enter__()
        try:
            self._check_target()
            if self._folder.exists():
                foreign = [p.name for p in self._folder.iterdir() if not _OUR_NAMES.fullmatch(p.name)]
                if foreign:
                    raise DataError(f"{self._folder} is in the way and holds {foreign[0]!r}; move it away")
                shutil.rmtree(self._folder)
            self._folder.mkdir()
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                raise DataError(f"cannot make {self._folder}: {error.strerror}") from error
            raise

    def _check_target(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self._overwrite:
            raise UsageError(f"{self.path} exists; choose another name, or --overwrite to replace it")
        empty = self.path.is_dir() and not any(self.path.iterdir())
        if not (empty or is_dataset_folder(self.path)) or self.path.is_symlink():
            raise UsageError(f"{self.path} is not a dataset written by atomsieve; --overwrite does not delete it")

    def _publish(self, rows: list[tuple[list[dict[str, Any]], list[SourceInfo]]]) -> None:
        sources = rows[0][1]
        if any(other != sources for _, other in rows):
            raise UsageError("the ranks of one writer must have the same sources in the same order")
        parts = [PartRow.model_validate(row) for mine, _ in rows for row in mine]
        try:
            DatasetManifest.of(parts, sources, self._notes).save(self._folder)
            self._check_target()
            old = self.path.with_name(f"{self.path.name}.old-{os.getpid()}")
            if self.path.exists():
                self.path.rename(old)
            self._folder.rename(self.path)
            sync_folder(self.path.parent)
            if old.exists():
                shutil.rmtree(old)
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _abandon(self) -> None:
        """Release the lock; remove the folder that an exception left unfinished."""
        self._open = False
        self._pending = []
        part, self._part = self._part, None
        try:
            if part is not None:
                part.close()
        finally:
            if self._lock is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None


def write_structures(
    path: str | Path, batch: StructureBatch, sources: Sequence[SourceInfo] = (), **options: Any
) -> None:
    """Write one batch as a dataset folder; `options` are those of `StructureWriter`."""
    with StructureWriter(path, sources=sources, **options) as writer:
        writer.append(batch)
