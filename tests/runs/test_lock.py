"""The lock keeps a second run out, and a dead run does not stay in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.runs import lock as module
from atomsieve.runs.lock import PathLock, read_holder


def test_one_run_at_a_time(tmp_path):
    path = tmp_path / "lock.json"
    with PathLock(path) as first:
        assert read_holder(path)["pid"] == os.getpid()
        with pytest.raises(AtomSieveError, match=rf"in use by another run \(host .*, process {os.getpid()}, since 20"):
            PathLock(path).__enter__()
        first.check()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    path = tmp_path / "lock.json"
    code = f"from atomsieve.runs.lock import PathLock; import os, pathlib; \
PathLock(pathlib.Path({str(path)!r})).__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert path.exists()
    assert read_holder(path) is None
    with PathLock(path):
        assert read_holder(path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_draft_of_a_process_that_is_gone_goes_at_once(tmp_path):
    code = f"from atomsieve.runs.lock import PathLock; import os, pathlib; os.link = lambda *a: os._exit(9); \
PathLock(pathlib.Path({str(tmp_path / 'lock.json')!r})).__enter__()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    with PathLock(tmp_path / "lock.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_start_left_that_was_killed_while_it_took_the_lock_goes(tmp_path):
    path = tmp_path / "lock.json"
    for name, age in (("lock.json.0123", 1000), ("lock.json.4567", 5), ("other.json.89", 1000)):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with PathLock(path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock.json.4567", "other.json.89"]


def test_a_dead_process_that_nobody_buried_is_dead(tmp_path):
    path = tmp_path / "lock.json"
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    text = {
        "host": "x",
        "pid": process.pid,
        "machine": module._name_machine(),
        "since": "now",
        "process_start": module._read_start_time(process.pid),
    }
    path.write_text(json.dumps(text))
    with pytest.raises(AtomSieveError, match=f"process {process.pid}"):
        PathLock(path).__enter__()
    process.kill()
    while module._read_start_time(process.pid) is not None:
        time.sleep(0.01)
    with PathLock(path):
        pass
    process.communicate()


@pytest.mark.parametrize(("age", "free"), [(10, False), (1000, True)])
def test_another_hosts_lock_is_void_after_silence(tmp_path, age, free):
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"host": "node7", "pid": 1, "machine": "node7 x", "process_start": "5", "since": "x"}))
    os.utime(path, (time.time() - age,) * 2)
    if free:
        with PathLock(path):
            pass
    else:
        with pytest.raises(AtomSieveError, match="node7, process 1"):
            PathLock(path).__enter__()


def test_a_run_whose_lock_was_taken_over_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    path = tmp_path / "lock.json"
    with PathLock(path) as mine:
        path.write_text("{}")
        deadline = time.monotonic() + 5
        while not mine.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(AtomSieveError, match="took this folder over"):
            mine.check()
    assert path.read_text() == "{}"  # the other run's lock stays
