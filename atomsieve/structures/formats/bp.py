"""Datasets in BP files: dataset folders, bare BP5 directories and HydraGNN's directories; writes folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import LABELS
from atomsieve.structures.formats.base import StructureSink, WriteOptions
from atomsieve.structures.item import BadItem, Item, Tick
from atomsieve.structures.open import open_structures
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.writer import StructureWriter

ROWS = 2000


def is_bp_folder(path: Path) -> bool:
    """Return True for a dataset folder or a BP5 directory."""
    return (path / "manifest.json").exists() or (path / "md.idx").exists()


def read_bp(path: Path, tick: Tick) -> Iterator[Item | BadItem]:
    """Yield the structures of a dataset, with their sources."""
    with open_structures(path) as reader:
        done = 0
        for batch in reader.iter_batches(ROWS):
            for s in range(len(batch)):
                yield _item_from_batch(batch, s, reader.sources, f"{path}: structure {done + s}")
            done += len(batch)
            tick(done / max(len(reader), 1))


def _item_from_batch(batch: StructureBatch, s: int, sources: Sequence[SourceInfo], where: str) -> Item:
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


class BpSink(StructureSink):
    """A dataset folder with the same sources."""

    def __init__(self, path: Path, options: WriteOptions) -> None:
        super().__init__(path, options)
        self._writer = StructureWriter(
            path, sources=options.sources, overwrite=options.overwrite, notes=dict(options.notes)
        )

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures; the format has no place for `info`."""
        if batch.head is None and len(self.options.sources) > 1:
            batch = batch.replace(head=np.full(len(batch), -1, np.int32))
        self._writer.append(batch)

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
