"""What people see and what the log keeps of a run: a progress bar or plain lines, JSON events, time per stage."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.screen.results.disk_errors import disk_errors
from atomsieve.text import format_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LINE_SECONDS = 5.0
LOG_SECONDS = 10.0


class Clock:
    """Sums the time of each stage: `with clock("read"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time inside to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


class EventLog:
    """Appends JSON lines `{"time": ..., "event": ..., ...}` to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: str, **fields: Any) -> None:
        """Write one event."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **fields}) + "\n"
        with disk_errors(self.path.parent), open(self.path, "a") as file:
            file.write(line)


class ProgressView:
    """Shows structures done, per second, time left and failures: a live bar on a terminal, else a line now and then.

    Parameters
    ----------
    console : where to show it; None shows nothing (all ranks but the first).
    total, done : structures to screen, and how many earlier runs have done.
    log : gets a `progress` event every ten seconds; None on all ranks but the first.
    vitals : what else goes into that event.
    """

    def __init__(
        self,
        console: Console | None,
        total: int,
        done: int,
        log: EventLog | None,
        vitals: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._console, self._total, self._before, self._log, self._vitals = console, total, done, log, vitals
        self._start = self._shown = self._logged = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressView:
        if self._console is not None and self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("screening"), BarColumn(), TextColumn("{task.fields[said]}"), console=self._console
            )
            self._bar.add_task("", total=self._total, completed=self._before, said="starting")
            self._bar.start()
        return self

    @property
    def due(self) -> bool:
        """True if it is time to look at the totals again."""
        return self._log is not None and time.monotonic() - self._shown > 0.2

    def update(self, done: int, failed: int, *, last: bool = False) -> None:
        """Show the totals of this run so far."""
        now = time.monotonic()
        elapsed = max(now - self._start, 1e-9)
        rate, left = done / elapsed, self._total - self._before - done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._before + done, said=self._said(done, failed, rate))
            self._shown = now
        elif self._console is not None and (now - self._shown > LINE_SECONDS or last):
            self._console.print(f"screening: {self._said(done, failed, rate)}", highlight=False)
            self._shown = now
        if self._log is not None and (now - self._logged > LOG_SECONDS or last):
            self._log(
                "progress",
                done=self._before + done,
                total=self._total,
                failed=failed,
                left=left,
                per_second=round(rate, 1),
                **self._vitals(),
            )
            self._logged = now

    def _said(self, done: int, failed: int, rate: float) -> str:
        left = self._total - self._before - done
        parts = [f"{self._before + done:,} of {self._total:,}", f"{rate:,.0f} structures/s"]
        if left and done:
            parts.append(f"{format_duration(left / rate)} left")
        if failed:
            parts.append(f"{failed:,} failed")
        return ", ".join(parts)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
