"""Parquet in our layout: one row per structure, lists per atom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, require
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import LABELS
from atomsieve.structures.formats.base import FileSink, Format
from atomsieve.structures.item import BadItem, Item, ReadRequest

ROWS = 2000
COLUMNS = ("numbers", "positions")


def read_parquet(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the rows of a Parquet file with a column `numbers` (list of int) and `positions` (list of lists of 3).

    Other columns are optional: `cell` (3 lists of 3), `pbc` (3 bool), `energy`, `forces`, `stress`; the rest is `info`.
    """
    path, tick = request.path, request.tick
    parquet = require("pyarrow.parquet", "data", "reading Parquet files")
    arrow = require("pyarrow", "data", "reading Parquet files")
    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names[:20])}")
    total, k = max(file.metadata.num_rows, 1), 0
    try:
        for batch in file.iter_batches(batch_size=ROWS):
            for row in batch.to_pylist():
                where = f"{path}: row {k}"
                k += 1
                try:
                    yield _item_from_columns(row, where)
                except (ValueError, TypeError) as error:
                    yield BadItem(f"not readable ({type(error).__name__})", where)
            tick(k / total)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _item_from_columns(row: dict[str, Any], where: str) -> Item:
    cell, pbc = row.pop("cell", None), row.pop("pbc", None)
    return Item(
        numbers=np.asarray(row.pop("numbers"), np.int64),
        positions=np.asarray(row.pop("positions"), np.float64).reshape(-1, 3),
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell, np.float64).reshape(3, 3),
        pbc=np.asarray([False] * 3 if pbc is None else pbc, bool),
        where=where,
        labels={name: value for name in LABELS if (value := row.pop(name, None)) is not None},
        info={name: value for name, value in row.items() if value is not None},
    )


class ParquetSink(FileSink):
    """Parquet in our layout: `numbers`, `positions`, `cell`, `pbc`, `id`, and the labels; exact."""

    def open(self) -> None:
        """Import pyarrow; the first batch opens the draft, since it decides the columns."""
        self.arrow = require("pyarrow", "data", "writing Parquet files")
        self.parquet = require("pyarrow.parquet", "data", "writing Parquet files")
        self.writer: Any = None

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures."""
        pa = self.arrow
        vector, matrix = pa.list_(pa.float64(), 3), pa.list_(pa.list_(pa.float64(), 3), 3)
        count = len(batch)

        def to_lists(array: NDArray[Any]) -> Any:
            flat = pa.array(array) if array.ndim == 1 else _to_fixed_lists(pa, array.astype(np.float64), vector)
            return pa.ListArray.from_arrays(pa.array(batch.ptr.astype(np.int32)), flat)

        def to_column(values: Any, kind: Any, has: Any) -> Any:
            missing = np.ones(count, bool) if values is None else ~has
            filled = np.zeros(count) if values is None else values
            return pa.array(filled, kind, mask=missing)

        table = {
            "id": pa.array(batch.id),
            "numbers": to_lists(batch.numbers.astype(np.int16)),
            "positions": to_lists(batch.positions),
            "cell": _to_fixed_lists(pa, batch.cell, matrix),
            "pbc": pa.array(batch.pbc.tolist(), pa.list_(pa.bool_(), 3)),
            "charge": to_column(batch.charge, pa.float32(), _is_finite(batch.charge)),
            "spin": to_column(batch.spin, pa.float32(), _is_finite(batch.spin)),
            "energy": to_column(batch.energy, pa.float64(), batch.has_energy),
            "forces": _mask_absent(
                pa, None if batch.forces is None else to_lists(batch.forces), batch.has_forces, pa.list_(vector), count
            ),
            "stress": _mask_absent(
                pa,
                None if batch.stress is None else _to_fixed_lists(pa, batch.stress, matrix),
                batch.has_stress,
                matrix,
                count,
            ),
            **self._source_columns(batch),
        }
        written = pa.table(table)
        if self.writer is None:
            self.writer = self.parquet.ParquetWriter(self.draft, written.schema, compression="zstd")
        self.writer.write_table(written)

    def _source_columns(self, batch: StructureBatch) -> dict[str, Any]:
        head = np.full(len(batch), -1) if batch.head is None else batch.head
        rows = [self.options.sources[h] if h >= 0 else None for h in head.tolist()]
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


def _is_finite(values: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    return None if values is None else np.isfinite(values)


def _to_fixed_lists(pa: Any, array: NDArray[np.float64], kind: Any) -> Any:
    """Return [n,3] or [n,3,3] as fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat.cast(kind)


def _mask_absent(pa: Any, values: Any, has: NDArray[np.bool_] | None, kind: Any, count: int) -> Any:
    """Return values where `has`, null elsewhere."""
    if values is None or has is None:
        return pa.nulls(count, kind)
    return pa.compute.if_else(pa.array(has), values.cast(kind), pa.nulls(count, kind))


ROW = Format(
    name="parquet",
    about="Parquet, one row per structure",
    endings=(".parquet", ".pq"),
    read=read_parquet,
    sink=ParquetSink,
    extra="data",
)
