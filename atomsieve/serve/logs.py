"""One log of a server, its models and its supervisor: JSON, one record a line, or text for people."""

from __future__ import annotations

import contextlib
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
"""Messages of the server at its start where there is no GPU; no faults."""
QUIET = ("batch", "server", "output", "working")
"""Events that the text for people leaves out, unless they are warnings or errors."""
OWN = ("self", "event", "level", "when", "time")
"""Names that a record's facts cannot have."""


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
        self._failed: set[str] = set()

    def hide(self, secret: str) -> None:
        """Show stars in place of a word from now on."""
        self._secrets = [*self._secrets, secret]

    def event(self, event: str, level: str = "info", *, when: float | None = None, **facts: Any) -> None:
        """Write the record of an event. when : seconds since 1970, None for now.

        A file or stream that cannot be written, e.g. because the disk is full or the pipe has no reader, is reported
        once to the other, and tried again with the next record: a server must not block on its log.
        """
        stamp = _stamp(when)
        record = {"time": stamp, "level": level, "event": event, **facts}
        line = self._mask_secrets(json.dumps(record, default=str))
        with self._lock:
            if self._file is not None:
                self._write(line, self._file, "the log file")
            if self._form == "json":
                self._write(line, self._stream, "the log stream")
            elif event not in QUIET or level in ("warning", "error"):
                self._write(
                    self._mask_secrets(_format_text(stamp, level, event, facts)), self._stream, "the log stream"
                )

    def server_line(self, line: str) -> None:
        """Write a line that the server or one of its models printed, as a record."""
        if not line.strip() or line.startswith(("+", "|")):  # its tables for people
            return
        if line.startswith("{"):
            try:
                record = json.loads(line)
                event, when = str(record.pop("event")), float(record.pop("time"))
            except (ValueError, KeyError, TypeError, RecursionError):
                self.event("output", text=line[:2000])
                return
            level = str(record.pop("level", "info"))
            # any code that prints in a model chooses these names: they must not override parameters of this method
            self.event(event, level, when=when, **{f"{k}_" if k in OWN else k: v for k, v in record.items()})
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
            with contextlib.suppress(OSError):  # records that could not be written before cannot be written now
                self._file.close()

    def _write(self, line: str, target: IO[str], name: str) -> None:
        try:
            print(line, file=target, flush=True)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            if name in self._failed:
                return
            self._failed.add(name)
            text = f"{name} cannot be written ({getattr(error, 'strerror', None) or error}); records are lost"
            record = {"time": _stamp(None), "level": "error", "event": "log_lost", "text": text}
            for other in (self._file, self._stream):
                if other is not None and other is not target:
                    with contextlib.suppress(OSError, ValueError):
                        print(json.dumps(record), file=other, flush=True)

    def _mask_secrets(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line


def parse_model_name(line: str) -> str | None:
    """Return the name of the model that wrote a line of JSON; None if the line is no JSON or names none."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line).get("model")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _stamp(when: float | None) -> str:
    """Return a moment in seconds since 1970 as text; now, if it is None or no moment at all."""
    try:
        moment = datetime.fromtimestamp(time.time() if when is None else when, UTC)
    except (OverflowError, ValueError, OSError):
        moment = datetime.fromtimestamp(time.time(), UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _format_text(stamp: str, level: str, event: str, facts: dict[str, Any]) -> str:
    shown = "  ".join(f"{key}={value}" for key, value in facts.items() if key not in ("text", "where", "traceback"))
    mark = "" if level == "info" else f"{level.upper()} "
    first = "  ".join(filter(None, (f"{stamp[11:19]} {mark}{event}", str(facts.get("text", "")), shown)))
    more = str(facts.get("traceback", "")).splitlines()
    return "\n".join([_escape_control(first), *(f"    {_escape_control(line)}" for line in more)])


def _escape_control(text: str) -> str:
    """Return text whose control characters are escaped: a client's words must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
