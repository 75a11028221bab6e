"""The reader's stage: a separate process reads chunks ahead, because ADIOS2 holds the interpreter while it reads.

This module is also the program of that process: it takes requests on stdin and sends arrays on stdout. It imports no
torch and no MPI, and ends when its stdin does, so it never outlives the rank that started it.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.runs.child_process import start_module
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.dataset.bp5 import import_lightly
from atomsieve.structures.fields import CONDITIONS
from atomsieve.structures.interface import StructureReader

log = logging.getLogger(__name__)

AHEAD = 2
"""Chunks that are asked for before they are needed; more would keep work from other ranks at the end."""
MOMENT = 0.1
"""Seconds after which a wait for a chunk looks whether the run is to stop."""


class ChunkSource:
    """Iterates over the chunks of this rank, in order, with their structures.

    Parameters
    ----------
    reader : the input. A separate process reads a `reopenable` one; it is started after the first chunk if there is
        another; until it is up, and for any other input, this process reads.
    claims : chunks, each the next that this rank gets.
    spans : `(first, end)` of a chunk.
    begin : called with the number of a chunk before this process itself reads it, which may kill the process.
    idle : called every moment of a wait for a chunk; it may raise.

    Attributes
    ----------
    seconds : time that reading took, in either process.
    waited : time that this process waited for it.
    """

    def __init__(
        self,
        reader: StructureReader,
        claims: Iterator[int],
        spans: Callable[[int], tuple[int, int]],
        begin: Callable[[int], None] = lambda chunk: None,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._reader, self._claims, self._spans, self._begin, self._idle = reader, claims, spans, begin, idle
        self._asked: deque[int] = deque()
        self._process: _ReaderProcess | None = None
        self._here, self._ahead = True, reader.reopenable
        self.seconds = self.waited = 0.0

    @property
    def ready(self) -> int:
        """Chunks that are read and not yet taken."""
        return 0 if self._process is None else self._process.ready

    def __enter__(self) -> ChunkSource:
        return self

    def __iter__(self) -> Iterator[tuple[int, StructureBatch]]:
        return self

    def __next__(self) -> tuple[int, StructureBatch]:
        """Return the next chunk; ends when no chunk is left for this rank."""
        self._claim(1)
        if not self._asked:
            raise StopIteration
        since = time.perf_counter()
        chunk = self._asked.popleft()
        batch, seconds = self._read_ahead(chunk) or self._read(chunk)
        self.seconds += seconds
        self.waited += time.perf_counter() - since
        if self._process is None and self._ahead:
            self._claim(1)
            if self._asked:  # it gets ready while chunks are computed
                self._start()
        if self._here and self._process is not None and self._process.up:
            self._here = False
            for waiting in self._asked:
                self._process.ask(self._spans(waiting))
        if not self._here:
            self._claim(AHEAD)
        return chunk, batch

    def _read(self, chunk: int) -> tuple[StructureBatch, float]:
        """Read a chunk in this process; return it with the seconds that took."""
        self._begin(chunk)
        since = time.perf_counter()
        return self._reader.read(*self._spans(chunk), CONDITIONS), time.perf_counter() - since

    def _read_ahead(self, chunk: int) -> tuple[StructureBatch, float] | None:
        """Return a chunk that was read ahead, None where there is no such process, or it was killed.

        The chunk itself may have killed it. Then it kills the rank that reads it next, and becomes a suspect as usual.
        """
        if self._process is None or self._here:
            return None
        try:
            return self._process.take(self._spans(chunk), self._idle)
        except _Killed as death:
            log.warning("the process that reads ahead ended (%s): chunks are read by the rank itself", death)
            self._process.close()
            self._here, self._ahead, self._process = True, False, None
            return None

    def _start(self) -> None:
        try:
            self._process = _ReaderProcess(self._reader)
        except OSError as error:
            log.warning("no process that reads ahead can be started (%s): chunks are read by the rank itself", error)
            self._ahead = False

    def _claim(self, most: int) -> None:
        """Claim chunks until so many are under way."""
        while len(self._asked) < most and (chunk := next(self._claims, None)) is not None:
            self._asked.append(chunk)
            if self._process is not None and not self._here:
                self._process.ask(self._spans(chunk))

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.close()


class _Killed(Exception):  # noqa: N818 - what happened, not an error yet
    """The process that reads ahead ended by a signal."""


class _ReaderProcess:
    """The process that reads ahead, and the thread that receives its arrays."""

    def __init__(self, reader: StructureReader) -> None:
        self._child = start_module(
            "atomsieve.screen.engine.reader_process", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.up, self._closing = False, False
        self._found: queue.Queue[tuple[dict[str, NDArray[Any]], float] | Exception] = queue.Queue()
        self._send((reader, reader.identity()))
        self._thread = threading.Thread(target=self._receive, name="reading", daemon=True)
        self._thread.start()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._child.stdin is not None
        return self._child.stdin

    @property
    def ready(self) -> int:
        return self._found.qsize()

    def ask(self, span: tuple[int, int]) -> None:
        """Request a chunk."""
        self._send(span)

    def _send(self, what: Any) -> None:
        try:
            pickle.dump(what, self._stdin)  # between a process and its own child
            self._stdin.flush()
        except BrokenPipeError:
            pass  # the thread reports it, in the place of the chunk that was not read

    def take(self, span: tuple[int, int], idle: Callable[[], None]) -> tuple[StructureBatch, float]:
        """Return the chunk that was requested first, and the seconds that reading it took."""
        while True:
            try:
                found = self._found.get(timeout=MOMENT)
                break
            except queue.Empty:
                idle()
        if isinstance(found, EOFError):
            self._found.put(found)
            code = self._child.wait()
            if code < 0:
                raise _Killed(f"signal {signal.Signals(-code).name}")
            raise DataError(
                f"the process that reads the input ended (exit code {code}) at structures {span[0]:,} to {span[1]:,}; "
                "check the input with `atomsieve data info`, then run the same command again to continue"
            )
        if isinstance(found, Exception):
            raise found
        return StructureBatch(**found[0]), found[1]

    def _receive(self) -> None:
        """Receive arrays as they come: the pipe never waits for the main thread to have time."""
        source = self._child.stdout
        assert source is not None
        try:
            while True:
                head = pickle.load(source)  # noqa: S301 - from this process's own child
                self.up = True  # the first message means just that
                if head is None:
                    continue
                if isinstance(head, Exception):
                    self._found.put(head)
                    continue
                fields, seconds = head
                self._found.put(({name: _read_array(source, *kind) for name, kind in fields.items()}, seconds))
        except (EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a message
            if not self.up and not self._closing:
                log.warning("the process that reads ahead ended while it started: chunks are read by the rank itself")
            self._found.put(EOFError())
        except MemoryError as error:
            self._child.kill()
            self._found.put(
                AtomSieveError(
                    f"too little memory for the chunks read ahead ({error}); use a smaller --chunk-size, or fewer ranks"
                )
            )
        except Exception as error:  # every kind: the main thread waits for a chunk and raises it
            self._child.kill()
            self._found.put(DataError(f"what the process that reads the input sent makes no sense ({error})"))

    def close(self) -> None:
        """End the process."""
        self._closing = True
        self._child.kill()
        self._child.wait()
        self._thread.join()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # requests that it did not read any more
                    continue


def _as_bytes(array: NDArray[Any]) -> memoryview:
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def _read_array(source: IO[bytes], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read an array from a pipe, straight into its place."""
    array = np.empty(shape, dtype)
    place = _as_bytes(array)
    done = 0
    while done < len(place):
        got = source.readinto(place[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        done += got
    return array


def _send_batch(out: IO[bytes], batch: StructureBatch, seconds: float) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in batch.present().items()}
    pickle.dump(({name: (array.dtype.str, array.shape) for name, array in arrays.items()}, seconds), out)
    for array in arrays.values():
        out.write(_as_bytes(array))
    out.flush()


def main() -> None:
    """Serve requests until stdin ends; an error is sent in the place of its chunk."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the rank, which ends this process itself
        signal.signal(number, signal.SIG_IGN)
    asked, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of a library must not get in between
    import_lightly()
    try:
        reader, identity = pickle.load(asked)  # noqa: S301 - from the rank that started this process
        if reader.identity() != identity:
            raise DataError(f"{reader.path} changed while it was screened; put the original back")
    except Exception as error:  # every kind: it is raised in the rank
        reader = error
    pickle.dump(None, out)
    out.flush()
    while True:
        try:
            span = pickle.load(asked)  # noqa: S301 - as above
        except EOFError:
            return
        since = time.perf_counter()
        try:
            if isinstance(reader, Exception):
                raise reader
            batch = reader.read(*span, CONDITIONS)
        except Exception as error:  # as above
            known = isinstance(error, AtomSieveError)
            pickle.dump(error if known else DataError(f"the input cannot be read: {error}"), out)
            out.flush()
            continue
        try:
            _send_batch(out, batch, time.perf_counter() - since)
        except BrokenPipeError:  # the rank is gone
            return


if __name__ == "__main__":
    main()
