"""Writes structures of a dataset back into common formats, all or those that a filter keeps."""

from __future__ import annotations

import gzip
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, require, unknown
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.expression import Where, compile_where
from atomsieve.structures.interface import StructureReader
from atomsieve.structures.reader import FileReader
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.writer import StructureWriter

if TYPE_CHECKING:
    from ase import Atoms

BATCH = 2000
COLUMNS: dict[str, str] = {
    "index": "place in the dataset, from 0",
    "id": "identity",
    "natoms": "number of atoms",
    "n_elements": "number of different elements",
    "source": "name of the source, empty if none",
    "level_of_theory": "of the source",
    "charge": "total charge, nan if none",
    "spin": "multiplicity, nan if none",
    "periodic": "number of periodic axes",
    "volume": "of the cell, Angstrom^3, 0 without one",
    "energy": "total energy, eV, nan if none",
    "energy_per_atom": "eV, nan if none",
    "max_force": "largest force on an atom, eV/Angstrom, nan if none",
}
"""What `--where` may ask about."""


def columns_of(batch: StructureBatch, start: int, sources: Sequence[SourceInfo]) -> dict[str, NDArray[Any]]:
    """Return the filter columns [S] of structures that begin at place `start` of the dataset."""
    count, nan = len(batch), np.full(len(batch), np.nan)
    names = np.array([*(s.name for s in sources), ""])
    levels = np.array([*(s.level_of_theory for s in sources), ""])
    head = np.full(count, -1) if batch.head is None else batch.head
    energy = nan
    if batch.energy is not None and batch.has_energy is not None:
        energy = np.where(batch.has_energy, batch.energy, np.nan)
    pairs = np.unique(batch.structure_of_atom * 256 + batch.numbers)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_atom = energy / batch.counts
    return {
        "index": np.arange(start, start + count),
        "id": batch.id,
        "natoms": batch.counts,
        "n_elements": np.bincount(pairs // 256, minlength=count),
        "source": names[head],
        "level_of_theory": levels[head],
        "charge": nan if batch.charge is None else batch.charge,
        "spin": nan if batch.spin is None else batch.spin,
        "periodic": np.count_nonzero(batch.pbc, axis=1),
        "volume": np.abs(np.linalg.det(batch.cell)),
        "energy": energy,
        "energy_per_atom": per_atom,
        "max_force": _max_force(batch),
    }


def _max_force(batch: StructureBatch) -> NDArray[np.float64]:
    out = np.full(len(batch), np.nan)
    if batch.forces is not None and batch.has_forces is not None and batch.n_atoms:
        norms = np.sqrt((batch.forces**2).sum(axis=1))
        largest = np.zeros(len(batch))
        with np.errstate(invalid="ignore"):  # absent forces are NaN
            np.maximum.at(largest, batch.structure_of_atom, norms)
        out = np.where(batch.has_forces & (batch.counts > 0), largest, np.nan)
    return out


@dataclass(frozen=True)
class Selection:
    """Which structures: places `start:stop` (None: to the end), with ids in `ids`, for which `where` holds."""

    start: int = 0
    stop: int | None = None
    ids: tuple[int, ...] | None = None
    where: Where | None = None

    @staticmethod
    def parse(span: str | None, ids: str | None, where: str | None) -> Selection:
        """Return the selection of the options `--range a:b`, `--ids 1,2,3` or `--ids @file`, `--where EXPRESSION`.

        Raises
        ------
        UsageError
            if one of them cannot be read.
        """
        start, stop = 0, None
        if span is not None:
            first, colon, last = span.partition(":")
            try:
                start, stop = int(first or 0), int(last) if last else None
            except ValueError:
                colon = ""
            if not colon or start < 0 or (stop is not None and stop < start):
                raise UsageError(f"a range reads like 100:200, :200 or 100:, got {span!r}")
        chosen = None
        if ids is not None:
            try:
                text = Path(ids[1:]).read_text() if ids.startswith("@") else ids
                chosen = tuple(int(word) for word in text.replace(",", " ").split())
            except OSError as error:
                raise UsageError(f"cannot read the ids of {ids!r}: {error.strerror}") from error
            except ValueError as error:
                raise UsageError(f"ids are integers, as in --ids 1,5,9 or --ids @file: {error}") from error
        return Selection(start, stop, chosen, compile_where(where, COLUMNS) if where is not None else None)

    def apply(self, reader: StructureReader) -> Iterator[tuple[StructureBatch, NDArray[np.int64]]]:
        """Yield the chosen structures, some thousands at a time, with their places in the dataset."""
        stop = len(reader) if self.stop is None else self.stop
        if self.start > len(reader) or stop > len(reader):
            raise UsageError(f"the range {self.start}:{stop} is beyond the {len(reader)} structures of {reader.path}")
        for first in range(self.start, stop, BATCH):
            batch = reader.read(first, min(first + BATCH, stop))
            keep = np.ones(len(batch), bool)
            if self.ids is not None:
                keep &= np.isin(batch.id, np.array(self.ids, np.int64))
            if self.where is not None:
                keep &= self.where(columns_of(batch, first, reader.sources))
            chosen = np.flatnonzero(keep)
            yield batch.take(chosen), first + chosen


# -- sinks -----------------------------------------------------------------------------------------------------------


class Sink(ABC):
    """Writes batches to `path` (a temporary name); `skipped` counts what the format cannot hold."""

    def __init__(self, path: Path, sources: Sequence[SourceInfo]) -> None:
        self.path, self.sources = path, sources
        self.skipped = 0

    @abstractmethod
    def write(self, batch: StructureBatch) -> None:
        """Add structures."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    def atoms(self, batch: StructureBatch) -> list[Atoms]:
        """Return ASE atoms with their source in `info`."""
        images = batch.to_ase()
        if batch.head is not None:
            for image, head in zip(images, batch.head.tolist(), strict=True):
                if head >= 0:
                    image.info["source"] = self.sources[head].name
                    image.info["level_of_theory"] = self.sources[head].level_of_theory
        return images


class _TextSink(Sink):
    def __init__(self, path: Path, sources: Sequence[SourceInfo], packed: bool) -> None:
        super().__init__(path, sources)
        raw = gzip.GzipFile(path, "wb", mtime=0) if packed else path.open("wb")
        self.file: IO[Any] = io.TextIOWrapper(raw, encoding="utf-8")  # type: ignore[type-var]

    def close(self) -> None:
        self.file.close()


class ExtxyzSink(_TextSink):
    """Extended XYZ with energy, forces, stress, charge, spin, id and source; coordinates to 1e-8 Angstrom."""

    def write(self, batch: StructureBatch) -> None:
        """Add structures."""
        from ase.io.extxyz import write_extxyz

        write_extxyz(self.file, self.atoms(batch))


class CifSink(_TextSink):
    """CIF, one data block per structure; structures without a cell are skipped, as CIF cannot hold them."""

    def write(self, batch: StructureBatch) -> None:
        """Add structures."""
        from ase.io.cif import write_cif

        whole = np.abs(np.linalg.det(batch.cell)) > 0
        self.skipped += int((~whole).sum())
        for image in batch.take(np.flatnonzero(whole)).to_ase():
            text = io.BytesIO()
            write_cif(text, [image])
            block = text.getvalue().decode().replace("data_image0", f"data_{image.info['id']}", 1)
            self.file.write(block)


class DbSink(Sink):
    """An ASE database (SQLite); id, charge, spin and source are in the `data` of each row."""

    def write(self, batch: StructureBatch) -> None:
        """Add structures."""
        from ase.db import connect

        with connect(str(self.path), type="db", append=True) as database:
            for image in self.atoms(batch):
                database.write(image, data=dict(image.info))

    def close(self) -> None:
        """Make a database of no rows where nothing was written."""
        if not self.path.exists():
            from ase.db import connect

            connect(str(self.path), type="db").count()


class ParquetSink(Sink):
    """Parquet in our layout: `numbers`, `positions`, `cell`, `pbc`, `id`, and the labels; exact."""

    def __init__(self, path: Path, sources: Sequence[SourceInfo]) -> None:
        super().__init__(path, sources)
        self.arrow = require("pyarrow", "data", "writing Parquet files")
        self.parquet = require("pyarrow.parquet", "data", "writing Parquet files")
        self.writer: Any = None

    def write(self, batch: StructureBatch) -> None:
        """Add structures."""
        pa = self.arrow
        vector, matrix = pa.list_(pa.float64(), 3), pa.list_(pa.list_(pa.float64(), 3), 3)
        count = len(batch)

        def ragged(array: NDArray[Any]) -> Any:
            flat = pa.array(array) if array.ndim == 1 else _fixed(pa, array.astype(np.float64), vector)
            return pa.ListArray.from_arrays(pa.array(batch.ptr.astype(np.int32)), flat)

        def one(values: Any, kind: Any, has: Any) -> Any:
            missing = np.ones(count, bool) if values is None else ~has
            filled = np.zeros(count) if values is None else values
            return pa.array(filled, kind, mask=missing)

        table = {
            "id": pa.array(batch.id),
            "numbers": ragged(batch.numbers.astype(np.int16)),
            "positions": ragged(batch.positions),
            "cell": _fixed(pa, batch.cell, matrix),
            "pbc": pa.array(batch.pbc.tolist(), pa.list_(pa.bool_(), 3)),
            "charge": one(batch.charge, pa.float32(), _finite(batch.charge)),
            "spin": one(batch.spin, pa.float32(), _finite(batch.spin)),
            "energy": one(batch.energy, pa.float64(), batch.has_energy),
            "forces": _masked(
                pa, None if batch.forces is None else ragged(batch.forces), batch.has_forces, pa.list_(vector), count
            ),
            "stress": _masked(
                pa, None if batch.stress is None else _fixed(pa, batch.stress, matrix), batch.has_stress, matrix, count
            ),
            **self._source_columns(batch),
        }
        made = pa.table(table)
        if self.writer is None:
            self.writer = self.parquet.ParquetWriter(self.path, made.schema, compression="zstd")
        self.writer.write_table(made)

    def _source_columns(self, batch: StructureBatch) -> dict[str, Any]:
        head = np.full(len(batch), -1) if batch.head is None else batch.head
        rows = [self.sources[h] if h >= 0 else None for h in head.tolist()]
        text = self.arrow.string()
        return {
            "source": self.arrow.array([s and s.name for s in rows], text),
            "level_of_theory": self.arrow.array([s and s.level_of_theory for s in rows], text),
        }

    def close(self) -> None:
        """Finish the file; with no rows it still has its columns."""
        if self.writer is None:
            self.write(StructureBatch.empty())
        self.writer.close()


def _finite(values: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    return None if values is None else np.isfinite(values)


def _fixed(pa: Any, array: NDArray[np.float64], kind: Any) -> Any:
    """Return [n,3] or [n,3,3] as fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat.cast(kind)


def _masked(pa: Any, values: Any, has: NDArray[np.bool_] | None, kind: Any, count: int) -> Any:
    """Return values where `has`, null elsewhere."""
    if values is None or has is None:
        return pa.nulls(count, kind)
    return pa.compute.if_else(pa.array(has), values.cast(kind), pa.nulls(count, kind))


SINKS: dict[str, Callable[[Path, Sequence[SourceInfo]], Sink]] = {
    ".extxyz": lambda path, sources: ExtxyzSink(path, sources, packed=False),
    ".xyz": lambda path, sources: ExtxyzSink(path, sources, packed=False),
    ".extxyz.gz": lambda path, sources: ExtxyzSink(path, sources, packed=True),
    ".xyz.gz": lambda path, sources: ExtxyzSink(path, sources, packed=True),
    ".db": DbSink,
    ".parquet": ParquetSink,
    ".cif": lambda path, sources: CifSink(path, sources, packed=False),
}


def export(
    reader: FileReader,
    out: Path,
    selection: Selection,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, int]:
    """Write the selected structures to a file whose format its name tells; return how many, and how many were skipped.

    The file appears under its name when it is complete. `.bp` writes a dataset folder with the same sources.

    Raises
    ------
    UsageError
        if the format is unknown, the file exists, or the selection does not fit.
    """
    if out.suffix == ".bp":
        with StructureWriter(out, sources=reader.sources, overwrite=overwrite, notes=reader.notes) as writer:
            for batch, places in selection.apply(reader):
                if batch.head is None and len(reader.sources) > 1:
                    batch = batch.replace(head=np.full(len(batch), -1, np.int32))
                writer.append(batch)
                if progress is not None:
                    progress(len(places))
            return writer.n_structures, 0
    kind = next((suffix for suffix in SINKS if out.name.endswith(suffix)), None)
    if kind is None:
        raise unknown("format of the output", out.suffix or out.name, [*SINKS, ".bp"])
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; choose another name, or --overwrite to replace it")
    draft = out.with_name(f".{os.getpid()}.{out.name}")
    written = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sink = SINKS[kind](draft, reader.sources)
        try:
            for batch, places in selection.apply(reader):
                if len(batch):
                    sink.write(batch)
                written += len(batch)
                if progress is not None:
                    progress(len(places))
        finally:
            sink.close()
        draft.replace(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return written - sink.skipped, sink.skipped
