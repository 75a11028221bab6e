"""One log of a server, its models and its supervisor: JSON, one record a line, or text for people."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from atomsieve.errors import UsageError, unknown

FORMS = ("json", "text")
LEVELS = {"V": "debug", "I": "info", "W": "warning", "E": "error", "F": "error"}
SERVER_LINE = re.compile(r"(?:\S+Z |)(?P<level>[VIWEF])(?:\d{4} \S+)? \d+ (?P<where>[\w./-]+:\d+)\] ?(?P<text>.*)")
HARMLESS = ("CudaDriverHelper has not been initialized", "Unable to allocate pinned system memory", "DCGM unable")
"""What the server says at its start where there is no GPU; not a fault."""
QUIET = ("batch", "server", "output", "working")
"""Events that the text for people leaves out, unless they are warnings or errors."""


class Log:
    """Writes records of events.

    Parameters
    ----------
    stream : where they go, e.g. stderr. form : json or text. file : a file that gets JSON records too, at its end.
    secrets : words that must not appear in it.
    """

    def __init__(
        self, stream: IO[str], form: str = "json", file: Path | None = None, secrets: Sequence[str | None] = ()
    ) -> None:
        if form not in FORMS:
            raise unknown("form of the log", form, FORMS)
        self._stream, self._form = stream, form
        try:
            self._file = None if file is None else file.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"the log file {file} cannot be written ({error.strerror}); give another") from error
        self._secrets = [s for s in secrets if s]
        self._lock = threading.Lock()

    def event(self, event: str, level: str = "info", *, when: float | None = None, **facts: Any) -> None:
        """Write that something happened. when : seconds since 1970, None for now."""
        moment = datetime.fromtimestamp(time.time() if when is None else when, UTC)
        stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"time": stamp, "level": level, "event": event, **facts}
        line = self._hidden(json.dumps(record, default=str))
        with self._lock:
            if self._file is not None:
                print(line, file=self._file, flush=True)
            if self._form == "json":
                print(line, file=self._stream, flush=True)
            elif event not in QUIET or level in ("warning", "error"):
                print(self._hidden(_sentence(stamp, level, event, facts)), file=self._stream, flush=True)

    def server_line(self, line: str) -> None:
        """Write a line that the server or one of its models printed, as a record."""
        if not line.strip() or line.startswith(("+", "|")):  # its tables for people
            return
        if line.startswith("{"):
            try:
                record = json.loads(line)
                event, when = str(record.pop("event")), float(record.pop("time"))
            except (ValueError, KeyError, TypeError):
                self.event("output", text=line[:2000])
                return
            self.event(event, str(record.pop("level", "info")), when=when, **record)
            return
        match = SERVER_LINE.fullmatch(line)
        if match is None:
            self.event("output", text=line[:2000])
            return
        text = match["text"]
        if text.startswith('"'):
            try:
                text = str(json.loads(text))
            except ValueError:
                text = text.strip('"')
        if text:
            level = "info" if any(word in text for word in HARMLESS) else LEVELS[match["level"]]
            self.event("server", level, text=text[:2000], where=match["where"])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _hidden(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line


def _sentence(stamp: str, level: str, event: str, facts: dict[str, Any]) -> str:
    shown = "  ".join(f"{key}={value}" for key, value in facts.items() if key not in ("text", "where"))
    mark = "" if level == "info" else f"{level.upper()} "
    return "  ".join(filter(None, (f"{stamp[11:19]} {mark}{event}", facts.get("text", ""), shown)))
