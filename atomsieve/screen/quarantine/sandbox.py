"""A process that computes chunks for a rank, so that a chunk that ends its process does not end the rank.

This module is also the program of that process. It opens the input and loads the ensemble once, as the rank did, and
computes chunk after chunk by the same rules, so the bytes are the same. It announces each batch before it begins it, so
the rank knows how far a process that died had come.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.predict.free_memory import trim_heap
from atomsieve.predict.interface import AnyPredictor
from atomsieve.runs.child_process import start_module
from atomsieve.runs.signals import end_with_parent
from atomsieve.screen.engine.runner import MOMENT, Runner
from atomsieve.screen.failures import DeviceLost, is_device_lost
from atomsieve.screen.quarantine.rows import mark_poisoned
from atomsieve.screen.results.npy_file import ChunkArrays
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import CONDITIONS
from atomsieve.structures.interface import StructureReader

CHILD_FIRST = "500"
"""Of /proc/PID/oom_score_adj: where memory runs out, the kernel ends this process before its rank."""


@dataclass(frozen=True)
class Recipe:
    """All that the process needs to compute as its rank does.

    Attributes
    ----------
    reader, identity : the input, and the digest that shows whether it is still the same.
    runner : makes the rank's runner, given a predictor.
    load : gives the process the predictor of the run.
    """

    reader: StructureReader
    identity: str
    runner: Callable[[AnyPredictor], Runner]
    load: Callable[[], AnyPredictor]

    def open(self) -> tuple[StructureReader, Runner]:
        """Return the reader and a runner that computes."""
        if self.reader.identity() != self.identity:
            raise DataError(f"{self.reader.path} changed while it was screened")
        return self.reader, self.runner(self.load())


@dataclass(frozen=True)
class Death:
    """How far the process came with a chunk before it died.

    Attributes
    ----------
    code : its exit code, negative for a signal.
    batch : positions in the chunk of the structures of the batch that it had begun, None if it came to none.
    ids, natoms : of the structures of the chunk [S], None if it could not read them.
    """

    code: int
    batch: tuple[int, ...] | None
    ids: NDArray[np.int64] | None
    natoms: NDArray[np.int64] | None

    def __str__(self) -> str:
        if self.code < 0 and -self.code in set(signal.Signals):
            return signal.Signals(-self.code).name
        return f"exit code {self.code}"


class _ProcessEnded(Exception):  # noqa: N818 - an event
    """The process has closed its end."""


class CannotStart(Exception):  # noqa: N818 - the rank then computes by itself
    """The process cannot compute in place of the rank."""


class Sandbox:
    """The process, started when it is first needed and again after a death. A context manager."""

    def __init__(self, recipe: Recipe) -> None:
        try:
            self._recipe = pickle.dumps(recipe)
        except Exception as error:  # every kind: a predictor or reader that was given may be anything
            raise CannotStart(f"{type(error).__name__}: {error}") from error
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Sandbox:
        return self

    def compute(
        self, first: int, end: int, without: frozenset[int], between: Callable[[], None] = lambda: None
    ) -> ChunkArrays | Death:
        """Return the arrays of the chunk at input positions `first:end`, or how the process died.

        without : positions in the chunk of structures that are not computed and become POISONED.
        between : called every moment; it may raise to leave, which ends the process.

        Raises
        ------
        CannotStart
            if the process cannot load what it needs; any error that computing raised there.
        """
        batch, ids, natoms = None, None, None
        try:
            pipe = self._start(between)
            self._send(pipe.send, (first, end, without))
            while True:
                kind, *content = self._receive(pipe, between)
                if kind == "read":
                    ids, natoms = content
                elif kind == "batch":
                    (batch,) = content
                elif kind == "done":
                    return ChunkArrays(*content)
                else:
                    raise content[0]
        except _ProcessEnded:
            return Death(self._reap(), batch, ids, natoms)
        except BaseException:
            self.close()
            raise

    def _start(self, between: Callable[[], None]) -> Connection:
        """Start the process, unless it is running.

        Raises
        ------
        CannotStart
            if it ends before it is.
        """
        if self._pipe is not None:
            return self._pipe
        release_unused_memory()
        self._pipe, theirs = Pipe()
        with theirs:
            numbers = theirs.fileno(), os.getpid()
            self._process = start_module(
                "atomsieve.screen.quarantine.sandbox",
                *map(str, numbers),
                stdin=subprocess.DEVNULL,
                pass_fds=numbers[:1],
            )
        try:
            self._send(self._pipe.send, sys.path)
            self._send(self._pipe.send_bytes, self._recipe)
            kind, *content = self._receive(self._pipe, between)
        except _ProcessEnded as error:
            raise CannotStart(f"it ended with exit code {self._reap()} while it started") from error
        if kind != "ready":
            self.close()
            raise CannotStart(*content)
        return self._pipe

    @staticmethod
    def _send(send: Callable[[Any], None], what: Any) -> None:
        try:
            send(what)
        except OSError as error:
            raise _ProcessEnded from error

    @staticmethod
    def _receive(pipe: Connection, between: Callable[[], None]) -> Any:
        """Return the next message of the process."""
        while True:
            between()
            try:
                if pipe.poll(MOMENT):
                    return pipe.recv()
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise _ProcessEnded from error

    def _reap(self) -> int:
        """Return the exit code of the process that closed its end of the pipe; then a new one can be started."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        code = self._process.poll()
        self.close()
        return -int(signal.SIGKILL) if code is None else code

    def close(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None

    def __exit__(self, *exception: object) -> None:
        self.close()


def release_unused_memory() -> None:
    """Give back memory that this process keeps without using it, the GPU's too: the other process needs it."""
    trim_heap()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def compute(
    reader: StructureReader, runner: Runner, order: tuple[int, int, frozenset[int]], announce: Callable[..., None]
) -> ChunkArrays:
    """Compute one chunk; `announce` gets what was read and, before it is begun, the structures of each batch.

    Not the batch's number: how a chunk is cut depends on how much memory the process has found to be there.
    """
    first, end, without = order
    batch: StructureBatch = reader.read(first, end, CONDITIONS)
    announce("read", batch.id, batch.counts)
    begun = runner.begin(batch, first)
    aside = np.array(sorted(without), np.int64)
    begun.rows[aside] = mark_poisoned(begun.rows[aside])
    rest = [group[~np.isin(group, aside)] for group in begun.groups]
    begun.groups[:] = [group for group in rest if len(group)]
    coming = iter(begun.groups)

    def between() -> None:
        group = next(coming, None)
        if group is not None:
            announce("batch", tuple(group.tolist()))

    return runner.finish(begun, between)


def main() -> None:
    """Compute the requested chunks until the pipe ends."""
    end_with_parent(int(sys.argv[2]), signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(CHILD_FIRST)
    pipe = Connection(int(sys.argv[1]))

    def announce(*content: Any) -> None:
        pipe.send(content)

    try:
        sys.path[:] = pipe.recv()
        reader, runner = pickle.loads(pipe.recv_bytes()).open()  # noqa: S301 - from the rank that started this process
    except Exception as error:  # every kind: the rank then computes by itself
        announce("failed", f"{type(error).__name__}: {error}")
        return
    announce("ready")
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        try:
            found = compute(reader, runner, order, announce)
        except BrokenPipeError:
            return
        except Exception as error:  # every kind: it is raised in the rank
            if is_device_lost(error):
                sys.exit(DeviceLost.exit_code)
            known = isinstance(error, AtomSieveError)
            announce("raised", error if known else RuntimeError(f"{type(error).__name__}: {error}"))
            continue
        announce("done", *found)


if __name__ == "__main__":
    main()
