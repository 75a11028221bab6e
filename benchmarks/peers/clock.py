"""The time of a peer's training: processor seconds of its process, and what follows from them. Needs no other package.

Programs of peers import this file from the folder beside them, in environments that do not have this package.
"""

from __future__ import annotations

import math
import time


class TimeIsUp(Exception):  # noqa: N818
    """The processor time of a training is used."""


class Clock:
    """Counts processor seconds of this process from the end of its `free` first steps (compilation, warming up)."""

    def __init__(self, seconds: float, free: int = 5) -> None:
        self.seconds, self.free = seconds, free
        self.steps = 0
        self.structures = 0
        self._began = math.nan

    @property
    def used(self) -> float:
        """Processor seconds used so far."""
        return time.process_time() - self._began if self.steps >= self.free else 0.0

    @property
    def part(self) -> float:
        """Used part of the time, 0 to 1."""
        return min(self.used / self.seconds, 1.0)

    def count(self, structures: int) -> None:
        """Count a step that is done."""
        self.steps += 1
        if self.steps == self.free:
            self._began = time.process_time()
        if self.steps > self.free:
            self.structures += structures

    def check(self) -> None:
        """Raise TimeIsUp if the time is used."""
        if self.part >= 1:
            raise TimeIsUp


def cosine_factor(part: float, warmup: float = 0.01, end: float = 0.01) -> float:
    """Return the learning rate over its highest value: a straight rise, then half a cosine down to `end`."""
    if part < warmup:
        return max(part / warmup, 1e-3)
    done = (part - warmup) / (1 - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
