"""The processes of one run: one alone, or the ranks of an MPI job, behind the same few verbs.

Chunks are handed out by an atomic counter in a window on rank 0, so no rank is lost to being a master. mpi4py is
imported only when a launcher started several processes.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import EXIT_ERROR, EXIT_INTERRUPTED, AtomSieveError, Interrupted

log = logging.getLogger(__name__)
T = TypeVar("T")

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
"""What launchers tell their processes: Open MPI, MPICH (and Intel, Cray), MVAPICH, PMIx, Slurm's srun."""

NEXT, DONE, FAILED, HALTED, QUEUES, SLOTS = 0, 1, 2, 3, 4, 4 + 4096  # places of the shared board, int64
DRAIN = 0.5  # seconds for the launcher to pass on what a rank said: an abort drops what is still in its pipes
STOPPED = 1 << 60  # added to NEXT: nothing is handed out after it


class Agreed(SystemExit):
    """Leaves a rank quietly: all ranks know of the error, and one of them reports it."""


class Team:
    """One process alone; `MpiTeam` is the same for several."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def __init__(self) -> None:
        self._board = np.zeros(SLOTS, np.int64)
        self.agreed: BaseException | None = None  # an error that every rank knows of
        self.record: Callable[[str], None] = lambda text: None  # where the traceback of a fatal error is kept

    # -- the shared board ----------------------------------------------------------------------------------------

    def _add(self, slot: int, amount: int) -> int:
        """Add to a place of the board, atomically; return what was there before."""
        before = int(self._board[slot])
        self._board[slot] += amount
        return before

    def claims(self, todo: Sequence[int], queue: NDArray[np.int64] | None = None, own: int = 0) -> Iterator[int]:
        """Yield chunks of `todo` (the same on every rank) that no other rank got, until none is left or `stop`.

        queue : [len(todo)], the queue in which each chunk waits, below `SLOTS - QUEUES`; the same on every rank. None
            means one queue. own : the queue that this rank works on first; then it helps with the others.
        """
        if queue is None:
            while (turn := self._add(NEXT, 1)) < len(todo):
                yield int(todo[turn])
            return
        waiting = [np.flatnonzero(queue == q) for q in range(int(queue.max(initial=0)) + 1)]
        order = deque([own % len(waiting), *(q % len(waiting) for q in range(own + 1, own + len(waiting)))])
        while self._add(NEXT, 1) < len(todo):  # a permit: somewhere one is left for each that is given
            while (turn := self._add(QUEUES + order[0], 1)) >= len(waiting[order[0]]):
                order.popleft()
            yield int(todo[waiting[order[0]][turn]])

    def again(self) -> None:
        """Let the next `claims`, of one queue, begin anew; every rank must call it, when no claims are at hand."""
        self.gather(None)
        if self.rank == 0:
            for slot in (NEXT, HALTED):
                self._add(slot, -self._add(slot, 0))
        self.gather(None)

    def stop(self) -> None:
        """Hand out no more chunks, to any rank."""
        if self._add(HALTED, 1) == 0:  # once for all ranks: a few more would be too much for 64 bits
            self._add(NEXT, STOPPED)

    def report(self, done: int, failed: int) -> None:
        """Count structures as done, and some of them as failed."""
        self._add(DONE, done)
        self._add(FAILED, failed)

    def totals(self) -> tuple[int, int]:
        """Return the structures done and failed so far in this run, on all ranks."""
        return self._add(DONE, 0), self._add(FAILED, 0)

    def poke(self) -> None:
        """Let the MPI library serve the other ranks; called between batches, as some transports need it."""

    # -- agreement -----------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, on every rank."""
        return [value]

    def collect(self, value: T) -> list[T] | None:
        """Return the values of all ranks on rank 0, None elsewhere."""
        return [value]

    def merged(self, value: T, merge: Callable[[T, T], T]) -> T | None:
        """Return the values of all ranks merged two and two on rank 0, None elsewhere; no rank holds all at once.

        `merge` must give the same whatever the order.
        """
        return value

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank; if it fails on any, all leave: the lowest rank that failed raises its error."""
        return work()

    def first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its value on every rank; if it fails there, all ranks leave."""
        return work()

    def abort(self, code: int) -> None:
        """End all ranks now."""
        sys.exit(code)

    def close(self) -> None:
        """Give the shared board back; every rank must call it."""


