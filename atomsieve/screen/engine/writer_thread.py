"""The last stages: a thread counts and writes the rows of computed chunks, while the next batches are computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from atomsieve.screen.engine.rows import Rows
from atomsieve.screen.results.npy_file import ChunkArrays
from atomsieve.screen.results.writer import ResultWriter
from atomsieve.screen.telemetry.clock import Clock

WAITING = 4
"""Chunks that may wait to be written; then computing waits."""
PAUSE = 0.2  # seconds after which an idle writer looks whether it is time to make results durable

Chunk = tuple[int, ChunkArrays, float]
"""A computed chunk: number, arrays, seconds."""


class ChunkWriter:
    """Takes computed chunks over, in order. Its thread does no MPI and holds the interpreter only for moments.

    Parameters
    ----------
    writer : where chunks go.
    reduce : counts the rows of a chunk.

    Attributes
    ----------
    clock : seconds in `reduce` and `write`. waited : seconds that computing waited.
    """

    def __init__(self, writer: ResultWriter, reduce: Callable[[Rows], None]) -> None:
        self._writer, self._reduce = writer, reduce
        self._queue: queue.Queue[Chunk | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writing", daemon=True)
        self.clock, self._held = Clock(), Clock()

    @property
    def waiting(self) -> int:
        """Chunks that are not written yet."""
        return self._queue.qsize()

    @property
    def waited(self) -> float:
        """Seconds that computing waited for this thread."""
        return self._held.seconds["wait"]

    def __enter__(self) -> ChunkWriter:
        self._writer.__enter__()
        self._thread.start()
        return self

    def put(self, chunk: Chunk, idle: Callable[[], None] = lambda: None) -> None:
        """Hand a chunk over; raises the error of an earlier one. `idle` is called every moment of a wait."""
        with self._held("wait"):
            while True:
                self.check()
                try:
                    return self._queue.put(chunk, timeout=PAUSE)
                except queue.Full:
                    idle()

    def check(self) -> None:
        """Raise the error of a chunk that was handed over."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while True:
                try:
                    chunk = self._queue.get(timeout=PAUSE)
                except queue.Empty:
                    with self.clock("write"):
                        self._writer.commit_if_due()
                    continue
                if chunk is None:
                    return
                with self.clock("reduce"):
                    self._reduce(chunk[1].rows)
                with self.clock("write"):
                    self._writer.put(*chunk)
        except BaseException as error:  # every kind: it is raised where chunks are handed over
            self._error = error

    def __exit__(self, *exception: object) -> None:
        """Write all chunks that were handed over, and make them durable; also when the loop is left by an error."""
        while self._error is None:
            try:
                self._queue.put(None, timeout=PAUSE)
                break
            except queue.Full:
                continue
        self._thread.join()
        with self.clock("write"):
            self._writer.__exit__(*((None,) * 3 if self._error is None else (type(self._error), self._error, None)))
        if exception[0] is None:
            self.check()
