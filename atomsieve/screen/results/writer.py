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
from atomsieve.screen.results.npy_file import HEADER, ResultFile


class ResultWriter:
    """Writes chunks to their places, and records them in this rank's ledger once they are synced to disk."""

    def __init__(
        self, folder: ResultsFolder, rows: ResultFile, forces: ResultFile | None, rank: int, commit_seconds: float
    ) -> None:
        self.folder, self.rows, self.forces = folder, rows, forces
        self._ledger = folder.rank_ledger(rank)
        self._handles: list[int] = []
        self._waiting: list[ledger.Entry] = []
        self._interval, self._last = commit_seconds, time.monotonic()

    def __enter__(self) -> ResultWriter:
        files = [f for f in (self.rows, self.forces) if f is not None]
        with disk_errors(self.folder.path):
            self._handles = [os.open(partial_path(f.path), os.O_RDWR) for f in files]
        return self

    def put(self, chunk: int, rows: NDArray[Any], forces: NDArray[np.float32] | None, seconds: float) -> None:
        """Write one chunk; it is durable after the next `commit`, which follows every `commit_seconds`."""
        codes, counts = np.unique(rows["status"], return_counts=True)
        with disk_errors(self.folder.path):
            entry = ledger.Entry(
                chunk=chunk,
                rows=_write(self._handles[0], self.rows, chunk, rows),
                forces=None
                if self.forces is None or forces is None
                else _write(self._handles[1], self.forces, chunk, forces),
                structures=int(rows["position"][-1] - rows["position"][0] + 1),
                status=dict(zip(codes.tolist(), counts.tolist(), strict=True)),
                time=round(time.time(), 3),
                seconds=round(seconds, 6),
                forces_at=None if self.forces is None else (self.forces.bounds(chunk), self.forces.bounds(chunk + 1)),
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
