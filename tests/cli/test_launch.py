"""The launcher: what it sets, what it leaves alone, and that an MPI job survives the second start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atomsieve.runs import environment

PROGRAM = """
import json, os, sys
from atomsieve.cli import launch
from atomsieve.runs import environment
before = os.getpid()
launch.relaunch()
names = [*environment.ALLOCATOR, "OMP_NUM_THREADS", environment.MARK]
told = {n: os.environ.get(n) for n in names} | {"pid": os.getpid(), "argv": sys.argv}
if "mpi" in sys.argv:
    from mpi4py import MPI
    told |= {"rank": MPI.COMM_WORLD.rank, "size": MPI.COMM_WORLD.size, "sum": MPI.COMM_WORLD.allreduce(1)}
os.write(1, (json.dumps(told) + chr(10)).encode())  # in one piece: ranks share the pipe
"""


def clean_environment(**more: str) -> dict[str, str]:
    drop = {*environment.ALLOCATOR, "OMP_NUM_THREADS", environment.MARK}
    return {name: value for name, value in os.environ.items() if name not in drop} | more


def told(command: list[str], environment: dict[str, str]) -> list[dict]:
    import json

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def program(tmp_path) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path)]


def test_a_bare_process_gets_everything_once(program):
    (one,) = told([*program, "a b", "c"], clean_environment())
    for name, value in environment.ALLOCATOR.items():
        assert one[name] == value
    assert int(one["OMP_NUM_THREADS"]) == len(os.sched_getaffinity(0))
    assert one["argv"][1:] == ["a b", "c"]
    pid, _, names = one[environment.MARK].partition(":")
    assert int(pid) == one["pid"]
    assert set(names.split(",")) == {*environment.ALLOCATOR, "OMP_NUM_THREADS"}


def test_what_the_user_set_stays(program):
    (one,) = told([*program, "x"], clean_environment(OMP_NUM_THREADS="7", MALLOC_MMAP_MAX_="12"))
    assert one["OMP_NUM_THREADS"] == "7"
    assert one["MALLOC_MMAP_MAX_"] == "12"
    assert one["MALLOC_TOP_PAD_"] == environment.ALLOCATOR["MALLOC_TOP_PAD_"]
    assert "OMP_NUM_THREADS" not in one[environment.MARK]


def test_nothing_to_set_means_no_second_start(program):
    (one,) = told([*program, "x"], clean_environment(OMP_NUM_THREADS="1", **environment.ALLOCATOR))
    assert one[environment.MARK] is None


def test_help_is_not_started_twice(program):
    (one,) = told([*program, "--help"], clean_environment())
    assert one[environment.MARK] is None


def test_a_child_decides_its_threads_anew(program):
    """A value that only the parent's launcher set is not taken for the user's."""
    parent = clean_environment(OMP_NUM_THREADS="96", ATOMSIEVE_LAUNCHED="1:OMP_NUM_THREADS")
    (one,) = told([*program, "x"], parent)
    assert int(one["OMP_NUM_THREADS"]) == len(os.sched_getaffinity(0))
    assert environment.restore_user_environment(parent).keys() == clean_environment().keys()


@pytest.mark.mpi
def test_ranks_stay_one_job_after_the_second_start(program):
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("no mpirun")
    ranks = told([mpirun, "-n", "2", *program, "mpi"], clean_environment())
    assert sorted(r["rank"] for r in ranks) == [0, 1]
    assert all(r["size"] == 2 and r["sum"] == 2 for r in ranks)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert all(int(r["OMP_NUM_THREADS"]) == share for r in ranks)
    assert all(r[environment.MARK].startswith(f"{r['pid']}:") for r in ranks)
