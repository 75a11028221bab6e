"""Signals ask a job to stop, and leave the processes that it started alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atomsieve.runs.child_process import start_module
from atomsieve.runs.signals import StopRequest, block_signals

ROOT = Path(__file__).parents[2]


def test_ctrl_c_shortens_the_time_that_sigterm_leaves():
    with StopRequest(grace=1000.0) as stop:
        assert not stop.closing
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.closing and not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_a_process_that_a_rank_starts_does_not_hear_the_signals_of_the_job():
    """Not even before it could say so: it would be taken for a death."""
    with block_signals():
        child = subprocess.Popen(["sleep", "60"])
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            child.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
    finally:
        child.kill()
        assert child.wait(60) == -signal.SIGKILL
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested  # this process hears them as before


def test_a_second_ctrl_c_ends_the_process_as_usual(monkeypatch):
    monkeypatch.setattr("atomsieve.runs.signals.TWICE", 0.0)
    seen = []
    with StopRequest() as stop:
        stop.on_signal = lambda: seen.append("once")
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert seen == ["once"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is of Linux")
def test_a_process_ends_with_its_parent():
    child = "import os; from atomsieve.runs.signals import end_with_parent; "
    child += "end_with_parent(os.getppid(), 9); print(os.getpid(), flush=True); import time; time.sleep(60)"
    parent = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=-1); "
    parent += "print(int(p.stdout.readline()), flush=True)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", parent], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 20
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.02)


def test_a_module_is_found_where_this_process_finds_it_and_not_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "path").mkdir()
    (tmp_path / "here" / "shown.py").write_text("print('of the working directory')")
    (tmp_path / "path" / "shown.py").write_text("import sys; print('of the path', sys.argv[1])")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "path"), *sys.path])
    with start_module("shown", "x", stdout=subprocess.PIPE) as child:
        assert child.communicate(timeout=60)[0] == b"of the path x\n"
