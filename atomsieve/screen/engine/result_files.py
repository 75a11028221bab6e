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
from atomsieve.screen.results.npy_file import HEADER, ArrayFiles, read_bytes
from atomsieve.screen.results.writer import ResultWriter


@dataclass(frozen=True)
class RunFiles:
    """Where the results of a run go.

    Attributes
    ----------
    folder : the results folder. arrays : the files in it that hold a place for every chunk.
    local : with `--local`, the store on this node and the carrier of its chunks to the results folder.
    """

    folder: ResultsFolder
    arrays: ArrayFiles
    local: tuple[LocalStore, Carrier] | None = None

    def open_writer(self, rank: int, options: ScreenOptions) -> ResultWriter:
        """Return a writer that makes chunks of one rank durable; a context manager."""
        if self.local is None:
            return ResultWriter(self.folder, self.arrays, rank, options.commit_seconds)
        return LocalWriter(*self.local, self.arrays, rank, options.commit_seconds, options.collect_seconds)

    def open_chunks(self) -> ChunkReader:
        """Return a reader of the chunks in the results folder; a context manager."""
        return ChunkReader(self)


class ChunkReader:
    """Reads chunks of an unfinished run back from its results folder. A context manager."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files.arrays.kept
        self._handles = {name: os.open(partial_path(f.path), os.O_RDONLY) for name, f in self._files.items()}

    def read_rows(self, chunk: int) -> Rows:
        """Return the rows of a chunk; they cannot be written to."""
        return np.frombuffer(self._bytes("rows", chunk), ROW)

    def read_forces(self, chunk: int) -> NDArray[np.float32] | None:
        """Return a copy of the forces of a chunk, [N,3] or [N,H,3]; None where forces are not kept."""
        return self._copy_of("forces", chunk)

    def read_members(self, chunk: int) -> NDArray[np.float32] | None:
        """Return a copy of the energies of the members [S*H,K] of a chunk; None where they are not kept."""
        return self._copy_of("members", chunk)

    def _copy_of(self, name: str, chunk: int) -> NDArray[np.float32] | None:
        if name not in self._files:
            return None
        return np.frombuffer(self._bytes(name, chunk), "<f4").reshape(-1, *self._files[name].shape[1:]).copy()

    def read_valid_rows(self, chunk: int, entries: Iterable[NDArray[Any]]) -> Rows | None:
        """Return the rows of a chunk if all its arrays fit the checksums of one ledger entry, else None.

        entries : those of the chunk, of dtype `atomsieve.screen.results.ledger.KNOWN`.
        """
        data = self._bytes("rows", chunk)
        found = {"rows": zlib.crc32(data)}
        found |= {n: file.crc(self._handles[n], chunk) for n, file in self._files.items() if n != "rows"}
        fits = any(all(entry[name] == crc for name, crc in found.items()) for entry in entries)
        return np.frombuffer(data, ROW) if fits else None

    def _bytes(self, name: str, chunk: int) -> bytes:
        file = self._files[name]
        return read_bytes(self._handles[name], HEADER + file.bounds(chunk), HEADER + file.bounds(chunk + 1))

    def __enter__(self) -> ChunkReader:
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles.values():
            os.close(handle)
