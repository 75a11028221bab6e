"""A process that computes chunks for a rank, so that a chunk that ends its process does not end the rank.

This module is also the program of that process. It opens the input and loads the ensemble once, as the rank did, and
computes chunk after chunk by the same rules, so the bytes are the same. It says what it is about to do: when it dies,
the rank knows how far it came.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.predict.free_memory import trim_heap
from atomsieve.runs.child_process import start
from atomsieve.runs.signals import follow
from atomsieve.screen.engine.runner import MOMENT, Runner
from atomsieve.screen.failures import DeviceLost, is_device_lost
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.quarantine.rows import mark_poisoned
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import CONDITIONS
from atomsieve.structures.interface import StructureReader

log = logging.getLogger(__name__)

CHILD_FIRST = "500"
"""Added to how likely the kernel picks the process where memory runs out: the rank shall live."""
Computed = tuple[NDArray[Any], NDArray[np.float32] | None]
"""Rows and forces of a chunk."""


@dataclass(frozen=True)
class Recipe:
    """What the process needs to compute as its rank does.

    Attributes
    ----------
    reader, identity : the input, and what says that it is still the same.
    runner : the rank's, without its predictor.
    predictor : one that was given to the run; None loads `ensemble` as `options`, `backend` and `device` say.
    """

    reader: StructureReader
    identity: str
    runner: Runner
    predictor: Any
    ensemble: Path | None
    options: ScreenOptions
    backend: str
    device: str

    def load(self) -> tuple[StructureReader, Runner]:
        """Return the reader and a runner that computes."""
        if self.reader.identity() != self.identity:
            raise DataError(f"{self.reader.path} changed while it was screened")
        predictor = self.predictor
        if predictor is None:
            from atomsieve.screen.setup import load_predictor

            assert self.ensemble is not None
            predictor = load_predictor(self.ensemble, replace(self.options, device=self.device), self.backend, 0)
        return self.reader, replace(self.runner, predictor=predictor)


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


class _Gone(Exception):  # noqa: N818 - what the pipe tells of the process
    """The process has closed its end."""


class CannotStart(Exception):  # noqa: N818 - the rank then computes by itself
    """The process cannot do what the rank does."""


class Child:
    """The process, started when it is first needed and again after a death. A context manager."""

    def __init__(self, recipe: Recipe) -> None:
        try:
            self._recipe = pickle.dumps(recipe)
        except Exception as error:  # every kind: a predictor or reader that was given may be anything
            raise CannotStart(f"{type(error).__name__}: {error}") from error
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Child:
        return self

    def compute(
        self, first: int, end: int, without: frozenset[int], between: Callable[[], None] = lambda: None
    ) -> Computed | Death:
        """Return the rows and forces of the chunk at input positions `first:end`, or how the process died of it.

        without : structures by their position in the chunk that are not computed; they are POISONED.
        between : called every moment; it may raise to leave, which ends the process.

        Raises
        ------
        CannotStart
            if the process cannot load what it needs; any error that computing raised there.
        """
        batch, ids, natoms = None, None, None
        try:
            pipe = self._ready(between)
            self._tell(pipe.send, (first, end, without))
            while True:
                kind, *said = self._heard(pipe, between)
                if kind == "read":
                    ids, natoms = said
                elif kind == "batch":
                    (batch,) = said
                elif kind == "done":
                    return said[0], said[1]
                else:
                    raise said[0]
        except _Gone:
            return Death(self._buried(), batch, ids, natoms)
        except BaseException:
            self.close()
            raise

    def _ready(self, between: Callable[[], None]) -> Connection:
        """Have the process at work.

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
            self._process = start(
                "atomsieve.screen.quarantine.sandbox",
                *map(str, numbers),
                stdin=subprocess.DEVNULL,
                pass_fds=numbers[:1],
            )
        try:
            self._tell(self._pipe.send, sys.path)
            self._tell(self._pipe.send_bytes, self._recipe)
            kind, *said = self._heard(self._pipe, between)
        except _Gone as error:
            raise CannotStart(f"it ended with exit code {self._buried()} while it started") from error
        if kind != "ready":
            self.close()
            raise CannotStart(*said)
        return self._pipe

    @staticmethod
    def _tell(send: Callable[[Any], None], what: Any) -> None:
        try:
            send(what)
        except OSError as error:
            raise _Gone from error

    @staticmethod
    def _heard(pipe: Connection, between: Callable[[], None]) -> Any:
        """Return what the process says next."""
        while True:
            between()
            try:
                if pipe.poll(MOMENT):
                    return pipe.recv()
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise _Gone from error

    def _buried(self) -> int:
        """Return the exit code of the process that has closed its end; a new one can be started."""
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
    """Give back what this process keeps of memory, the GPU's too, without using it: the other process needs it."""
    trim_heap()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def compute(
    reader: StructureReader, runner: Runner, order: tuple[int, int, frozenset[int]], say: Callable[..., None]
) -> Computed:
    """Compute one chunk; `say` is told what was read and, before it is begun, the structures of each batch.

    Not the batch's number: how a chunk is cut depends on what the process has learned of memory.
    """
    first, end, without = order
    batch: StructureBatch = reader.read(first, end, CONDITIONS)
    say("read", batch.id, batch.counts)
    begun = runner.begin(batch, first)
    aside = np.array(sorted(without), np.int64)
    begun.rows[aside] = mark_poisoned(begun.rows[aside])
    rest = [group[~np.isin(group, aside)] for group in begun.groups]
    begun.groups[:] = [group for group in rest if len(group)]
    coming = iter(begun.groups)

    def between() -> None:
        group = next(coming, None)
        if group is not None:
            say("batch", tuple(group.tolist()))

    return runner.finish(begun, between)


def main() -> None:
    """Compute what is asked for until the pipe ends."""
    follow(int(sys.argv[2]), signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(CHILD_FIRST)
    pipe = Connection(int(sys.argv[1]))

    def say(*what: Any) -> None:
        pipe.send(what)

    try:
        sys.path[:] = pipe.recv()
        reader, runner = pickle.loads(pipe.recv_bytes()).load()  # noqa: S301 - from the rank that started this process
    except Exception as error:  # every kind: the rank then computes by itself
        say("failed", f"{type(error).__name__}: {error}")
        return
    say("ready")
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        try:
            rows, forces = compute(reader, runner, order, say)
        except BrokenPipeError:
            return
        except Exception as error:  # every kind: it is raised in the rank
            if is_device_lost(error):
                sys.exit(DeviceLost.exit_code)
            known = isinstance(error, AtomSieveError)
            say("raised", error if known else RuntimeError(f"{type(error).__name__}: {error}"))
            continue
        say("done", rows, forces)


if __name__ == "__main__":
    main()
