"""How a phase of a run speaks to people and to the event log; silent on all ranks but the first."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.screen.results.disk_errors import disk_errors

if TYPE_CHECKING:
    from rich.console import Console


class EventLog:
    """Appends JSON lines `{"time": ..., "event": ..., ...}` to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: str, **fields: Any) -> None:
        """Write one event."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **fields}) + "\n"
        with disk_errors(self.path.parent), open(self.path, "a") as file:
            file.write(line)


@dataclass(frozen=True)
class Reporter:
    """Prints lines and records events.

    console : where lines are printed; None prints nothing. log : where events go; None records nothing.
    """

    console: Console | None = None
    log: EventLog | None = None

    def show(self, *lines: str) -> None:
        """Print lines, each as it is: never wrapped, no markup."""
        if self.console is not None:
            for line in lines:
                self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def record(self, event: str, **facts: Any) -> None:
        """Append an event to the log."""
        if self.log is not None:
            self.log(event, **facts)
