"""A run that dies is started again; one that ends by itself is not; signals pass through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from atomsieve.cli.main import run
from atomsieve.errors import UsageError
from atomsieve.runs.lock import PathLock
from atomsieve.screen.restart import Supervisor, find_cause_of_death, parse_launcher
from atomsieve.screen.results.files import ResultsFolder

BEGIN = "out.mkdir(exist_ok=True); (out / 'run.json').write_text('{}'); (out / 'ledger').mkdir(exist_ok=True)\n"
COMPLETE = "[(out / name).write_text('') for name in ('rows.npy', 'top.csv')]\n"


@pytest.fixture
def supervise(tmp_path):
    """Return a function that supervises a program; the n-th start runs the n-th of `lives`."""
    out, log = tmp_path / "out", tmp_path / "starts"

    def go(*lives, restarts=5, before="", args=()):
        program = tmp_path / "program.py"
        head = f"""
            import os, sys, signal, time
            from pathlib import Path
            out, log = Path({str(out)!r}), Path({str(log)!r})
            with open(log, 'a') as file: file.write(' '.join(sys.argv[1:]) + chr(10))
            n = len(log.read_text().splitlines())
        """
        lives_ = "\n".join(
            f"if n == {k}:\n" + textwrap.indent(textwrap.dedent(life), "    ") for k, life in enumerate(lives, start=1)
        )
        program.write_text(f"{textwrap.dedent(head)}\n{before}\n{lives_}\n")
        console = Console(file=StringIO(), width=300)
        command = [sys.executable, str(program), *args]
        code = Supervisor(command, ResultsFolder(out), restarts, console, pause=0.01)()
        return code, console.file.getvalue(), log.read_text().splitlines()

    return go


@pytest.mark.parametrize(
    ("code", "complete", "cause"),
    [
        (0, True, None),
        (3, True, None),
        (1, False, None),
        (2, False, None),
        (75, False, None),
        (0, False, "exit code 0 without complete results"),
        (3, False, "exit code 3 without complete results"),
        (-9, False, "killed by SIGKILL"),
        (137, True, "killed by SIGKILL"),
        (9, False, "exit code 9"),
        (70, False, "exit code 70"),
        (255, False, "exit code 255"),
    ],
)
def test_what_is_a_death(code, complete, cause):
    assert find_cause_of_death(code, complete) == cause


def test_a_run_that_dies_is_started_again_until_it_is_complete(supervise):
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    code, said, starts = supervise(kill, "sys.exit(0)", "sys.exit(134)", f"{COMPLETE}sys.exit(3)", before=BEGIN)
    assert code == 3
    assert len(starts) == 4
    assert [line.split(" after ")[0] for line in said.splitlines()] == [
        "the run died (killed by SIGKILL)",
        "the run died (exit code 0 without complete results)",
        "the run died (killed by SIGABRT)",
    ]
    assert said.splitlines()[2].endswith("restart 3 of 5")


@pytest.mark.parametrize("code", [1, 2, 75])
def test_an_end_that_the_run_explained_is_not_followed_by_another_start(supervise, code):
    """It is told all the same, since a launcher may end so without a word."""
    found, said, starts = supervise(f"sys.exit({code})")
    expected = "" if code == 75 else f"the run ended by itself with exit code {code}; it is not started again\n"
    assert (found, said, len(starts)) == (code, expected, 1)


@pytest.mark.parametrize(
    ("life", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("sys.exit(9)", 9),
        ("sys.exit(0)", 1),
    ],
)
def test_no_more_restarts_than_allowed(supervise, tmp_path, life, code):
    found, said, starts = supervise(life, life, life, restarts=2, before=BEGIN)
    assert (found, len(starts)) == (code, 3)
    assert "the run died 3 times, at last after" in said
    assert "run the same command again to continue" in said
    events = [json.loads(line)["event"] for line in (tmp_path / "out" / "run.log.jsonl").read_text().splitlines()]
    assert events == ["died"] * 3


def test_overwrite_is_said_until_the_results_were_begun_anew(supervise, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    die = "os.kill(os.getpid(), signal.SIGKILL)"
    anew = "(out / 'run.json').unlink(); (out / 'run.json').write_text('{}')"
    *_, starts = supervise(die, f"{anew}\n{die}", COMPLETE, args=["--overwrite", "-k", "3"])
    assert starts == ["--overwrite -k 3", "--overwrite -k 3", "-k 3"]


def test_results_that_are_to_be_overwritten_are_no_complete_run(supervise, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("run.json", "rows.npy", "top.csv"):
        (tmp_path / "out" / name).write_text("old")
    anew = f"(out / 'run.json').unlink(); (out / 'run.json').write_text('{{}}')\n{COMPLETE}"
    code, said, starts = supervise("sys.exit(0)", anew, args=["--overwrite"])
    assert (code, starts) == (0, ["--overwrite"] * 2) and "exit code 0 without complete results" in said


def test_a_log_that_cannot_be_written_does_not_end_the_supervisor(supervise, tmp_path):
    die = f"{BEGIN}(out / 'run.log.jsonl').mkdir(exist_ok=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    code, _, starts = supervise(die, COMPLETE)
    assert (code, len(starts)) == (0, 2)


def ordered(tmp_path, life):
    """Start a supervisor as a process of its own around a program that does `life`; wait until it is at it."""
    program = tmp_path / "program.py"
    ready = tmp_path / "ready"
    ready.unlink(missing_ok=True)
    program.write_text(
        textwrap.dedent(f"""
        import os, signal, sys, time
        from pathlib import Path
        def said():
            Path({str(ready)!r} + '.draft').write_text(str(os.getpid()))
            os.rename({str(ready)!r} + '.draft', {str(ready)!r})
    """)
        + textwrap.dedent(life)
    )
    outer = (
        "import sys; from pathlib import Path; from atomsieve.screen.restart import Supervisor;"
        "from atomsieve.screen.results.files import ResultsFolder;"
        f"sys.exit(Supervisor([sys.executable, {str(program)!r}], ResultsFolder(Path({str(tmp_path / 'out')!r})), 9)())"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    until(ready.exists)
    return process, int(ready.read_text())


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "end", "code"),
    [
        (signal.SIGTERM, "sys.exit(75)", 75),
        (signal.SIGINT, "sys.exit(75)", 75),
        (signal.SIGTERM, "os.kill(os.getpid(), 9)", 75),
        (signal.SIGTERM, "sys.exit(1)", 1),
    ],
)
def test_signals_reach_the_run_and_end_it_for_good(tmp_path, number, end, code):
    life = f"signal.signal({int(number)}, lambda *_: {end})\nsaid()\nwhile True: time.sleep(0.01)"
    process, _ = ordered(tmp_path, life)
    process.send_signal(number)
    assert process.wait(60) == code


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells of a parent's death on Linux")
def test_a_run_does_not_outlive_its_supervisor(tmp_path):
    ended = tmp_path / "ended"
    life = (
        f"def end(*_):\n    Path({str(ended)!r}).write_text('orderly')\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, end)\nsaid()\nwhile True: time.sleep(0.01)"
    )
    process, pid = ordered(tmp_path, life)
    process.kill()
    process.wait()
    until(ended.exists)
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_a_restart_waits_for_the_lock_of_the_run_that_died(tmp_path):
    """Its launcher may be gone before its first rank is; on another node the lock is void only after a while."""
    supervisor = Supervisor([], ResultsFolder(tmp_path), 1)
    waiting = threading.Thread(target=supervisor._wait, args=(0.0,))
    with PathLock(tmp_path / "lock.json"):
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_launcher_is_found(tmp_path, monkeypatch):
    tool = tmp_path / "launch me"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert parse_launcher("'launch me' -n 4 --bind 'to core'") == [str(tool), "-n", "4", "--bind", "to core"]
    for wrong, said in (("", "empty"), ("no-such-launcher -n 4", "no program 'no-such-launcher'"), ("a 'b", "closing")):
        with pytest.raises(UsageError, match=said):
            parse_launcher(wrong)


def test_wrong_calls_are_one_line(tmp_path, capfd, monkeypatch):
    call = ["run", str(tmp_path / "none.bp"), "-e", "gfm"]
    assert run("screen", [*call, "--launcher", "no-such-launcher -n 4"]) == 2
    assert capfd.readouterr().err.count("error: --launcher 'no-such-launcher -n 4'") == 1
    assert run("screen", [*call, "--max-restarts", "-1"]) == 2
    monkeypatch.setenv("PMI_SIZE", "4")
    assert run("screen", [*call, "--max-restarts", "2"]) == 2
    assert "give the launcher to it" in capfd.readouterr().err


def test_the_command_line_is_passed_on(tmp_path, capfd, monkeypatch):
    """What the supervised command sees is what was typed, but for what the supervisor itself keeps."""
    from atomsieve.screen import restart

    seen = []
    monkeypatch.setattr(restart.Supervisor, "__call__", lambda self: seen.append(self) or 0)
    where = "energy_std < 0.5 and head == 'a b'"
    call = [
        "run",
        "c.bp",
        "-e",
        "g f m",
        "-k",
        "7",
        "--where",
        where,
        "--descending",
        "--forces",
        "--overwrite",
        "--max-restarts",
        "4",
    ]
    assert run("screen", call) == 0
    (made,) = seen
    assert (made.restarts, made.folder.path) == (4, Path("c.bp.results"))
    assert made.command[:6] == [sys.executable, "-P", "-m", "atomsieve", "screen", "run"]
    assert made.command[6:] == [
        "c.bp",
        "--ensemble=g f m",
        "--overwrite",
        "--top=7",
        "--descending",
        f"--where={where}",
        "--forces",
    ]
    assert run("screen", [*call, "--ascending", "--out", "o", "--launcher", f"'{sys.executable}' -u"]) == 0
    assert seen[1].command[:2] == [sys.executable, "-u"]
    assert "--ascending" in seen[1].command and seen[1].folder.path == Path("o")


def test_the_command_under_a_supervisor(tmp_path):
    """Wrong input: the run says it once, and is not started again."""
    program = [sys.executable, "-m", "atomsieve", "screen", "run", "none.bp", "-e", "gfm", "--max-restarts", "3"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.count("none.bp does not exist") == 1
    assert "restart" not in done.stderr
