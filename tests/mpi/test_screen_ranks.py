"""Several ranks under mpirun: the same bytes whatever the number of ranks and whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).parents[1] / "screen" / "screen_fakes.py"
MPIRUN = Path(sys.executable).parent / "mpirun"
IDENTICAL = ("rows.npy", "forces.npy", "top.csv", "run.json")

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not MPIRUN.exists(), reason=f"no {MPIRUN}: pip install mpich")]


# --
def start(ranks, source, out, **order):
    command = [sys.executable, str(PROGRAM), str(source), str(out), json.dumps(order)]
    if ranks:
        command = [str(MPIRUN), "-n", str(ranks), *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def run(ranks, source, out, expect, **order):
    process = start(ranks, source, out, **order)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == expect, said
    return said


def artefacts(path):
    return {name: (path / name).read_bytes() for name in IDENTICAL}


OPTIONS = {"options": {"forces": True}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The input, and what one undisturbed process makes of it."""
    from tests.screen.screen_fakes import candidates, save

    folder = tmp_path_factory.mktemp("ranks")
    source = save(folder / "candidates.npz", candidates(1500))
    run(0, source, folder / "one", 3, **OPTIONS)
    return source, artefacts(folder / "one")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_gives_the_same_bytes(whole, tmp_path, ranks):
    source, expected = whole
    said = run(ranks, source, tmp_path / "out", 3, **OPTIONS)
    assert artefacts(tmp_path / "out") == expected
    assert said.count("head: pbe (the ensemble's default)") == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ranks"] == ranks
    assert len(list((tmp_path / "out" / "ledger").glob("*.ledger"))) == ranks  # the work was shared


@pytest.mark.parametrize(("first", "dies", "then"), [(2, 1, 3), (3, 0, 1), (3, 2, 2)])
def test_a_killed_rank_ends_the_job_and_any_number_of_ranks_continues_it(whole, tmp_path, first, dies, then):
    source, expected = whole
    began = time.monotonic()
    process = start(first, source, tmp_path / "out", fault="kill", after=9, rank=dies, slow_others=0.03, **OPTIONS)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out" / "rows.npy").exists()
    run(then, source, tmp_path / "out", 3, **OPTIONS)
    assert artefacts(tmp_path / "out") == expected


def test_killed_again_and_again(whole, tmp_path):
    source, expected = whole
    for ranks in (3, 2):
        order = {"fault": "kill", "after": 12, "rank": ranks - 1, "slow_others": 0.03}
        process = start(ranks, source, tmp_path / "out", **order, **OPTIONS)
        process.communicate(timeout=60)
        assert process.returncode != 0
    run(3, source, tmp_path / "out", 3, **OPTIONS)
    assert artefacts(tmp_path / "out") == expected


def test_ranks_that_reach_different_servers_leave_together(whole, tmp_path):
    source, _ = whole
    said = run(2, source, tmp_path / "out", 2, served=["a" * 64, "b" * 64])
    assert "error: rank 1 has reached other servers than rank 0" in said
    assert said.count("error:") == 1 and "ensemble_id bbbbbbbbbbbb, not aaaaaaaaaaaa" in said
    assert not (tmp_path / "out").exists()


