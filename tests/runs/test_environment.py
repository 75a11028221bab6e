"""The environment of a process: how many threads it gets, and what is not passed on to other programs."""

from __future__ import annotations

import os

import pytest

from atomsieve.runs import environment


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, 1),
        ({"MPI_LOCALNRANKS": "4"}, 4),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "16(x3),2"}, 16),
        ({"SLURM_STEP_TASKS_PER_NODE": "3,2"}, 3),
        ({"MPI_LOCALNRANKS": "nonsense"}, 1),
        ({"MPI_LOCALNRANKS": "0"}, 1),
    ],
)
def test_local_ranks(environ, ranks):
    assert environment.count_local_ranks(environ) == ranks


@pytest.mark.parametrize(
    ("own", "parents", "ranks", "cores"),
    [(8, 8, 1, 8), (8, 8, 2, 4), (8, 8, 3, 2), (2, 8, 4, 2), (2, 2, 4, 1)],
)
def test_cores_are_shared_unless_the_launcher_bound_the_rank(monkeypatch, own, parents, ranks, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(own if pid == 0 else parents)))
    assert environment.count_own_cores({"MPI_LOCALNRANKS": str(ranks)}) == cores


def test_programs_that_share_the_cores_out_get_no_threads_of_the_launchers():
    ours = {environment.MARK: "1:MALLOC_MMAP_MAX_,OMP_NUM_THREADS", "OMP_NUM_THREADS": "8", "MALLOC_MMAP_MAX_": "0"}
    assert environment.drop_own_threads(ours) == {name: ours[name] for name in (environment.MARK, "MALLOC_MMAP_MAX_")}
    users = {**ours, environment.MARK: "1:MALLOC_MMAP_MAX_"}
    assert environment.drop_own_threads(users) == users
