"""The event log appends one JSON object a line."""

from __future__ import annotations

import json
import time

import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.runs.events import EventLog


def test_events_are_appended_with_their_time(tmp_path):
    path = tmp_path / "run.log.jsonl"
    EventLog(path)("start", ranks=2)
    EventLog(path)("end", text="two\nlines")
    first, last = map(json.loads, path.read_text().splitlines())
    assert (first["event"], first["ranks"], last["event"], last["text"]) == ("start", 2, "end", "two\nlines")
    assert abs(time.mktime(time.strptime(first["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.time()) < 60


def test_a_folder_that_is_gone_is_an_error_of_one_line(tmp_path):
    with pytest.raises(AtomSieveError, match="is gone"):
        EventLog(tmp_path / "no" / "log")("start")
