"""The event log of a long job: one JSON object a line, with its time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from atomsieve.runs.output_files import disk_errors


class EventLog:
    """Appends JSON lines `{"time": ..., "event": ..., ...}` to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: str, **fields: Any) -> None:
        """Append one event; `fields` are plain data."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **fields}) + "\n"
        with disk_errors(self.path.parent), open(self.path, "a") as file:
            file.write(line)
