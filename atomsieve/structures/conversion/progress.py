"""The progress of a conversion over all of its pieces, as a bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from atomsieve.structures.conversion.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console

PERIOD = 0.1


class ProgressBar:
    """Shows which part of the input is done, structures read per second, and how many were left out."""

    def __init__(self, bar: Any, plan: Plan, todo: list[int]) -> None:
        self._bar, self._weights = bar, {piece.number: max(piece.weight, 1) for piece in plan.pieces}
        self._total = float(sum(self._weights.values()))
        self._done = self._total - sum(self._weights[number] for number in todo)
        self._open: dict[int, tuple[float, int, int]] = {}
        self._read = self._skipped = 0
        self._start, self._last = time.monotonic(), 0.0
        self._task = None if bar is None else bar.add_task("", total=self._total, count="")

    def __call__(self, number: int, fraction: float, read: int, skipped: int) -> None:
        """Take note of a piece: the fraction done, structures read and skipped in it so far."""
        self._open[number] = (fraction, read, skipped)
        if fraction >= 1.0:
            del self._open[number]
            self._done += self._weights[number]
            self._read, self._skipped = self._read + read, self._skipped + skipped
        self.show(
            self._done + sum(self._weights[n] * f for n, (f, _, _) in self._open.items()),
            self._read + sum(r for _, r, _ in self._open.values()),
            self._skipped + sum(s for _, _, s in self._open.values()),
            now=fraction >= 1.0,
        )

    def show(self, done: float, read: int, skipped: int, *, now: bool = False) -> None:
        """Move the bar."""
        moment = time.monotonic()
        if self._bar is None or (moment - self._last < PERIOD and not now):
            return
        self._last = moment
        rate = read / max(moment - self._start, 1e-9)
        count = f"{read:,} structures, {rate:,.0f}/s, {skipped:,} skipped"
        self._bar.update(self._task, completed=done, count=count)

    def show_ranks(self, number: int, fraction: float, read: int, skipped: int) -> None:
        """Show the counts of all ranks; this one is at a piece, and those before it are done or begun by others."""
        before = sum(weight for other, weight in self._weights.items() if other < number)
        self.show(before + fraction * self._weights[number], read, skipped)


@contextmanager
def show_progress(console: Console | None, plan: Plan, todo: list[int]) -> Iterator[ProgressBar]:
    """Give the bar; it is drawn if there is a console on which somebody can see it."""
    if console is None:
        yield ProgressBar(None, plan, todo)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("converting"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[count]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        yield ProgressBar(bar, plan, todo)
