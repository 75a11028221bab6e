"""Ctrl-C and SIGTERM as a request to stop at a good moment, not as an exception in the middle of a write."""

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

WATCHED = (signal.SIGINT, signal.SIGTERM)
TWICE = 1.0
"""Seconds within which two Ctrl-C count as one: under a launcher one can come from the terminal and forwarded."""
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class StopRequest:
    """Context manager that notes signals.

    Ctrl-C asks to leave after the batch at hand, and a second one a second later ends the process as usual. SIGTERM, as
    at the end of wall time, asks to finish the chunk at hand: to begin no other one, and to leave after the batch at
    hand only once `grace` seconds have passed.

    Attributes
    ----------
    grace : seconds between SIGTERM and the moment to leave with a chunk unfinished.
    heard : called at the first signal, between two instructions of the main thread; it must be quick and never raise.
    """

    def __init__(self, grace: float = 0.0) -> None:
        self.grace = grace
        self.heard: Callable[[], None] = lambda: None
        self._interrupted: float | None = None
        self._terminated: float | None = None
        self._before: dict[int, Any] = {}

    @property
    def closing(self) -> bool:
        """True once a signal came: no further chunk is begun."""
        return self._interrupted is not None or self._terminated is not None

    @property
    def requested(self) -> bool:
        """True once it is time to leave after the batch at hand."""
        if self._interrupted is not None:
            return True
        return self._terminated is not None and time.monotonic() - self._terminated >= self.grace

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in WATCHED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.closing:
            self.heard()
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
def unheard() -> Iterator[None]:
    """Start a process in here that does not hear Ctrl-C and SIGTERM from its first moment on.

    Batch systems send them to every process of a job. What is started by a rank is ended by the rank.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)  # a new process begins with this thread's mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow(parent: int, number: int) -> None:
    """Have the kernel send this process `number` when `parent` ends, so that it does not go on alone (Linux only).

    parent : process id of the process that started this one.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(SET_DEATH_SIGNAL, int(number))
    if os.getppid() != parent:  # it ended before it could be followed
        os.kill(os.getpid(), number)
