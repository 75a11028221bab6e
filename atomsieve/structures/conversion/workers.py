"""Converts pieces in several processes; this module is also the program of such a process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError
from atomsieve.runs.child_process import start_module
from atomsieve.runs.signals import end_with_parent
from atomsieve.structures.conversion.piece import Job, convert_piece
from atomsieve.structures.conversion.plan import Piece
from atomsieve.structures.conversion.records import UnfinishedError, write_record

MOMENT = 0.2  # seconds between two looks at a request to stop, and between two messages of progress
CHILD_FIRST = "500"
"""Of /proc/PID/oom_score_adj: where memory runs out, the kernel ends a worker before the process that waits for it."""

Progress = Callable[[int, float, int, int], None]
"""Called with the number of a piece, the fraction of it that is done, and structures read and skipped in it."""


class _Worker:
    """One process, and the piece that it converts."""

    def __init__(self, job: bytes) -> None:
        self.pipe, theirs = Pipe()
        with theirs:
            numbers = theirs.fileno(), os.getpid()
            self.process = start_module(
                "atomsieve.structures.conversion.workers",
                *map(str, numbers),
                stdin=subprocess.DEVNULL,
                pass_fds=numbers[:1],
            )
        self.send(sys.path)
        self.pipe.send_bytes(job)

    def send(self, what: Any) -> None:
        """Send a message; one that has ended is noticed when its answer is read."""
        with suppress(OSError):
            self.pipe.send(what)

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.kill()
        self.process.wait()


def convert_in_processes(
    job: Job,
    pieces: Sequence[tuple[Piece, Path]],
    count: int,
    progress: Progress,
    check: Callable[[], None],
) -> None:
    """Convert pieces in `count` processes, each into its parts and the record at the path that comes with it.

    check : called every moment; it may raise to leave.

    Raises
    ------
    AtomSieveError
        the first error of a process; UnfinishedError if a process was ended from outside.
    """
    todo = deque(pieces)
    plain = pickle.dumps(job)
    workers: list[_Worker] = []
    try:
        for _ in range(min(count, len(todo))):
            workers.append(_Worker(plain))
            workers[-1].send(todo.popleft())
        busy = {worker.pipe: worker for worker in workers}
        while busy:
            check()
            for pipe in wait(list(busy), MOMENT):
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                try:
                    kind, *content = pipe.recv()
                except (EOFError, OSError, pickle.UnpicklingError) as error:
                    raise _explain_end(worker, count) from error
                if kind == "raised":
                    raise content[0]
                progress(*content)
                if kind == "done" and todo:
                    worker.send(todo.popleft())
                elif kind == "done":
                    del busy[pipe]
    finally:
        for worker in workers:
            worker.close()


def _explain_end(worker: _Worker, count: int) -> AtomSieveError:
    """Return the error for a process that ended in the middle of its work."""
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(10.0)
    code = worker.process.poll()
    if code == -signal.SIGKILL:
        return UnfinishedError(
            f"a worker process ({worker.process.pid}) was killed, as the system does where memory runs out; run the "
            f"same command again with --workers {max(count // 2, 1)} to continue with the pieces that are done"
        )
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return UnfinishedError(
        f"a worker process ({worker.process.pid}) ended with {name}; run the same command again to continue with the "
        "pieces that are done (--workers 1 shows the place)"
    )


def main() -> None:
    """Convert the pieces that come through the pipe until it ends."""
    end_with_parent(int(sys.argv[2]), signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(CHILD_FIRST)
    from atomsieve.structures.dataset.bp5 import import_lightly

    import_lightly()
    pipe = Connection(int(sys.argv[1]))
    sys.path[:] = pipe.recv()
    job: Job = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from the process that started this one
    while True:
        try:
            piece, path = pipe.recv()
        except EOFError:
            return
        last = 0.0

        def watch(fraction: float, read: int, skipped: int, piece: Piece = piece) -> None:
            nonlocal last
            if time.monotonic() - last > MOMENT:
                last = time.monotonic()
                pipe.send(("progress", piece.number, fraction, read, skipped))

        try:
            record = convert_piece(job, piece, watch)
            write_record(path, record)
        except BrokenPipeError:
            return
        except Exception as error:  # every kind: it is raised in the process that waits
            known = isinstance(error, AtomSieveError)
            pipe.send(("raised", error if known else RuntimeError(f"{type(error).__name__}: {error}")))
            return
        pipe.send(("done", piece.number, 1.0, record.counts.read, sum(record.counts.skipped.values())))


if __name__ == "__main__":
    main()
