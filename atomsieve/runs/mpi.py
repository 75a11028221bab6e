"""Ranks of one job: a process alone, or the ranks of an MPI job, behind one interface.

A long job is written once, for any number of ranks:

    comm = connect_ranks()
    with guard_ranks(comm):
        plan = comm.run_on_all(make_plan, path)          # every rank runs it; an error on one ends all
        comm.run_on_first(create_files, plan)            # rank 0 runs it; every rank gets its value
        for item in comm.claim(plan.items):              # each item goes to one rank
            compute(item)

Work is handed out by an atomic counter in an MPI window on rank 0, so that no rank is spent on being a master. mpi4py
is imported only when a launcher started several processes.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import EXIT_ERROR, EXIT_INTERRUPTED, AtomSieveError, Interrupted
from atomsieve.runs.launcher import Launch, detect_launcher

log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

NEXT, DONE, FAILED, HALTED, QUEUES, SLOTS = 0, 1, 2, 3, 4, 4 + 4096  # places of the shared counters, int64
DRAIN_SECONDS = 0.5  # time for the launcher to forward what a rank printed: an abort drops what is in its pipes
STOPPED = 1 << 60  # added to NEXT: no item is handed out after it


class SilentExit(SystemExit):
    """Ends a rank without a message, because another rank reports the error."""


class Communicator:
    """A process alone; `MpiCommunicator` has the same interface for several ranks.

    Attributes
    ----------
    rank, size : number of this process among all of the job (0-based), and how many there are.
    local_rank, local_size : the same among the processes of this machine.
    shared_error : the error for which all ranks leave together, or None; set by `run_on_all`.
    save_traceback : called by `guard_ranks` with the traceback of an error that is no `AtomSieveError`.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def __init__(self) -> None:
        self._counters = np.zeros(SLOTS, np.int64)
        self.shared_error: BaseException | None = None
        self.save_traceback: Callable[[str], None] = lambda text: None

    # -- shared counters -----------------------------------------------------------------------------------------

    def _fetch_and_add(self, slot: int, amount: int) -> int:
        """Add to a shared counter, atomically; return its value from before."""
        before = int(self._counters[slot])
        self._counters[slot] += amount
        return before

    def claim(self, todo: Sequence[int], queue: NDArray[np.int64] | None = None, own: int = 0) -> Iterator[int]:
        """Yield items of `todo` (the same on every rank) that no other rank got, until none is left or `stop_claims`.

        queue : [len(todo)], the queue in which each item waits, below `SLOTS - QUEUES`; the same on every rank. None
            means one queue. own : the queue from which this rank takes first; then it helps with the others.
        """
        if queue is None:
            while (turn := self._fetch_and_add(NEXT, 1)) < len(todo):
                yield int(todo[turn])
            return
        waiting = [np.flatnonzero(queue == q) for q in range(int(queue.max(initial=0)) + 1)]
        order = deque([own % len(waiting), *(q % len(waiting) for q in range(own + 1, own + len(waiting)))])
        # A turn of NEXT is a permit: for each permit below len(todo), one item waits in some queue.
        while self._fetch_and_add(NEXT, 1) < len(todo):
            while (turn := self._fetch_and_add(QUEUES + order[0], 1)) >= len(waiting[order[0]]):
                order.popleft()
            yield int(todo[waiting[order[0]][turn]])

    def reset_claims(self) -> None:
        """Let the next `claim`, of one queue, start at the first item; every rank calls it, outside of a `claim`."""
        self.all_gather(None)
        if self.rank == 0:
            for slot in (NEXT, HALTED):
                self._fetch_and_add(slot, -self._fetch_and_add(slot, 0))
        self.all_gather(None)

    def reset_counts(self) -> None:
        """Count structures from zero again; every rank calls it."""
        self.all_gather(None)
        if self.rank == 0:
            for slot in (DONE, FAILED):
                self._fetch_and_add(slot, -self._fetch_and_add(slot, 0))
        self.all_gather(None)

    def stop_claims(self) -> None:
        """Hand out no more items, to any rank."""
        if self._fetch_and_add(HALTED, 1) == 0:  # once for all ranks: a few times STOPPED would overflow 64 bits
            self._fetch_and_add(NEXT, STOPPED)

    def count_done(self, done: int, failed: int) -> None:
        """Count structures as done, and some of them as failed."""
        self._fetch_and_add(DONE, done)
        self._fetch_and_add(FAILED, failed)

    def read_counts(self) -> tuple[int, int]:
        """Return the structures done and failed so far in this run, on all ranks."""
        return self._fetch_and_add(DONE, 0), self._fetch_and_add(FAILED, 0)

    def drive_progress(self) -> None:
        """Let the MPI library serve the other ranks; called between batches, as some transports need it."""

    # -- collective calls: every rank must make them, in the same order ------------------------------------------

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of ranks, on every rank."""
        return [value]

    def gather_on_first(self, value: T) -> list[T] | None:
        """Return the values of all ranks on rank 0, None elsewhere."""
        return [value]

    def reduce_on_first(self, value: T, merge: Callable[[T, T], T]) -> T | None:
        """Return the values of all ranks, merged in pairs, on rank 0, None elsewhere; no rank holds all at once.

        `merge` must be associative and commutative.
        """
        return value

    def run_on_all(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `step` on every rank and return this rank's value; if it fails on any rank, all ranks leave.

        The lowest rank on which it failed raises its error, the others raise `SilentExit`. A step may call
        `run_on_all` and `run_on_first` itself. No rank may fail between other collective calls of a step.
        """
        return step(*args, **kwargs)

    def run_on_first(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `step` on rank 0 and return its value on every rank; if it fails there, all ranks leave."""
        return step(*args, **kwargs)

    def abort(self, code: int) -> None:
        """End all ranks now, with this exit code."""
        sys.exit(code)

    def close(self) -> None:
        """Free the shared counters; every rank must call it."""


def collective(step: Callable[Concatenate[Communicator, P], T]) -> Callable[Concatenate[Communicator, P], T]:
    """Decorate a step whose first argument is the communicator: an error on one rank makes all ranks leave together.

    `@collective def open_input(comm, path)` is then called as `open_input(comm, path)` on every rank; see `run_on_all`.
    """

    @functools.wraps(step)
    def run(comm: Communicator, *args: P.args, **kwargs: P.kwargs) -> T:
        return comm.run_on_all(step, comm, *args, **kwargs)

    return run


class MpiCommunicator(Communicator):
    """The ranks of an MPI communicator."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        super().__init__()
        self._mpi = MPI
        self.comm = comm
        self.rank, self.size = comm.rank, comm.size
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = node.rank, node.size
        node.Free()
        self._window = MPI.Win.Allocate(8 * SLOTS if self.rank == 0 else 0, 8, comm=comm)
        if self.rank == 0:
            counters: Any = self._window.tomemory()
            np.frombuffer(counters, np.int64)[:] = 0
        comm.Barrier()
        self._window.Lock_all(MPI.MODE_NOCHECK)

    def _fetch_and_add(self, slot: int, amount: int) -> int:
        given, before = np.array([amount], np.int64), np.zeros(1, np.int64)
        mpi = self._mpi
        self._window.Fetch_and_op([given, mpi.INT64_T], [before, mpi.INT64_T], 0, slot, mpi.SUM)
        self._window.Flush(0)
        return int(before[0])

    def drive_progress(self) -> None:
        """See `Communicator.drive_progress`."""
        self.comm.Iprobe()

    def all_gather(self, value: T) -> list[T]:
        """See `Communicator.all_gather`."""
        return self.comm.allgather(value)

    def gather_on_first(self, value: T) -> list[T] | None:
        """See `Communicator.gather_on_first`."""
        return self.comm.gather(value)

    def reduce_on_first(self, value: T, merge: Callable[[T, T], T]) -> T | None:
        """See `Communicator.reduce_on_first`."""
        return self.comm.reduce(value, merge)

    def run_on_all(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Communicator.run_on_all`."""
        value: T | None = None
        error: Exception | None = None
        try:
            value = step(*args, **kwargs)
        except Exception as caught:  # of any kind: the other ranks wait in the exchange below
            if caught is self.shared_error:  # raised by a step within this one: all ranks are leaving already
                raise
            error = caught
        codes = self.all_gather(None if error is None else getattr(error, "exit_code", EXIT_ERROR))
        failed = [rank for rank, code in enumerate(codes) if code is not None]
        if not failed:
            return value  # type: ignore[return-value]
        if error is not None and self.rank == failed[0]:
            self.shared_error = error
            raise error
        raise SilentExit(codes[failed[0]])

    def run_on_first(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See `Communicator.run_on_first`."""
        value = self.run_on_all(lambda: step(*args, **kwargs) if self.rank == 0 else None)
        return self.comm.bcast(value)

    def abort(self, code: int) -> None:
        """See `Communicator.abort`."""
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(DRAIN_SECONDS)
        self.comm.Abort(code)
        os._exit(code)  # Abort may return before the launcher's signal arrives

    def close(self) -> None:
        """See `Communicator.close`."""
        self._window.Unlock_all()
        self._window.Free()


def connect_ranks(env: Mapping[str, str] | None = None) -> Communicator:
    """Connect this process to the other ranks that a launcher started, and return the communicator of all.

    env : the environment that describes the launcher; None means this process's own.

    Raises
    ------
    AtomSieveError
        if a launcher started several processes that do not see each other: each would do all the work.
    """
    world = open_mpi_world(detect_launcher(os.environ if env is None else env))
    return Communicator() if world is None else MpiCommunicator(world)


def open_mpi_world(launch: Launch) -> Any:
    """Return MPI's world communicator (of mpi4py), None for a process alone; MPI is loaded for several alone.

    Raises
    ------
    AtomSieveError
        if a launcher started several processes that do not see each other by MPI. On all ranks but the first
        `SilentExit` is raised instead, so that the error is printed once.
    """
    if launch.is_alone:
        return None
    started = f"a launcher ({launch.launcher}) started {_count_processes(launch)}"
    if launch.launcher == "torchrun":
        _exit_unless_first(launch)
        raise AtomSieveError(
            f"{started}, but this command connects its processes by MPI, and every one would do all the work; start it "
            f"with {_find_mpirun()}"
        )
    if launch.pmix and (lacking := _find_library_without_pmix()):
        _exit_unless_first(launch)
        raise AtomSieveError(
            f"{started} and connects them by PMIx, which the MPI library ({lacking}) does not know; start it with "
            f"{_find_mpirun()} or by srun --mpi=pmi2, or set MPI4PY_LIBMPI to a libmpi.so with PMIx"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a launcher of another MPI, reported below
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        _exit_unless_first(launch)
        raise AtomSieveError(
            f"{started}, but mpi4py finds no MPI library ({str(error).splitlines()[0]}); pip install 'atomsieve[mpi]' "
            f"and start with {_find_mpirun()}, or set MPI4PY_LIBMPI to the launcher's libmpi.so"
        ) from error
    if MPI.COMM_WORLD.size > 1:
        return MPI.COMM_WORLD
    if launch.at_least == 1:  # rank 0 of an unknown number: the library is the only source
        return None
    _exit_unless_first(launch)
    library = MPI.Get_library_version().split("\n")[0].strip("\x00 ")
    raise AtomSieveError(
        f"{started}, but the MPI library ({library}) sees 1: launcher and library are of different MPIs, and every "
        f"process would do all the work; start with {_find_mpirun()} (the library's own){_srun_remedy(launch)}, "
        "or set MPI4PY_LIBMPI to the launcher's libmpi.so"
    )


def _find_library_without_pmix() -> str | None:
    """Return the name of the MPI library if it is an MPICH built without PMIx, else None.

    Such a library aborts the process when it is initialized. Its version can be read before that, but once mpi4py is
    imported so, this process cannot initialize it as usual: a process of its own asks.
    """
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    text = asked.stdout.strip("\x00 \n")
    if asked.returncode or not text.startswith("MPICH Version") or "pmix" in text.lower():
        return None
    return " ".join(text.splitlines()[0].replace("Version:", "").split())


def _count_processes(launch: Launch) -> str:
    if launch.size is None and launch.at_least == 1:
        return "an unknown number of processes"
    return f"{launch.size} processes" if launch.size else f"at least {launch.at_least} processes"


def _find_mpirun() -> str:
    """Return the mpirun of the MPI library in use: that of this Python environment, if it has one."""
    own = Path(sys.executable).parent / "mpirun"
    return str(own) if own.exists() else shutil.which("mpirun") or "mpirun"


def _srun_remedy(launch: Launch) -> str:
    named = "srun --mpi=pmi2 (MPICH, Intel, Cray) or --mpi=pmix (Open MPI)"
    return f", or with {named} as the library needs it" if launch.launcher == "srun" else ""


def _exit_unless_first(launch: Launch) -> None:
    """Raise `SilentExit` on all launched processes but the first, so that an error is printed once."""
    if launch.rank:
        raise SilentExit(EXIT_ERROR)


def _no_translation(error: BaseException) -> AtomSieveError | None:
    return None


@contextmanager
def guard_ranks(
    comm: Communicator, translate_error: Callable[[BaseException], AtomSieveError | None] = _no_translation
) -> Iterator[None]:
    """Run the body of a job on every rank: report an error once, and end every rank with its exit code.

    An error of one rank outside of `run_on_all` aborts the job, because the other ranks would wait for ever. A process
    alone raises the error. If all ranks leave together, the communicator is closed.

    translate_error : returns the error to report instead of its argument (a lost GPU, for instance), or None.
    """
    try:
        yield
    except SilentExit:
        comm.close()
        raise
    except BaseException as error:
        if error is not comm.shared_error and not isinstance(error, AtomSieveError):
            with suppress(Exception):  # of any kind: whatever the log does, the ranks must be ended
                comm.save_traceback("".join(traceback.format_exception(error)))
        translated = translate_error(error)
        if comm.size == 1:
            if translated is None:
                raise
            raise translated from error
        _end_ranks(comm, translated or error)
    else:
        comm.close()


def _end_ranks(comm: Communicator, error: BaseException) -> None:
    """Print the error of this rank and end it: with all others if they are leaving too, else by aborting them."""
    known = isinstance(error, AtomSieveError)
    text = str(error) if known else f"{type(error).__name__}: {error or 'no message'}"
    code = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", EXIT_ERROR)
    log.debug("rank %d", comm.rank, exc_info=error)
    if error is comm.shared_error:
        label = "interrupted" if isinstance(error, Interrupted) else "error"
        print(f"{label}: {text}", file=sys.stderr, flush=True)
        comm.close()
        raise SilentExit(code) from error
    print(f"error: rank {comm.rank} of {comm.size}: {text}", file=sys.stderr, flush=True)
    comm.abort(code)
