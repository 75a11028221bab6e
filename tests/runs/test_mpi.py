"""A process alone and the ranks of a job behave alike; an error on one rank ends all, and is printed once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.runs.mpi import Communicator, collective, guard_ranks

ROOT, BIN = Path(__file__).parents[2], Path(sys.executable).parent

PROGRAM = """
import os, sys
from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.runs.mpi import collective, connect_ranks, guard_ranks

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

@collective
def scale(comm, factor, *, offset=0):
    return comm.rank * factor + offset

@collective
def outer(comm, fails):
    return inner(comm, fails) + 1

@collective
def inner(comm, fails):
    if comm.rank == fails:
        raise UsageError(f"rank {fails} dislikes it")
    return comm.rank

def values(comm):
    say(comm.rank, scale(comm, 10, offset=1), comm.run_on_first(lambda a, b: a + b, "x", b="y"),
        comm.all_gather(comm.rank), comm.gather_on_first(comm.rank), comm.reduce_on_first(comm.rank, max),
        outer(comm, -1))

def claims(comm):
    own = list(comm.claim(range(20)))
    comm.count_done(len(own), 0)
    every = comm.all_gather(own)
    if comm.rank == 0:
        say(sorted(sum(every, [])) == list(range(20)), comm.read_counts())

def nested(comm):
    outer(comm, 1)

def unshared(comm):
    if comm.rank == 1:
        raise AtomSieveError("only rank 1 knows")
    comm.all_gather(None)

comm = connect_ranks()
with guard_ranks(comm):
    globals()[sys.argv[1]](comm)
"""


def run(program: str, tmp_path: Path, ranks: int = 3) -> subprocess.CompletedProcess:
    mpirun = shutil.which("mpirun", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("no mpirun")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [mpirun, "-n", str(ranks), sys.executable, str(tmp_path / "program.py"), program]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.mpi
def test_values_of_ranks(tmp_path):
    done = run("values", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "0 1 xy [0, 1, 2] [0, 1, 2] 2 1",
        "1 11 xy [0, 1, 2] None None 2",
        "2 21 xy [0, 1, 2] None None 3",
    ]


@pytest.mark.mpi
def test_each_item_goes_to_one_rank(tmp_path):
    assert run("claims", tmp_path).stdout.split("\n")[0] == "True (20, 0)"


@pytest.mark.mpi
def test_an_error_in_a_step_within_a_step_ends_all_ranks_and_is_printed_once(tmp_path):
    done = run("nested", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: rank 1 dislikes it") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
def test_an_error_that_one_rank_knows_of_ends_the_job(tmp_path):
    done = run("unshared", tmp_path)
    assert done.returncode != 0
    assert "error: rank 1 of 3: only rank 1 knows" in done.stderr


def test_a_process_alone_needs_no_mpi():
    comm = Communicator()

    @collective
    def add(own: Communicator, value: int, *, more: int = 0) -> int:
        """Add."""
        return own.rank + value + more

    assert add(comm, 2, more=3) == 5
    assert add.__doc__ == "Add."
    assert comm.run_on_first(max, 1, 2) == 2
    assert comm.all_gather("a") == ["a"]
    assert list(comm.claim([4, 7])) == [4, 7]
    with pytest.raises(UsageError), guard_ranks(comm):
        raise UsageError("as it is")


def test_an_error_is_translated_and_its_traceback_is_kept():
    comm, kept = Communicator(), []
    comm.save_traceback = kept.append
    lost = pytest.raises(AtomSieveError, match="the GPU is lost")
    with lost, guard_ranks(comm, lambda error: AtomSieveError("the GPU is lost")):
        raise ConnectionError("deep down")
    assert "ConnectionError: deep down" in kept[0]