def test_an_exception_on_one_rank_ends_all_with_one_line(whole, tmp_path):
    source, _ = whole
    began = time.monotonic()
    said = run(3, source, tmp_path / "out", 1, fault="raise", after=3, rank=2, slow_others=0.03)
    assert time.monotonic() - began < 30
    assert "error: rank 2 of 3: ValueError: springs are broken\n" in said
    assert "Traceback" not in said
    last = json.loads((tmp_path / "out" / "run.log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["rank"]) == ("failed", 2)
    assert "springs are broken" in last["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_job_exits_75_and_continues(whole, tmp_path, number):
    source, expected = whole
    process = start(2, source, tmp_path / "out", slow=0.02, **OPTIONS)
    deadline = time.monotonic() + 30
    while not list((tmp_path / "out").glob("ledger/*.ledger")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 75, said
    assert said.count("run the same command again to continue") == 1
    assert not (tmp_path / "out" / "lock.json").exists()
    run(3, source, tmp_path / "out", 3, **OPTIONS)
    assert artefacts(tmp_path / "out") == expected


def test_an_error_that_all_ranks_share_is_said_once(whole, tmp_path):
    source, _ = whole
    run(2, source, tmp_path / "out", 3)
    said = run(2, source, tmp_path / "out", 1, options={"max_atoms": 300})
    assert said.count("batches.max_atoms: 200 -> 300") == 1
    assert "Traceback" not in said


def test_two_jobs_on_one_folder(whole, tmp_path):
    source, _ = whole
    first = start(2, source, tmp_path / "out", slow=0.2)
    deadline = time.monotonic() + 30
    while not (tmp_path / "out" / "lock.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    said = run(2, source, tmp_path / "out", 1)
    assert said.count("in use by another run") == 1
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=30)
    assert first.returncode == 75


def test_a_launcher_of_another_mpi_is_refused(whole, tmp_path):
    source, _ = whole
    command = [sys.executable, str(PROGRAM), str(source), str(tmp_path / "out"), "{}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "SLURM"))}
    env |= {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "a launcher (Open MPI) started 4 processes, but the MPI library" in done.stderr
    assert "sees 1" in done.stderr
    assert not (tmp_path / "out").exists()
    env["OMPI_COMM_WORLD_RANK"] = "2"
    quiet = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (quiet.returncode, quiet.stderr) == (1, "")


def test_the_work_is_handed_out_once(whole, tmp_path):
    source, _ = whole
    run(3, source, tmp_path / "out", 3)
    lines = [line for path in (tmp_path / "out" / "ledger").iterdir() for line in path.read_text().splitlines()]
    chunks = [json.loads(line.split(" ", 1)[1])["chunk"] for line in lines]
    assert sorted(chunks) == list(range(24))
    assert np.load(tmp_path / "out" / "rows.npy").shape == (1500,)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_and_more_room(whole, tmp_path):
    source, expected = whole
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        process = start(2, source, disk / "out", slow=0.01, **OPTIONS)
        deadline = time.monotonic() + 30
        while not list((disk / "out").glob("ledger/*.ledger")) and time.monotonic() < deadline:
            time.sleep(0.01)
        with open(disk / "filler", "wb", buffering=0) as file, suppress(OSError):
            while True:  # somebody else fills the disk while the run is at work
                file.write(b"x" * 4096)
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 1, said
        assert said.count("no space left for results in") >= 1
        assert "Traceback" not in said
        (disk / "filler").unlink(missing_ok=True)
        run(2, source, disk / "out", 3, **OPTIONS)
        assert artefacts(disk / "out") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_command_with_an_ensemble_gives_the_same_bytes(tmp_path):
    from atomsieve.structures import write_structures
    from tests.helpers import copper_oxides, tiny_gfm

    write_structures(tmp_path / "candidates.bp", copper_oxides(200), [])
    tiny_gfm(tmp_path / "gfm")
    command = ["screen", "run", "candidates.bp", "--ensemble", "gfm", "--forces", "--chunk-size", "16"]
    found = {}
    for ranks in (0, 2):  # alone, the launcher gives it every core: still the same bytes
        launcher = [str(MPIRUN), "-n", str(ranks)] if ranks else []
        program = [*launcher, sys.executable, "-m", "atomsieve", *command, "--out", f"out{ranks}"]
        env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found[ranks] = artefacts(tmp_path / f"out{ranks}")
    assert found[0] == found[2]


def test_ranks_screen_a_file_and_continue_after_a_kill(tmp_path):
    """One rank converts, the others wait; a job that continues takes the same copy."""
    from ase.io import write

    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen
    from tests.helpers import copper_oxides
    from tests.screen.screen_fakes import FakePredictor

    source = tmp_path / "c.extxyz"
    write(source, copper_oxides(300).to_ase())
    small = {"options": {"chunk_size": 10}}
    alone = ScreenOptions(chunk_size=10, max_atoms=200, top=50)
    run_screen(source, None, alone, out=tmp_path / "alone" / "one", predictor=FakePredictor())
    process = start(2, source, tmp_path / "ranks" / "two", fault="kill", after=2, rank=1, slow_others=0.03, **small)
    process.communicate(timeout=60)
    assert process.returncode != 0
    (copy,) = (tmp_path / "ranks" / "converted").iterdir()
    made = (copy / "manifest.json").stat().st_ino
    said = run(2, source, tmp_path / "ranks" / "two", 0, **small)
    assert "was converted before" in said
    assert (copy / "manifest.json").stat().st_ino == made
    for name in ("rows.npy", "top.csv"):
        one, two = (tmp_path / place / name for place in ("alone/one", "ranks/two"))
        assert one.read_bytes() == two.read_bytes()
