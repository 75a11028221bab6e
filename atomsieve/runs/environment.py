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
"""`pid:NAME,NAME`: the process that was started again, and what was set for it. Children inherit the mark with a
foreign pid, which tells them that these values are not the user's."""


def local_ranks(environ: dict[str, str]) -> int:
    """Return the number of ranks of this job on this machine, 1 where no launcher tells it."""
    return detect_launcher(environ).local_size or 1


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


def missing_variables(environ: dict[str, str]) -> dict[str, str]:
    """Return what must still be set for this process; what the user has set is left out.

    What only an ancestor's launcher had set is decided anew: a rank under `mpirun` needs fewer threads than the command
    that called `mpirun`.
    """
    inherited = _set_by_ancestor(environ)
    wanted = dict(ALLOCATOR) if _is_glibc() else {}
    wanted["OMP_NUM_THREADS"] = str(cores_per_rank(environ))
    return {name: value for name, value in wanted.items() if name not in environ or name in inherited}


def restore_user_environment(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment without what the launcher set: the one to give to programs that are not ours."""
    ours = _set_by_ancestor(environ) | {MARK}
    return {name: value for name, value in environ.items() if name not in ours}


def drop_own_threads(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment without a number of threads that the launcher set.

    That is for programs which share the cores out among processes of their own.
    """
    ours = _set_by_ancestor(environ)
    return {name: value for name, value in environ.items() if name != "OMP_NUM_THREADS" or name not in ours}


def format_environment(environ: dict[str, str]) -> str:
    """Return one line for `--debug`: what was set here, and what the user's environment already had."""
    ours = _set_by_ancestor(environ)
    names = [*ALLOCATOR, "OMP_NUM_THREADS"]
    said = [f"{n}={environ[n]}" + ("" if n in ours else " (yours)") for n in names if n in environ]
    return f"launcher: {' '.join(said) or 'nothing set'}; {local_ranks(environ)} rank(s) on this machine"
