"""Refuses to compute in a forked process in which GNU OpenMP would wait for ever for threads that only its parent has.

Measured with torch 2.13 on Linux: a thread that has computed on 2 threads or more and then forks leaves a child that
hangs in its first computation on 2 threads or more. A child on one thread works, and so do a child of a parent that
computed on one thread or in another Python thread, a new thread in the child, and processes that are spawned.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from atomsieve.errors import UsageError


class _Started(threading.local):
    """The process in which this Python thread first computed on several threads: OpenMP keeps a pool for each."""

    process: int | None = None


_started = _Started()


def check_fork() -> None:
    """Note that this thread is about to compute; call it before the first kernel.

    Raises
    ------
    UsageError
        if its pool of threads was left in the process from which this one was forked.
    """
    import torch

    threads = torch.get_num_threads()
    if threads < 2:
        return
    if _started.process is None:
        _started.process = os.getpid()
    elif _started.process != os.getpid() and _has_gnu_openmp():
        raise UsageError(
            "this process was forked from one that had computed on several threads, and would wait for ever for them "
            f"(torch uses {threads} threads here); start workers by spawn or forkserver, as "
            "multiprocessing.get_context('spawn') does, or compute on one thread: torch.set_num_threads(1) first in "
            "each worker, or OMP_NUM_THREADS=1 before Python starts"
        )


def _has_gnu_openmp() -> bool:
    """Return whether GNU OpenMP is loaded; the OpenMP libraries of LLVM and Intel start anew in a forked process."""
    return sys.platform == "linux" and "libgomp" in Path("/proc/self/maps").read_text()
