"""Ctrl-C and SIGTERM: a request to stop at a safe moment instead of an exception in the middle of a write.

A long job runs in `with StopRequest() as stop:` and reads `stop.requested` between two steps whose results are saved.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
TWICE = 1.0
"""Seconds within which two Ctrl-C count as one: under a launcher one can come from the terminal and forwarded."""
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class StopRequest:
    """Context manager that records Ctrl-C and SIGTERM.

    After Ctrl-C the job leaves at the end of its current batch; a second Ctrl-C, more than a second later, raises
    KeyboardInterrupt as usual. After SIGTERM, which batch systems send at the end of wall time, the job begins no other
    chunk and finishes its current one, unless that takes longer than `grace` seconds.

    Attributes
    ----------
    grace : seconds between SIGTERM and the moment to leave with a chunk unfinished.
    on_signal : called at the first signal, between two instructions of the main thread; it must be fast and not raise.
    """

    def __init__(self, grace: float = 0.0) -> None:
        self.grace = grace
        self.on_signal: Callable[[], None] = lambda: None
        self._interrupted: float | None = None
        self._terminated: float | None = None
        self._before: dict[int, Any] = {}

    @property
    def closing(self) -> bool:
        """True once a signal came: the job begins no further chunk."""
        return self._interrupted is not None or self._terminated is not None

    @property
    def requested(self) -> bool:
        """True once the job has to leave at the end of its current batch."""
        if self._interrupted is not None:
            return True
        return self._terminated is not None and time.monotonic() - self._terminated >= self.grace

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._record)
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.closing:
            self.on_signal()
        if number == signal.SIGTERM:
            self._terminated = now if self._terminated is None else self._terminated
        elif self._interrupted is None:
            self._interrupted = now
        elif now - self._interrupted > TWICE:
            raise KeyboardInterrupt

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def block_signals() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM while a process is started: the new process ignores them from its first instruction.

    Batch systems send these signals to every process of a job. A rank ends the processes that it started itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a new process begins with this thread's mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(parent: int, number: int) -> None:
    """Let the kernel send the signal `number` to this process when its parent ends (Linux only).

    parent : process id of the parent. If it has ended already, this process sends the signal to itself.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(SET_DEATH_SIGNAL, int(number))
    if os.getppid() != parent:  # it ended before prctl
        os.kill(os.getpid(), number)
