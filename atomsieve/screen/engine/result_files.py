"""The files of a run's results: their writers, and the one reader of chunks."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.screen.engine.rows import Rows
from atomsieve.screen.node_local.writer import Carrier, LocalStore, LocalWriter
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.files import ResultsFolder, partial_path
from atomsieve.screen.results.npy_file import HEADER, ResultFile, read_bytes
from atomsieve.screen.results.writer import ResultWriter


@dataclass(frozen=True)
class RunFiles:
    """Where the results of a run go.

    Attributes
    ----------
    folder : the results folder. rows : the row store. forces : the forces file, None where forces are not kept.
    local : with `--local`, the store on this node and the carrier of its chunks to the results folder.
    """

    folder: ResultsFolder
    rows: ResultFile
    forces: ResultFile | None
    local: tuple[LocalStore, Carrier] | None = None

    @property
    def arrays(self) -> list[ResultFile]:
        """The files that hold a place for every chunk."""
        return [file for file in (self.rows, self.forces) if file is not None]

    def open_writer(self, rank: int, options: ScreenOptions) -> ResultWriter:
        """Return a writer that makes chunks of one rank durable; a context manager."""
        if self.local is None:
            return ResultWriter(self.folder, self.rows, self.forces, rank, options.commit_seconds)
        return LocalWriter(*self.local, self.arrays, rank, options.commit_seconds, options.collect_seconds)

    def open_chunks(self) -> ChunkReader:
        """Return a reader of the chunks in the results folder; a context manager."""
        return ChunkReader(self)


class ChunkReader:
    """Reads chunks of an unfinished run back from its results folder. A context manager."""

    def __init__(self, files: RunFiles) -> None:
        self._files, self._handles = files, [os.open(partial_path(file.path), os.O_RDONLY) for file in files.arrays]

    def read_rows(self, chunk: int) -> Rows:
        """Return the rows of a chunk; they cannot be written to."""
        return np.frombuffer(self._bytes(0, chunk), ROW)

    def read_forces(self, chunk: int) -> NDArray[np.float32] | None:
        """Return a copy of the forces of a chunk, [N,3] or [N,H,3]; None where forces are not kept."""
        file = self._files.forces
        if file is None:
            return None
        return np.frombuffer(self._bytes(1, chunk), "<f4").reshape(-1, *file.shape[1:]).copy()

    def read_valid_rows(self, chunk: int, entries: Iterable[NDArray[Any]]) -> Rows | None:
        """Return the rows of a chunk if rows and forces fit the checksums of one ledger entry, else None.

        entries : those of the chunk, of dtype `atomsieve.screen.results.ledger.KNOWN`.
        """
        data = self._bytes(0, chunk)
        found = [zlib.crc32(data)]
        found += [file.crc(h, chunk) for file, h in zip(self._files.arrays[1:], self._handles[1:], strict=True)]
        fits = any([entry["rows"], entry["forces"]][: len(found)] == found for entry in entries)
        return np.frombuffer(data, ROW) if fits else None

    def _bytes(self, number: int, chunk: int) -> bytes:
        file = self._files.arrays[number]
        return read_bytes(self._handles[number], HEADER + file.bounds(chunk), HEADER + file.bounds(chunk + 1))

    def __enter__(self) -> ChunkReader:
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            os.close(handle)
