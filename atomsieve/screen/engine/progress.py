"""The progress of a run for people and for its log: a progress bar or plain lines, and JSON events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atomsieve.screen.engine.reporter import Reporter
from atomsieve.text import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS = 5.0
LOG_SECONDS = 10.0


class ProgressView:
    """Shows structures done, per second, time left and failures: a live bar on a terminal, else a line now and then.

    Parameters
    ----------
    reporter : where to show it, and the log that gets a `progress` event every ten seconds.
    total, done : structures to screen, and those that earlier runs have done.
    measure : returns more facts for that event.
    """

    def __init__(self, reporter: Reporter, total: int, done: int, measure: Callable[[], dict[str, Any]] = dict) -> None:
        self._console, self._log = reporter.console, reporter.log
        self._total, self._before, self._measure = total, done, measure
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
        text = self._format(done, failed, rate)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._before + done, said=text)
            self._shown = now
        elif self._console is not None and (now - self._shown > LINE_SECONDS or last):
            self._console.print(f"screening: {text}", highlight=False)
            self._shown = now
        if self._log is not None and (now - self._logged > LOG_SECONDS or last):
            self._log(
                "progress",
                done=self._before + done,
                total=self._total,
                failed=failed,
                left=left,
                per_second=round(rate, 1),
                **self._measure(),
            )
            self._logged = now

    def _format(self, done: int, failed: int, rate: float) -> str:
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
