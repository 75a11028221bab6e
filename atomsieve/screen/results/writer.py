"""Writes chunks of results to their places and records them in the ledger of this rank."""

from __future__ import annotations

import errno
import os
import time
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.runs.output_files import disk_errors
from atomsieve.screen.results import ledger
from atomsieve.screen.results.files import ResultsFolder, partial_path
from atomsieve.screen.results.npy_file import HEADER, ArrayFiles, ChunkArrays, ResultFile


class ResultWriter:
    """Writes chunks to their places, and records them in this rank's ledger once they are synced to disk."""

    def __init__(self, folder: ResultsFolder, files: ArrayFiles, rank: int, commit_seconds: float) -> None:
        self.folder, self._files = folder, files.kept
        self._ledger = folder.rank_ledger(rank)
        self._handles: list[int] = []
        self._waiting: list[ledger.Entry] = []
        self._interval, self._last = commit_seconds, time.monotonic()

    def __enter__(self) -> ResultWriter:
        with disk_errors(self.folder.path):
            self._handles = [os.open(partial_path(file.path), os.O_RDWR) for file in self._files.values()]
        return self

    def put(self, chunk: int, arrays: ChunkArrays, seconds: float) -> None:
        """Write one chunk; it is durable after the next `commit`, which follows every `commit_seconds`."""
        rows, forces = arrays.rows, self._files.get("forces")
        codes, counts = np.unique(rows["status"], return_counts=True)
        with disk_errors(self.folder.path):
            found: dict[str, int] = {}
            for handle, (name, file) in zip(self._handles, self._files.items(), strict=True):
                if (values := getattr(arrays, name)) is not None:
                    found[name] = _write(handle, file, chunk, values)
            entry = ledger.Entry(
                chunk=chunk,
                rows=found["rows"],
                forces=found.get("forces"),
                members=found.get("members"),
                structures=int(rows["position"][-1] - rows["position"][0] + 1),
                status=dict(zip(codes.tolist(), counts.tolist(), strict=True)),
                time=round(time.time(), 3),
                seconds=round(seconds, 6),
                forces_at=None if forces is None else (forces.bounds(chunk), forces.bounds(chunk + 1)),
            )
        self._waiting.append(entry)
        self.commit_if_due()

    def commit_if_due(self) -> None:
        """Commit if `commit_seconds` passed since the last time."""
        if self._waiting and time.monotonic() - self._last >= self._interval:
            self.commit()

    def commit(self) -> None:
        """Sync the data, then append and sync their ledger lines."""
        if self._waiting:
            with disk_errors(self.folder.path):
                for handle in self._handles:
                    os.fdatasync(handle)
                    if os.fstat(handle).st_nlink == 0:  # deleted: what was written is lost as soon as it is closed
                        raise FileNotFoundError(errno.ENOENT, "deleted")
                ledger.append(self._ledger, self._waiting)
            self._waiting = []
        self._last = time.monotonic()

    def flush(self) -> None:
        """Make every chunk durable that was put."""
        self.commit()

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None:
                self.flush()
        finally:
            for handle in self._handles:
                os.close(handle)


def _write(handle: int, file: ResultFile, chunk: int, array: NDArray[Any]) -> int:
    data = np.ascontiguousarray(array, file.dtype).tobytes()
    start, stop = file.bounds(chunk), file.bounds(chunk + 1)
    if len(data) != stop - start:
        raise AtomSieveError(
            f"{file.path}: chunk {chunk} has {len(data)} bytes, its place {stop - start}; "
            "the input changed while it was read"
        )
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], HEADER + start + done)
    return zlib.crc32(data)
