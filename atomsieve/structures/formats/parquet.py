"""Parquet: one row per structure, lists per atom; columns become columns, without an object for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, require
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.block import Block, Column, Places, build_block, build_column, is_label_of_atoms
from atomsieve.structures.formats.base import FileSink, Format
from atomsieve.structures.item import BadItem, ReadRequest

ROWS, BLOCK_BYTES = 10_000, 1 << 24
"""Rows of a block at most, and their bytes in the file."""
GROUP_ROWS, GROUP_BYTES = 20_000, 1 << 26
"""Rows of a row group, and their bytes in memory, from which on it is written."""
NUMBERS = ("numbers", "atomic_numbers")


def count_row_groups(path: Path) -> int:
    """Return the number of row groups, which are what several processes can share."""
    return int(_open(path).metadata.num_row_groups)


def read_parquet(request: ReadRequest) -> Iterator[Block]:
    """Yield the rows of a Parquet file with columns `numbers` (lists of int) and `positions` (lists of lists of 3).

    Optional are `cell` (3 lists of 3, or 9 numbers), `pbc` (3 bool) and everything else: numbers and texts, lists per
    structure, lists per atom (`forces`). `atomic_numbers` is another name of `numbers`. Rows are never made objects.

    Raises
    ------
    DataError
        if it is no Parquet file, is damaged, or lacks a column that is needed.
    """
    path = request.path
    file = _open(path)
    arrow = require("pyarrow", "data", "reading Parquet files")
    names = file.schema_arrow.names
    numbers = next((name for name in NUMBERS if name in names), NUMBERS[0])
    for name in (numbers, "positions"):
        if name not in names:
            raise DataError(f"{path} has no column {name!r}; it has {', '.join(names[:20])}")
    metadata = file.metadata
    stop = metadata.num_row_groups if request.stop is None else min(request.stop, metadata.num_row_groups)
    row = sum(metadata.row_group(k).num_rows for k in range(request.start))
    for group in range(request.start, stop):
        of_group = metadata.row_group(group)
        width = of_group.total_byte_size / max(of_group.num_rows, 1)
        rows = int(np.clip(BLOCK_BYTES / max(width, 1), 1, ROWS))
        try:
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False):
                yield _build_block(batch, numbers, f"{path}", row, group)
                row += batch.num_rows
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is damaged: {error}") from error
        request.tick((group + 1 - request.start) / max(stop - request.start, 1))


def _open(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "data", "reading Parquet files")
    arrow = require("pyarrow", "data", "reading Parquet files")
    try:
        return parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


@dataclass
class _Lists:
    """A column of lists: `lengths [P]` of those that are there, all their values `[sum, ...]`, and where they are."""

    has: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    values: NDArray[Any]

    @property
    def even(self) -> NDArray[Any] | None:
        """The values as `[P, length, ...]` where all lists are of one length."""
        if not len(self.lengths):
            return self.values.reshape(0, 0, *self.values.shape[1:])
        if (self.lengths != self.lengths[0]).any():
            return None
        return self.values.reshape(len(self.lengths), int(self.lengths[0]), *self.values.shape[1:])


def _read_lists(column: Any) -> _Lists | None:
    """Return a column of lists of numbers; None for one of anything else, or whose inner lists differ in length."""
    from pyarrow import compute, types

    def is_list(kind: Any) -> bool:
        return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)

    if not is_list(column.type):
        return None
    has = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = compute.list_value_length(column).drop_null().to_numpy().astype(np.int64)
    inner, shape = column.flatten(), []
    while is_list(inner.type):
        sizes = compute.list_value_length(inner)
        if len(inner) and (sizes.null_count or compute.min(sizes).as_py() != compute.max(sizes).as_py()):
            return None
        size = sizes[0].as_py() if len(inner) else 0
        shape.append(size)
        inner = inner.flatten()
    if not (types.is_integer(inner.type) or types.is_floating(inner.type) or types.is_boolean(inner.type)):
        return None
    values = inner.to_numpy(zero_copy_only=False)
    return _Lists(has, lengths, values.reshape(int(lengths.sum()), *shape))


def _build_block(batch: Any, numbers: str, path: str, first: int, group: int) -> Block:
    """Return a batch of rows as a block; rows whose numbers and positions do not fit together are bad."""
    z, xyz = _read_lists(batch[numbers]), _read_lists(batch["positions"])
    if z is None or xyz is None:
        return _refuse_all(batch.num_rows, f"{numbers} or positions are no lists of numbers", path, first, group)
    counts, triples = np.zeros(batch.num_rows, np.int64), np.zeros(batch.num_rows, np.int64)
    counts[z.has], triples[xyz.has] = z.lengths, xyz.lengths
    flat = xyz.values.ndim == 1
    fits = z.has & xyz.has & (triples == counts * (3 if flat else 1))
    if (not flat and xyz.values.shape[1:] != (3,) and len(xyz.values)) or not np.equal(np.mod(z.values, 1), 0).all():
        return _refuse_all(batch.num_rows, "positions are not 3 per atom, or numbers are not whole", path, first, group)
    bad = [
        (k, BadItem("positions do not fit the number of atoms", f"{path}: row {first + k}"))
        for k in np.flatnonzero(~fits).tolist()
    ]
    if bad:
        import pyarrow

        batch = batch.filter(pyarrow.array(fits))
        z, xyz = _read_lists(batch[numbers]), _read_lists(batch["positions"])
        assert z is not None and xyz is not None
        counts = counts[fits]
    info: dict[str, Column] = {}
    arrays: dict[str, Column] = {}
    for name in batch.schema.names:
        if name not in (numbers, "positions", "cell", "pbc"):
            _add_column(name, batch[name], counts, info, arrays)
    cell, cells = np.zeros((len(counts), 9)), np.zeros(len(counts), bool)
    _fill(batch, "cell", 9, cell, cells)
    pbc, periodic = np.zeros((len(counts), 3)), np.zeros(len(counts), bool)
    _fill(batch, "pbc", 3, pbc, periodic)
    return Block(
        ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        numbers=z.values.astype(np.int64),
        positions=xyz.values.reshape(-1, 3).astype(np.float64, copy=False),
        cell=cell.reshape(-1, 3, 3),
        pbc=pbc != 0,
        places=Places(path, "row", first + np.flatnonzero(fits)),
        info=info,
        arrays=arrays,
        bad=bad,
        start=group,
        stop=group + 1,
    )


def _refuse_all(rows: int, reason: str, path: str, first: int, group: int) -> Block:
    bad = [(k, BadItem(reason, f"{path}: row {first + k}")) for k in range(rows)]
    return replace(build_block([]), bad=bad, start=group, stop=group + 1)


def _fill(batch: Any, name: str, size: int, out: NDArray[np.float64], has: NDArray[np.bool_]) -> None:
    """Put lists of `size` numbers in all into rows of `out`.

    Raises
    ------
    DataError
        if a row has another number of them.
    """
    if name not in batch.schema.names or batch[name].null_count == batch.num_rows:
        return
    lists = _read_lists(batch[name])
    even = None if lists is None else lists.even
    if lists is None or even is None or int(np.prod(even.shape[1:])) != size:
        raise DataError(f"column {name!r} has to hold {size} numbers in each row; it is {batch[name].type}")
    has[:] = lists.has
    out[has] = even.reshape(-1, size)


def _add_column(
    name: str, column: Any, counts: NDArray[np.int64], info: dict[str, Column], arrays: dict[str, Column]
) -> None:
    """Put a column where it belongs: values of structures, or of atoms."""
    from pyarrow import types

    has = column.is_valid().to_numpy(zero_copy_only=False)
    if not has.any():
        return
    lists = _read_lists(column)
    if lists is not None:
        of_atoms = lists.lengths == counts[has]
        even = lists.even
        if of_atoms.all() and (is_label_of_atoms(name) or even is None):
            arrays[name] = Column(has, lists.values)
        elif even is not None and not is_label_of_atoms(name):
            info[name] = Column(has, even)
        else:
            parts = np.split(lists.values, np.cumsum(lists.lengths)[:-1])
            info[name] = build_column(list(zip(np.flatnonzero(has).tolist(), parts, strict=True)), len(has))
        return
    present = column.drop_null()
    if types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type):
        info[name] = Column(has, present.to_numpy(zero_copy_only=False))
        return
    values = np.empty(len(present), object)
    values[:] = present.to_pylist()
    info[name] = Column(has, values)


class ParquetSink(FileSink):
    """Parquet in our layout: `numbers`, `positions`, `cell`, `pbc`, `id`, and the labels; exact."""

    def open(self) -> None:
        """Import pyarrow; the first batch opens the draft, since it decides the columns."""
        self.arrow = require("pyarrow", "data", "writing Parquet files")
        self.parquet = require("pyarrow.parquet", "data", "writing Parquet files")
        self.writer: Any = None
        self.held: list[Any] = []

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
            "stress": _mask_absent(  # lists of any length are read much faster than nulls among lists of three
                pa,
                None if batch.stress is None else _to_fixed_lists(pa, batch.stress, matrix),
                batch.has_stress,
                pa.list_(vector),
                count,
            ),
            **self._source_columns(batch),
        }
        self.held.append(pa.table(table))
        if (
            sum(part.num_rows for part in self.held) >= GROUP_ROWS
            or sum(part.nbytes for part in self.held) > GROUP_BYTES
        ):
            self._write_held()

    def _write_held(self) -> None:
        """Write a row group. Numbers differ from row to row: a dictionary of them would only cost time."""
        written = self.arrow.concat_tables(self.held)
        if self.writer is None:
            self.writer = self.parquet.ParquetWriter(
                self.draft, written.schema, compression="lz4", use_dictionary=["source", "level_of_theory"]
            )
        self.writer.write_table(written, row_group_size=GROUP_ROWS)
        self.held = []

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
        if self.writer is None and not self.held:
            self.write(StructureBatch.empty())
        if self.held:
            self._write_held()
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
    extent=count_row_groups,
)
