"""Ctrl-C and SIGTERM as a request to stop at the next batch, not as an exception in the middle of a write."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context manager; `requested` turns true at the first signal; a Ctrl-C a second later ends the process as usual.

    (One Ctrl-C under a launcher can arrive twice: from the terminal and forwarded.)
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in WATCHED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > 1.0:
            raise KeyboardInterrupt

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
