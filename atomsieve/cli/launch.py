"""Console entry points: put right what a process cannot change about itself later, then hand over to the commands.

Two things must be in the environment before the interpreter starts. glibc's allocator gives large blocks back to the
kernel at every free, and inference on a CPU then spends most of its time in page faults. And OpenMP fixes its threads
once, so several ranks on one machine would each take every core. So the entry points start the same interpreter once
more, in the same process, with these variables set. A value that the user has set is never changed.

Only `os` and `sys` are imported here: a command that is only asked for its help pays nothing.
"""

from __future__ import annotations

import os
import sys

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "67108864"}
"""Keep freed memory in the process; grow it 64 MiB at a time (each rank of a job pays at most one such step)."""

LOCAL_RANKS = (
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMI_LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "SLURM_STEP_TASKS_PER_NODE",
)
"""Where MPICH, Open MPI, PMI, torchrun and srun say how many ranks this machine runs."""

MARK = "ATOMSIEVE_LAUNCHED"
"""`pid:NAME,NAME`: the process that was started again, and what was set for it. Children inherit the mark with a
foreign pid, which tells them that these values are not the user's."""

LIGHT = {"--help", "--version", "-h"}


def local_ranks(environ: dict[str, str]) -> int:
    """Return the number of ranks of this job on this machine, 1 where no launcher says otherwise."""
    for name in LOCAL_RANKS:
        digits = environ.get(name, "").split("(")[0].split(",")[0]
        if digits.isdigit() and int(digits) > 0:
            return int(digits)
    return 1


def cores_per_rank(environ: dict[str, str]) -> int:
    """Return the cores that this rank may use: its own where the launcher bound it, else an equal share."""
    ranks = local_ranks(environ)
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 1) // ranks)
    own = os.sched_getaffinity(0)
    try:
        parents = os.sched_getaffinity(os.getppid())
    except OSError:
        parents = own
    bound = own < parents
    return max(1, len(own) if bound else len(own) // ranks)


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):
        return False


def _set_by_ancestor(environ: dict[str, str]) -> set[str]:
    return set(filter(None, environ.get(MARK, "").partition(":")[2].split(",")))


def prepared(environ: dict[str, str]) -> dict[str, str]:
    """Return what must still be set for this process; what the user has set is left out.

    What only an ancestor's launcher had set is decided anew: a rank under `mpirun` needs fewer threads than the command
    that called `mpirun`.
    """
    inherited = _set_by_ancestor(environ)
    wanted = dict(ALLOCATOR) if _is_glibc() else {}
    wanted["OMP_NUM_THREADS"] = str(cores_per_rank(environ))
    return {name: value for name, value in wanted.items() if name not in environ or name in inherited}


def users_environment(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment without what the launcher set: the one to give to programs that are not ours."""
    ours = _set_by_ancestor(environ) | {MARK}
    return {name: value for name, value in environ.items() if name not in ours}


def without_own_threads(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment without a number of threads that the launcher set.

    That is for programs which share the cores out among processes of their own.
    """
    ours = _set_by_ancestor(environ)
    return {name: value for name, value in environ.items() if name != "OMP_NUM_THREADS" or name not in ours}


def relaunch() -> None:
    """Start this interpreter again with what it lacks; return where nothing is lacking or this is the second start."""
    environ = dict(os.environ)
    pid = environ.get(MARK, "").partition(":")[0]
    if pid == str(os.getpid()) or not sys.executable or LIGHT & set(sys.argv[1:]) or len(sys.argv) == 1:
        return
    wanted = prepared(environ)
    if not wanted:
        return
    environ |= wanted
    environ[MARK] = f"{os.getpid()}:{','.join(sorted(wanted))}"
    sys.stdout.flush()
    sys.stderr.flush()
    # The same process goes on: descriptors such as the one named by PMI_FD stay open, and so does its process id.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606


def described(environ: dict[str, str]) -> str:
    """Return one line for `--debug`: what was set here, and what the user's environment already had."""
    ours = _set_by_ancestor(environ)
    names = [*ALLOCATOR, "OMP_NUM_THREADS"]
    said = [f"{n}={environ[n]}" + ("" if n in ours else " (yours)") for n in names if n in environ]
    return f"launcher: {' '.join(said) or 'nothing set'}; {local_ranks(environ)} rank(s) on this machine"


def atomsieve() -> int:
    """Run the `atomsieve` command."""
    relaunch()
    from atomsieve.cli.main import run

    return run("atomsieve")


def screen() -> int:
    """Run the `screen` command: `atomsieve screen` under the short name."""
    relaunch()
    from atomsieve.cli.main import run

    return run("screen")
