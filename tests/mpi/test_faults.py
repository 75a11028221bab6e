"""Deaths and signals of several ranks: the supervisor starts them again, and what killed them is set aside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

PROGRAMS = Path(__file__).parents[1] / "screen"
MPIRUN = Path(sys.executable).parent / "mpirun"
IDENTICAL = ("rows.npy", "forces.npy", "top.csv", "run.json")

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not MPIRUN.exists(), reason=f"no {MPIRUN}: pip install mpich")]


def command(name, ranks, source, out, **order):
    order = {"options": {"forces": True}, **order}
    return [
        *([str(MPIRUN), "-n", str(ranks)] if ranks else []),
        sys.executable,
        str(PROGRAMS / name),
        str(source),
        str(out),
        json.dumps(order),
    ]


def artefacts(path):
    return {name: (path / name).read_bytes() for name in IDENTICAL}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The input, and what one undisturbed process makes of it."""
    from tests.screen.screen_fakes import candidates, save

    folder = tmp_path_factory.mktemp("faults")
    source = save(folder / "candidates.npz", candidates(1000, bad=False))
    subprocess.run(command("screen_fakes.py", 0, source, folder / "out"), check=True, capture_output=True, timeout=60)
    return source, folder / "out"


def supervised(words, out, restarts):
    from atomsieve.screen.restart import Supervisor
    from atomsieve.screen.results.files import ResultsFolder

    console = Console(file=StringIO(), width=300)
    code = Supervisor(words, ResultsFolder(out), restarts, console, pause=0.01)()
    return code, console.file.getvalue()


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_job_that_a_structure_kills_finishes_unattended(whole, tmp_path):
    source, expected = whole
    out = tmp_path / "out"
    code, said = supervised(command("quarantine/fault_program.py", 2, source, out, poison=[1150]), out, restarts=3)
    assert code == 3
    assert said.count("the run died") == 1  # the second start survives
    rows, before = np.load(out / "rows.npy"), np.load(expected / "rows.npy")
    aside = rows["status"] == 12
    assert aside[150] and aside[128:192].sum() == aside.sum() < 64
    assert rows[~aside].tobytes() == before[~aside].tobytes()
    assert not (out / "at_hand.bin").exists() and not (out / "deaths.json").exists()
    events = [json.loads(line)["event"] for line in (out / "run.log.jsonl").read_text().splitlines()]
    assert events.count("died") == 1 and events[-1] == "finished"


def test_deaths_of_ranks_leave_the_same_bytes(whole, tmp_path):
    """Three chunks kill whoever computes them first, and are innocent when they are computed apart."""
    source, expected = whole
    out, marks = tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    words = command("quarantine/fault_program.py", 2, source, out, poison=[1100, 1500, 1900], once=str(marks))
    code, said = supervised(words, out, restarts=3)
    assert code == 0, said
    assert 1 <= said.count("the run died") <= 3
    assert len(list(marks.iterdir())) == 3
    assert artefacts(out) == artefacts(expected)


def test_sigterm_to_one_rank_ends_all_after_their_chunks(whole, tmp_path):
    """As where a batch system signals a node: all leave with 75, and no chunk was begun in vain."""
    source, expected = whole
    out = tmp_path / "out"
    words = command("screen_fakes.py", 2, source, out, slow=0.2, options={"forces": True, "grace": 1000.0})
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: (out / "lock.json").exists() and list(out.glob("ledger/*.ledger")))
    os.kill(json.loads((out / "lock.json").read_text())["pid"], signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75, said
    assert said.count("run the same command again to continue") == 1
    words = command("quarantine/fault_program.py", 2, source, out)
    again = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert "at hand when an earlier run died" not in again.stderr
    assert artefacts(out) == artefacts(expected)


@pytest.mark.slow
def test_the_command_with_a_launcher(tmp_path, monkeypatch):
    """The supervisor as typed, with a real ensemble; one of its ranks is killed, and it finishes all the same."""
    from atomsieve.cli.main import run as cli
    from atomsieve.structures import write_structures
    from tests.helpers import copper_oxides, tiny_gfm

    write_structures(tmp_path / "c.bp", copper_oxides(100), [])
    tiny_gfm(tmp_path / "gfm")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user was taken for a library')\n")
    run = [sys.executable, "-P", "-m", "atomsieve", "screen", "run", "c.bp", "-e", "gfm", "--chunk-size", "32"]
    extra = ["--max-restarts", "2", "--launcher", "mpirun -n 2", "--out", "out"]
    process = subprocess.Popen([*run, *extra], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out = tmp_path / "out"
    until((out / "lock.json").exists)
    os.kill(json.loads((out / "lock.json").read_text())["pid"], signal.SIGKILL)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 0, said
    assert said.count("the run died") == said.count("restart 1 of 2") == 1
    assert cli("screen", [*run[5:], "--out", "one"]) == 0
    for name in ("rows.npy", "top.csv"):
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