class MpiTeam(Team):
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
            board: Any = self._window.tomemory()
            np.frombuffer(board, np.int64)[:] = 0
        comm.Barrier()
        self._window.Lock_all(MPI.MODE_NOCHECK)

    def _add(self, slot: int, amount: int) -> int:
        given, before = np.array([amount], np.int64), np.zeros(1, np.int64)
        mpi = self._mpi
        self._window.Fetch_and_op([given, mpi.INT64_T], [before, mpi.INT64_T], 0, slot, mpi.SUM)
        self._window.Flush(0)
        return int(before[0])

    def poke(self) -> None:
        """See `Team.poke`."""
        self.comm.Iprobe()

    def gather(self, value: T) -> list[T]:
        """See `Team.gather`."""
        return self.comm.allgather(value)  # type: ignore[no-any-return]

    def collect(self, value: T) -> list[T] | None:
        """See `Team.collect`."""
        return self.comm.gather(value)  # type: ignore[no-any-return]

    def merged(self, value: T, merge: Callable[[T, T], T]) -> T | None:
        """See `Team.merged`."""
        return self.comm.reduce(value, merge)  # type: ignore[no-any-return]

    def together(self, work: Callable[[], T]) -> T:
        """See `Team.together`."""
        value: T | None = None
        error: Exception | None = None
        try:
            value = work()
        except Exception as caught:  # every kind: the other ranks are waiting to be told
            error = caught
        codes = self.gather(None if error is None else getattr(error, "exit_code", EXIT_ERROR))
        failed = [rank for rank, code in enumerate(codes) if code is not None]
        if not failed:
            return value  # type: ignore[return-value]
        if error is not None and self.rank == failed[0]:
            self.agreed = error
            raise error
        raise Agreed(codes[failed[0]])

    def first(self, work: Callable[[], T]) -> T:
        """See `Team.first`."""
        value = self.together(lambda: work() if self.rank == 0 else None)
        return self.comm.bcast(value)  # type: ignore[no-any-return]

    def abort(self, code: int) -> None:
        """See `Team.abort`."""
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(DRAIN)
        self.comm.Abort(code)
        os._exit(code)  # Abort may return before the launcher's signal arrives

    def close(self) -> None:
        """See `Team.close`."""
        self._window.Unlock_all()
        self._window.Free()


def launched(env: Mapping[str, str]) -> tuple[int, int]:
    """Return (rank, number of processes) as the launcher's environment tells them; (0, 1) without a launcher."""

    def number(names: Sequence[str], otherwise: int) -> int:
        found = [int(env[name]) for name in names if env.get(name, "").isdigit()]
        return max(found, default=otherwise)

    size = number(SIZE_VARIABLES, 1)
    return (number(RANK_VARIABLES, 0) if size > 1 else 0), size


def connect(env: Mapping[str, str] | None = None) -> Team:
    """Return the team that this process belongs to.

    Raises
    ------
    AtomSieveError
        if a launcher started several processes and the MPI library does not see them: each would do all the work.
    """
    rank, size = launched(os.environ if env is None else env)
    if size == 1:
        return Team()
    beside = Path(sys.executable).parent / "mpirun"
    launcher = str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a launcher of another MPI, which is told below
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        _only_on_first(rank)
        raise AtomSieveError(
            f"a launcher started {size} processes, but mpi4py finds no MPI library ({str(error).splitlines()[0]}); "
            f"pip install 'atomsieve[mpi]' and start with {launcher}, or set MPI4PY_LIBMPI to the launcher's libmpi.so"
        ) from error
    if MPI.COMM_WORLD.size == 1:
        _only_on_first(rank)
        library = MPI.Get_library_version().split("\n")[0].strip("\x00 ")
        raise AtomSieveError(
            f"a launcher started {size} processes, but the MPI library ({library}) sees 1: launcher and library are of "
            f"different MPIs, and every process would do all the work; start with {launcher} (the library's own), or "
            "set MPI4PY_LIBMPI to the launcher's libmpi.so"
        )
    return MpiTeam(MPI.COMM_WORLD)


def _only_on_first(rank: int) -> None:
    """Leave quietly on all but the first of the launched processes, so that an error is told once."""
    if rank > 0:
        raise Agreed(EXIT_ERROR)


@contextmanager
def guarded(team: Team) -> Iterator[None]:
    """Tell of an error once and end every rank with its exit code.

    What only this rank knows of ends the job at once; without it the other ranks would wait for ever. A process alone
    simply raises. Where all ranks leave together, the team is closed.
    """
    try:
        yield
    except Agreed:
        team.close()
        raise
    except BaseException as error:
        if error is not team.agreed and not isinstance(error, AtomSieveError):
            with suppress(Exception):  # every kind: whatever the log does, the ranks must be ended
                team.record("".join(traceback.format_exception(error)))
        from atomsieve.screen.failures import translate_loss

        lost = translate_loss(error)  # a dead peer or GPU: the job may be started again
        if team.size == 1:
            if lost is None:
                raise
            raise lost from error
        error = lost or error
        known = isinstance(error, AtomSieveError)
        text = str(error) if known else f"{type(error).__name__}: {error or 'no message'}"
        code = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", EXIT_ERROR)
        log.debug("rank %d", team.rank, exc_info=error)
        if error is team.agreed:
            told = f"interrupted: {text}" if isinstance(error, Interrupted) else f"error: {text}"
            print(told, file=sys.stderr, flush=True)
            team.close()
            raise Agreed(code) from error
        print(f"error: rank {team.rank} of {team.size}: {text}", file=sys.stderr, flush=True)
        team.abort(code)
    else:
        team.close()
