"""Environment variables that a process needs before its interpreter starts: glibc's allocator and OpenMP's threads.

glibc's allocator returns large blocks to the kernel at every free, and inference on a CPU then spends most of its time
in page faults. OpenMP fixes its number of threads once, so several ranks of one machine would each take every core.

Nothing heavy is imported here: the entry points of the commands call these functions before anything else is loaded.
"""

from __future__ import annotations

import os

from atomsieve.runs.launcher import detect_launcher

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "67108864"}
"""Keep freed memory in the process; grow it 64 MiB at a time (each rank of a job pays at most one such step)."""

MARK = "ATOMSIEVE_LAUNCHED"
"""Variable with the value `pid:NAME,NAME`: the process that was started again, and the variables set for it. A child
process inherits it with the pid of its parent, and so knows that these values are not the user's."""


def count_local_ranks(environ: dict[str, str]) -> int:
    """Return the number of ranks of this job on this machine, 1 if no launcher sets it."""
    return detect_launcher(environ).local_size or 1


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_own_cores(environ: dict[str, str]) -> int:
    """Return the number of cores for this rank: those it is bound to if the launcher bound it, else an equal share."""
    ranks = count_local_ranks(environ)
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


def _read_mark(environ: dict[str, str]) -> set[str]:
    """Return the names of the variables that AtomSieve set, in this process or in a parent."""
    return set(filter(None, environ.get(MARK, "").partition(":")[2].split(",")))


def find_missing_variables(environ: dict[str, str]) -> dict[str, str]:
    """Return the variables that this process still needs, but for those that the user has set.

    Variables that AtomSieve set in a parent process are computed again: a rank under `mpirun` needs fewer threads than
    the command that called `mpirun`.
    """
    inherited = _read_mark(environ)
    wanted = dict(ALLOCATOR) if _is_glibc() else {}
    wanted["OMP_NUM_THREADS"] = str(count_own_cores(environ))
    return {name: value for name, value in wanted.items() if name not in environ or name in inherited}


def restore_user_environment(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment as the user set it, without our variables, for programs other than AtomSieve."""
    ours = _read_mark(environ) | {MARK}
    return {name: value for name, value in environ.items() if name not in ours}


def drop_own_threads(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment without OMP_NUM_THREADS, if AtomSieve set it and not the user.

    This is for programs that divide the cores among processes of their own.
    """
    ours = _read_mark(environ)
    return {name: value for name, value in environ.items() if name != "OMP_NUM_THREADS" or name not in ours}


def format_environment(environ: dict[str, str]) -> str:
    """Return one line for `--debug`: the variables in force, and which of them the user set."""
    ours = _read_mark(environ)
    names = [*ALLOCATOR, "OMP_NUM_THREADS"]
    shown = [f"{n}={environ[n]}" + ("" if n in ours else " (yours)") for n in names if n in environ]
    return f"launcher: {' '.join(shown) or 'nothing set'}; {count_local_ranks(environ)} rank(s) on this machine"
