"""Formats of columns: our own Parquet layout, and datasets in BP files (ours, bare, HydraGNN's)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.errors import DataError, require
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import LABELS
from atomsieve.structures.item import Bad, Item, Tick
from atomsieve.structures.source import SourceInfo

ROWS = 2000
COLUMNS = ("numbers", "positions")


def read_parquet(path: Path, tick: Tick) -> Iterator[Item | Bad]:
    """Yield the rows of a Parquet file with a column `numbers` (list of int) and `positions` (list of lists of 3).

    Other columns are optional: `cell` (3 lists of 3), `pbc` (3 bool), `energy`, `forces`, `stress`; the rest is `info`.
    """
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
                    yield Bad(f"not readable ({type(error).__name__})", where)
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


def read_bp(path: Path, tick: Tick) -> Iterator[Item | Bad]:
    """Yield the structures of a dataset, with their sources."""
    from atomsieve.structures.open import open_structures

    with open_structures(path) as reader:
        done = 0
        for batch in reader.iter_batches(ROWS):
            for s in range(len(batch)):
                yield _item_from_batch(batch, s, reader.sources, f"{path}: structure {done + s}")
            done += len(batch)
            tick(done / max(len(reader), 1))


def _item_from_batch(batch: StructureBatch, s: int, sources: list[SourceInfo], where: str) -> Item:
    own = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
    info: dict[str, Any] = {"id": int(batch.id[s])}
    for name in ("charge", "spin"):
        values = getattr(batch, name)
        if values is not None and not np.isnan(values[s]):
            info[name] = float(values[s])
    source = None
    if batch.head is not None and batch.head[s] >= 0:
        source = sources[int(batch.head[s])]
        info.update(source=source.name, level_of_theory=source.level_of_theory)
    labels = {}
    for name in LABELS:
        has = getattr(batch, f"has_{name}")
        if has is not None and has[s]:
            labels[name] = getattr(batch, name)[own if name == "forces" else s]
    positions = batch.positions[own].astype(np.float64)
    return Item(batch.numbers[own], positions, batch.cell[s], batch.pbc[s], where, info, labels, source=source)
