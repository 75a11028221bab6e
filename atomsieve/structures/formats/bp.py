"""Datasets in BP files: dataset folders, bare BP5 directories and HydraGNN's directories; writes folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.block import Block, Column, Places, SourceColumn
from atomsieve.structures.carried import tabulate_rows
from atomsieve.structures.dataset.open import open_structures
from atomsieve.structures.dataset.writer import StructureWriter
from atomsieve.structures.fields import LABELS
from atomsieve.structures.formats.base import StructureSink, WriteOptions
from atomsieve.structures.item import ReadRequest
from atomsieve.structures.source import SourceInfo

ROWS = 20_000
NOTES = {"keys not taken": "with keys of HydraGNN that are not taken", "energies": "with energies of HydraGNN"}
"""Notes of a reader that concern a conversion, in words for its report."""


def is_bp_folder(path: Path) -> bool:
    """Return True for a dataset folder or a BP5 directory."""
    return (path / "manifest.json").exists() or (path / "md.idx").exists()


def count_rows(path: Path) -> int:
    """Return the number of structures of a dataset."""
    with open_structures(path) as reader:
        return len(reader)


def read_bp(request: ReadRequest) -> Iterator[Block]:
    """Yield the structures of a dataset, or of a range of its rows, with their sources."""
    with open_structures(request.path) as reader:
        stop = len(reader) if request.stop is None else request.stop
        for start in range(request.start, stop, ROWS):
            end = min(start + ROWS, stop)
            block = _build_block(reader.read(start, end), reader.sources, request.path, start)
            block.carried = reader.read_carried(start, end)
            for note, words in NOTES.items():
                if note in reader.notes:
                    block.notes[f"{words}: {reader.notes[note]}"] = len(block)
            yield block
            request.tick((end - request.start) / max(stop - request.start, 1))


def _build_block(batch: StructureBatch, sources: Sequence[SourceInfo], path: Path, start: int) -> Block:
    count = len(batch)
    info = {"id": Column(np.ones(count, bool), batch.id)}
    for name in ("charge", "spin"):
        values = getattr(batch, name)
        if values is not None:
            has = ~np.isnan(values)
            info[name] = Column(has, _pick(values, has).astype(np.float64))
    arrays = {}
    for name in LABELS:
        has, values = getattr(batch, f"has_{name}"), getattr(batch, name)
        if has is None or values is None:
            continue
        if name == "forces":
            arrays[name] = Column(has, values if has.all() else values[np.repeat(has, batch.counts)])
        else:
            info[name] = Column(has, _pick(values, has))
    own: SourceColumn | None = None
    if batch.head is not None:
        own = SourceColumn(tuple(sources), batch.head)
        has = batch.head >= 0
        for key, words in (
            ("source", [source.name for source in sources]),
            ("level_of_theory", [source.level_of_theory for source in sources]),
        ):
            info[key] = Column(has, np.array([*words, ""], object)[_pick(batch.head, has)])
    return Block(
        ptr=batch.ptr,
        numbers=batch.numbers,
        positions=batch.positions.astype(np.float64, copy=False),
        cell=batch.cell,
        pbc=batch.pbc,
        places=Places(str(path), "structure", np.arange(start, start + count)),
        info=info,
        arrays=arrays,
        sources=own,
        start=start,
        stop=start + count,
    )


def _pick(values: NDArray[Any], has: NDArray[np.bool_]) -> NDArray[Any]:
    return values if has.all() else values[has]


class BpSink(StructureSink):
    """A dataset folder with the same sources."""

    def __init__(self, path: Path, options: WriteOptions) -> None:
        super().__init__(path, options)
        self._writer = StructureWriter(
            path, sources=options.sources, overwrite=options.overwrite, notes=dict(options.notes)
        )

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures; values of `info` become carried columns."""
        if batch.head is None and len(self.options.sources) > 1:
            batch = batch.replace(head=np.full(len(batch), -1, np.int32))
        self._writer.append(batch, None if info is None or not len(batch) else tabulate_rows(info))

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
