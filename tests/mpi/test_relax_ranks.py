"""Relaxation under mpirun: the same bytes for any number of ranks, also after a job was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.run import run_screen
from atomsieve.structures import write_structures
from tests.helpers import copper_oxides, tiny_gfm

MPIRUN = Path(sys.executable).parent / "mpirun"
SCREEN = [sys.executable, "-c", "import sys; from atomsieve.cli.launch import screen; sys.exit(screen())"]
pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not MPIRUN.exists(), reason=f"no {MPIRUN}: pip install mpich")]


def start(ranks, results, out, *more):
    command = [*SCREEN, "relax", str(results), "--out", str(out), "--device", "cpu", "--max-atoms", "20"]
    command += ["--group-atoms", "40", "--fmax", "0.01", "--max-steps", "60"]
    command += ["--optimizer", "fire", *more]  # steps of L-BFGS are compared in followup/test_relax_group.py
    if ranks:
        command = [str(MPIRUN), "-n", str(ranks), *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def run(ranks, results, out, *more, expect=0):
    process = start(ranks, results, out, *more)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == expect, said
    return said


def artefacts(out):
    names = ["relax.json", "relaxed.csv", "relaxed.extxyz", "relaxed.bp/part-00000.r000.bp/data.0"]
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny_gfm(folder / "gfm", hidden=8, layers=1)
    write_structures(folder / "c.bp", copper_oxides(60, seed=3))
    run_screen(folder / "c.bp", folder / "gfm", ScreenOptions(device="cpu"), out=folder / "results")
    run(0, folder / "results", folder / "one")
    return folder / "results", artefacts(folder / "one")


def test_two_ranks_stopped_and_continued_give_the_bytes_of_one_process(whole, tmp_path):
    results, expected = whole
    out = tmp_path / "out"
    process = start(2, results, out)
    deadline = time.monotonic() + 60
    while not list(out.glob("groups/*.npz")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    if process.returncode != 0:  # it may have been done by then
        assert process.returncode == 75, said
        assert said.count("run the same command again to continue") == 1 and not (out / "lock.json").exists()
    said = run(2, results, out)
    assert artefacts(out) == expected
    assert said.count("head: metal") == 1 and said.count("relaxed.csv") == 1
    events = [json.loads(line) for line in (out / "run.log.jsonl").read_text().splitlines()]
    groups = [event["group"] for event in events if event["event"] == "group"]
    assert sorted(groups) == list(range(len(groups))) and len(groups) > 3, "each was done once"
    assert {event["rank"] for event in events if event["event"] == "group"} == {0, 1}
