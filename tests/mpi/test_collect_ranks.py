"""Results kept on nodes under mpirun: ranks that share a node, a node that is lost, a death while collecting."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCREEN = Path(__file__).parents[1] / "screen"
MPIRUN = Path(sys.executable).parent / "mpirun"
IDENTICAL = ("rows.npy", "forces.npy", "top.csv", "run.json")

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not MPIRUN.exists(), reason=f"no {MPIRUN}: pip install mpich")]


def run(ranks, out, expect, program="screen_fakes.py", source="", **order):
    """Start ranks; `nodes: k` gives rank r the folder `<local><r % k>`, as if the ranks were on k machines."""
    command = [str(MPIRUN), "-n", str(ranks), sys.executable, str(SCREEN / program), str(source), str(out)]
    done = subprocess.run(
        [*command, json.dumps(order)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = done.stdout + done.stderr
    assert expect is None or done.returncode == expect, said
    assert "Traceback" not in said
    return said


def artefacts(path):
    return {name: (path / name).read_bytes() for name in IDENTICAL}


def options(near, **more):
    return {"forces": True, "local": str(near), **more}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from tests.screen.screen_fakes import candidates, save

    folder = tmp_path_factory.mktemp("nodes")
    source = save(folder / "candidates.npz", candidates(1500))
    run(1, folder / "one", 3, source=source, options={"forces": True})
    return source, artefacts(folder / "one")


@pytest.mark.parametrize(("ranks", "nodes"), [(3, 1), (3, 2)])
def test_ranks_on_nodes_give_the_same_bytes(whole, tmp_path, ranks, nodes):
    source, expected = whole
    run(ranks, tmp_path / "out", 3, source=source, nodes=nodes, options=options(tmp_path / "node"))
    assert artefacts(tmp_path / "out") == expected
    assert [list((tmp_path / f"node{k}").iterdir()) for k in range(nodes)] == [[]] * nodes
    assert not (tmp_path / "out" / "local.json").exists()


def test_a_killed_job_continues_from_its_nodes_and_computes_what_a_lost_one_had(whole, tmp_path):
    source, expected = whole
    order = {"source": source, "nodes": 3, "options": options(tmp_path / "node"), "slow": 0.02, "slow_others": 0.02}
    run(3, tmp_path / "out", None, fault="kill", after=10, rank=1, **order)
    assert not any((tmp_path / "out" / "ledger").iterdir())  # nothing was collected yet
    kept = sum(len(path.read_text().splitlines()) for path in tmp_path.glob("node[02]/*/ledger/*"))
    assert kept > 1
    shutil.rmtree(tmp_path / "node1")
    said = run(2, tmp_path / "out", 3, source=source, nodes=3, options=options(tmp_path / "node"))  # nodes 0 and 1
    assert "continuing: " in said
    assert artefacts(tmp_path / "out") == expected


def test_a_chunk_that_lies_on_two_nodes_counts_once(whole, tmp_path):
    source, _ = whole
    for k in (0, 1):  # the second part of the run was on another node, without what the first had left
        near = options(tmp_path / f"node{k}")
        run(1, tmp_path / "out", None, source=source, fault="kill", after=30, options=near)
    known = [sum(len(p.read_text().splitlines()) for p in tmp_path.glob(f"node{k}/*/ledger/*")) for k in (0, 1)]
    assert min(known) > 0
    said = run(2, tmp_path / "out", 0, "node_local/collect_fakes.py", tmp_path / "node")
    assert f"{max(known)} chunks from 2 nodes, {max(known)} of 24" in said


def test_one_process_per_node_collects(whole, tmp_path):
    source, expected = whole
    order = {"nodes": 2, "options": options(tmp_path / "node")}
    run(3, tmp_path / "out", None, source=source, fault="kill", after=10, rank=2, slow=0.02, slow_others=0.02, **order)
    kept = sum(len(path.read_text().splitlines()) for path in tmp_path.glob("node*/*/ledger/*"))
    said = run(2, tmp_path / "out", 0, "node_local/collect_fakes.py", tmp_path / "node")
    assert f"{kept} chunks from 2 nodes, {kept} of 24" in said
    assert said.count(" chunks from ") == 1
    assert not list(tmp_path.glob("node*/*"))
    said = run(2, tmp_path / "out", 1, "node_local/collect_fakes.py", tmp_path / "elsewhere")
    assert said.count("error: ") == 1 and "nothing of this run lies in" in said
    run(2, tmp_path / "out", 3, source=source, options={"forces": True})
    assert artefacts(tmp_path / "out") == expected
