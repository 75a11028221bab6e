"""How a phase of a run speaks to people and to the event log; silent on all ranks but the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atomsieve.runs.events import EventLog

if TYPE_CHECKING:
    from rich.console import Console


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
