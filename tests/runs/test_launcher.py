"""Each launcher's environment gives this process its place; what only looks like a launcher does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.runs.launcher import Launch, detect_launcher
from atomsieve.runs.mpi import Communicator, SilentExit, connect_ranks

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
PRRTE = {"PMIX_RANK": "5", "PMIX_NAMESPACE": "prterun-node1-77@1", "PMIX_SERVER_URI41": "prterun;tcp4://127.0.0.1:1"}
HYDRA = {
    "PMI_RANK": "5",
    "PMI_SIZE": "8",
    "PMI_FD": "9",
    "PMI_HOSTNAME": "node1",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "4",
}
INTEL = {**HYDRA, "I_MPI_HYDRA_HOST_FILE": "hosts", "I_MPI_RANK_CMD": "x", "MPI_LOCALRANKID": "1"}
CRAY = {
    "PALS_RANKID": "5",
    "PALS_LOCAL_RANKID": "1",
    "PALS_LOCAL_SIZE": "4",
    "PMI_RANK": "5",
    "PMI_SIZE": "8",
    "PMI_LOCAL_RANK": "1",
    "PMI_LOCAL_SIZE": "4",
}
MVAPICH = {name.replace("OMPI", "MV2"): value for name, value in OPEN_MPI.items()}
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_NNODES": "2",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
BATCH_SCRIPT = {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_TASK_PID": "99"}
SRUN = {
    **JOB,
    "SLURM_STEP_ID": "0",
    "SLURM_STEPID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
AGENT = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "1",
}
FIFTH = (5, 8, 1, 4)  # rank, size, local rank, local size


@pytest.mark.parametrize(
    ("env", "launcher", "place"),
    [
        (OPEN_MPI, "Open MPI", FIFTH),
        ({**OPEN_MPI, **PRRTE}, "Open MPI", FIFTH),
        (HYDRA, "MPICH", FIFTH),
        (INTEL, "MPICH", FIFTH),
        (CRAY, "MPICH", FIFTH),
        (MVAPICH, "MVAPICH", FIFTH),
        (SRUN, "srun", FIFTH),
        ({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8", "PMI_FD": "9"}, "srun", FIFTH),  # --mpi=pmi2
        ({**SRUN, "PMIX_RANK": "5", "PMIX_NAMESPACE": "slurm.pmix.7.0"}, "srun", FIFTH),  # --mpi=pmix
        (TORCHRUN, "torchrun", FIFTH),
        ({**AGENT, **TORCHRUN}, "torchrun", FIFTH),
        ({**AGENT, "PMI_RANK": "1", "PMI_SIZE": "2", **TORCHRUN}, "torchrun", FIFTH),
        ({**AGENT, "PMIX_RANK": "1", **TORCHRUN}, "torchrun", FIFTH),
        ({**BATCH_SCRIPT, **HYDRA}, "MPICH", FIFTH),  # mpirun in a batch script
        ({**AGENT, **HYDRA}, "MPICH", FIFTH),  # whose daemons srun started
        ({**AGENT, **OPEN_MPI, **PRRTE}, "Open MPI", FIFTH),
        (PRRTE, "PMIx", (5, None, None, None)),  # prterun with a library that is not Open MPI
    ],
)
def test_the_place_of_a_process(env, launcher, place):
    found = detect_launcher(env)
    offers_pmix_alone = "PMIX_RANK" in env and launcher in ("srun", "PMIx")
    assert found == Launch(launcher, *place, pmix=offers_pmix_alone)
    assert not found.is_alone
    assert found.at_least >= 6


@pytest.mark.parametrize(
    "env",
    [
        {},
        JOB,  # the shell of salloc
        BATCH_SCRIPT,
        {**BATCH_SCRIPT, "SLURM_STEP_ID": str(0xFFFFFFFB)},  # Slurm's number of the batch step
        {**BATCH_SCRIPT, "SLURM_STEP_ID": str(0xFFFFFFFA), "SLURM_STEP_NUM_TASKS": "1"},  # interactive step of salloc
        {**BATCH_SCRIPT, "SLURM_STEP_ID": "batch"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {**AGENT, "PMI_SIZE": "1", "PMI_RANK": "0", "MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"},  # mpirun -n 1
        {"RANK": "3", "WORLD_SIZE": "8"},  # names that a user may have given a meaning
        {"PMI_SIZE": "", "OMPI_COMM_WORLD_SIZE": "many"},
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_a_lone_process_is_not_taken_for_one_of_many(env):
    found = detect_launcher(env)
    assert found.is_alone
    assert found.at_least == 1
    assert type(connect_ranks(env)) is Communicator


def test_tasks_of_the_own_node():
    def own(tasks, node=None):
        env = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": tasks} | ({"SLURM_NODEID": node} if node else {})
        return detect_launcher(env).local_size

    assert own("16(x3),2", "2") == 16
    assert own("16(x3),2", "3") == 2
    assert own("3,2", "0") == 3
    assert own("nonsense", "0") is None


def test_old_srun_numbers_a_step_without_counting_its_tasks():
    env = {name: value for name, value in SRUN.items() if name not in ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")}
    assert detect_launcher(env).size == 8


@pytest.mark.parametrize("env", [OPEN_MPI, SRUN, {**SRUN, "PMIX_RANK": "5"}, PRRTE, MVAPICH, TORCHRUN])
def test_processes_that_do_not_see_each_other_are_refused(env, monkeypatch):
    """This process is alone to its MPI library; the launcher has no part in it."""
    monkeypatch.setattr("atomsieve.runs.mpi._find_library_without_pmix", lambda: None)
    first = {
        name: "0" if name.endswith(("_RANK", "PROCID")) or name == "RANK" else value for name, value in env.items()
    }
    if env is not PRRTE:  # where rank 0 of an unknown number may be alone
        with pytest.raises(AtomSieveError, match=r"started 8 processes, but .* would do all the work"):
            connect_ranks(first)
    with pytest.raises(SystemExit) as other:
        connect_ranks(env)
    assert isinstance(other.value, SilentExit)
    assert other.value.code == 1


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("MPICH Version:      5.0.2\nMPICH configure:    --with-pm=hydra", True),
        ("MPICH Version:      5.0.2\nMPICH configure:    --with-pmix=/usr", False),
        ("Open MPI v5.0.8, package: Open MPI", False),
    ],
)
def test_a_library_without_pmix_is_refused_before_it_ends_the_process(version, refused, monkeypatch):
    """The library itself would abort in its initialization, with a message of its own."""
    answer = subprocess.CompletedProcess([], 0, f"{version}\x00\n", "")
    monkeypatch.setattr("atomsieve.runs.mpi.subprocess.run", lambda *words, **how: answer)
    words = "started 8 processes and connects them by PMIx, which the MPI library (MPICH 5.0.2) does not know"
    with pytest.raises(AtomSieveError) as told:
        connect_ranks({**SRUN, "PMIX_RANK": "0", "SLURM_PROCID": "0"})
    assert (words in str(told.value)) == refused
    assert "srun --mpi=pmi2" in str(told.value)


PROGRAM = """
import dataclasses, json, os
from atomsieve.runs.launcher import detect_launcher
os.write(1, (json.dumps(dataclasses.asdict(detect_launcher(os.environ))) + chr(10)).encode())
"""


def run_under(command: list[str], tmp_path: Path) -> list[dict]:
    path = shutil.which(command[0], path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{command[0]} is not installed")
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [path, *command[1:], str(tmp_path / "program.py")]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=True)
    return sorted((json.loads(text) for text in done.stdout.splitlines()), key=lambda found: found["rank"])


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["mpirun", "-n", "2", sys.executable], ("MPICH", "Open MPI")),
        (["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable], ("Open MPI",)),
        (["mpirun.mpich", "-n", "2", sys.executable], ("MPICH",)),
        (["torchrun", "--nproc-per-node", "2"], ("torchrun",)),
    ],
)
def test_a_real_launcher(command, names, tmp_path):
    found = run_under(command, tmp_path)
    assert [(f["rank"], f["size"], f["local_rank"], f["local_size"]) for f in found] == [(0, 2, 0, 2), (1, 2, 1, 2)]
    assert all(f["launcher"] in names for f in found)
