"""Writes parts of a dataset: BP5 directories of many steps, durable before anyone lists them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError
from atomsieve.runs.hashing import compute_file_crc, hash_file
from atomsieve.runs.output_files import sync_file, sync_folder
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.carried import FILE, CarriedQueue, CarriedWriter
from atomsieve.structures.dataset.bp5 import DATA_FILES, Bp5Writer
from atomsieve.structures.dataset.manifest import CarriedRow, FileRow, PartRow, StepRow
from atomsieve.structures.fields import FIELDS
from atomsieve.structures.source import SourceInfo

if TYPE_CHECKING:
    import pyarrow as pa

STEPS_PER_PART = 1000
"""A directory of more steps takes noticeably long to open."""


class DiskError(DataError):
    """The disk refuses what is written."""


def to_disk(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as it lies in files: contiguous, the disk dtype, 1-D or [rows,k]."""
    field = FIELDS[name]
    dtype = array.dtype if name == "positions" else field.disk
    columns = int(np.prod(field.trailing))
    shape = (len(array), columns) if field.trailing else (len(array),)
    return np.ascontiguousarray(array.reshape(shape), dtype)


def add_source(sources: list[SourceInfo], source: SourceInfo) -> int:
    """Add a source to a list unless it is there, and return its index (the value for `head`).

    Raises
    ------
    DataError
        if the list has a source of that name with another level of theory.
    """
    if source not in sources:
        if any(known.name == source.name for known in sources):
            raise DataError(f"source {source.name!r} comes with two levels of theory; give it two names")
        sources.append(source)
    return sources.index(source)


class PartWriter:
    """Writes batches to the folder of an unfinished dataset, as one part after another.

    Where a step and a part end depends on the structures alone, not on the batches in which they come.

    Parameters
    ----------
    folder : the existing folder that holds the parts; `shown` is the path of the dataset for messages.
    sources : sources of the structures, to which `add_source` adds.
    step_size : structures per step, the unit of reading; `step_atoms` limits a step of large structures.
    positions : "float64" or "float32".
    writer : number in the names of the parts; two writers of one dataset have different ones.

    Attributes
    ----------
    parts : rows of the parts that are finished.
    n_structures, n_atoms : appended so far.
    """

    def __init__(
        self,
        folder: Path,
        shown: Path,
        *,
        sources: Sequence[SourceInfo] = (),
        step_size: int = 20_000,
        step_atoms: int = 1_000_000,
        positions: str = "float64",
        writer: int = 0,
    ) -> None:
        if positions not in ("float64", "float32"):
            raise UsageError(f"positions must be float64 or float32, got {positions!r}")
        if step_size < 1 or step_atoms < 1:
            raise UsageError(f"step size must be at least 1, got {step_size} structures, {step_atoms} atoms")
        self.sources: list[SourceInfo] = list(sources)
        self.parts: list[PartRow] = []
        self.n_structures = 0
        self.n_atoms = 0
        self._folder, self._shown, self._writer = folder, shown, writer
        self._step_size, self._step_atoms, self._positions = step_size, step_atoms, np.dtype(positions)
        self._pending: list[StructureBatch] = []
        self._pending_structures = self._pending_atoms = 0
        self._fields: tuple[str, ...] = ()
        self._part: Bp5Writer | None = None
        self._steps: list[StepRow] = []
        self._carried = CarriedQueue()
        self._carried_file: CarriedWriter | None = None

    def append(self, batch: StructureBatch, carried: pa.Table | None = None) -> None:
        """Add structures at the end. The arrays may be reused by the caller only after `finish`.

        carried : a row of carried columns for each structure; None if they carry nothing.

        Raises
        ------
        DataError
            if the batch is malformed, or its `head` names no source.
        """
        if len(batch) == 0:
            return
        batch = self._with_head(batch.validate())
        self._carried.put(len(batch), carried)
        self.n_structures += batch.n_structures
        self.n_atoms += batch.n_atoms
        self._pending.append(batch)
        self._pending_structures += batch.n_structures
        self._pending_atoms += batch.n_atoms
        if self._pending_structures >= self._step_size or self._pending_atoms >= self._step_atoms:
            self._cut_steps(final=False)

    def finish(self) -> list[PartRow]:
        """Write what is pending, finish the last part, and return the rows of all parts."""
        self._cut_steps(final=True)
        self._end_part()
        return self.parts

    def abandon(self) -> None:
        """Close the part at hand without finishing it."""
        self._pending = []
        part, self._part = self._part, None
        carried, self._carried_file = self._carried_file, None
        if carried is not None:
            carried.close()
        if part is not None:
            part.close()

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
        """Write full steps; with `final`, what remains too."""
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
        known, carried = list(self._carried.columns), self._carried.take(len(batch))
        full = self._part is not None and self._part.steps >= STEPS_PER_PART
        if wanted != self._fields or full or known != self._carried.columns:
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
        self._check_space(sum(a.nbytes for a in arrays.values()) + (0 if carried is None else carried.nbytes))
        if self._part is None:
            name = f"part-{len(self.parts):05d}.r{self._writer:03d}.bp.tmp"
            self._part = Bp5Writer(self._folder / name)
        if carried is not None:
            self._write_carried(carried)
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

    def _write_carried(self, table: pa.Table) -> None:
        """Append carried rows to the file of this part, which the first of them open."""
        assert self._part is not None
        try:
            if self._carried_file is None:
                self._carried_file = CarriedWriter(self._part.path / FILE, self._carried.columns)
            self._carried_file.write(table)
        except OSError as error:
            raise DiskError(f"cannot write {self._part.path / FILE}: {error.strerror or error}") from error

    def _check_space(self, needed: int) -> None:
        """Raise before the disk is full: ADIOS2 ends the process when it cannot write."""
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        needed += needed // 50 + 262_144
        if free < needed:
            raise DiskError(
                f"no space left for {self._shown}: {needed / 1e6:.3f} MB needed for the next step, {free / 1e6:.3f} MB "
                "free; make room or write elsewhere"
            )

    def _end_part(self) -> None:
        """Close the part, make it durable, remove its temporary name, and record its files."""
        if self._part is None:
            return
        part, self._part = self._part, None
        carried, self._carried_file = self._carried_file, None
        part.close()
        final = part.path.with_suffix("")
        names = DATA_FILES if carried is None else (*DATA_FILES, FILE)
        try:
            if carried is not None:
                carried.close()
            (part.path / "profiling.json").unlink(missing_ok=True)  # times; no two runs would give the same bytes
            for name in names:
                sync_file(part.path / name)
            sync_folder(part.path)
            part.path.rename(final)
            sync_folder(self._folder)
            files = {
                name: FileRow(
                    size=(final / name).stat().st_size, sha256="" if name == "data.0" else hash_file(final / name)
                )
                for name in names
            }
        except OSError as error:
            raise DiskError(f"cannot write {final}: {error.strerror or error}") from error
        self.parts.append(
            PartRow(
                path=final.name,
                fields=list(self._fields),
                positions=self._positions.name,
                structures=sum(s.structures for s in self._steps),
                atoms=sum(s.atoms for s in self._steps),
                files=files,
                steps=self._steps,
                carried=[] if carried is None else [CarriedRow(name=c.name, kind=c.kind) for c in carried.columns],
            )
        )
        self._steps = []
