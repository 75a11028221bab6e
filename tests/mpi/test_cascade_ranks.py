"""A precision cascade under mpirun: the same bytes whatever the number of ranks and whoever dies on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "screen" / "cascade" / "cascade_fakes.py"
MPIRUN = Path(sys.executable).parent / "mpirun"
OPTIONS = {"forces": True, "where": "max_force < 9"}

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(not MPIRUN.exists(), reason=f"no {MPIRUN}: pip install mpich")]


def run(ranks, source, out, order=None, **options):
    given = json.dumps({**OPTIONS, **options})
    command = [sys.executable, str(PROGRAM), str(source), str(out), given, json.dumps(order or {})]
    if ranks:
        command = [str(MPIRUN), "-n", str(ranks), *command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return done.returncode, done.stdout + done.stderr


def artefacts(path):
    plain = json.loads((path / "cascade.json").read_text())
    files = ("rows.npy", "forces.npy", "top.csv", "run.json")
    return {"rules": plain["rules"], **{name: (path / name).read_bytes() for name in files}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The input, and what one undisturbed process makes of it."""
    from tests.screen.screen_fakes import candidates, save

    folder = tmp_path_factory.mktemp("cascade")
    source = save(folder / "candidates.npz", candidates(700))
    code, said = run(0, source, folder / "one")
    assert code == 3, said
    return source, artefacts(folder / "one")


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_gives_the_same_bytes(whole, tmp_path, ranks):
    source, expected = whole
    code, said = run(ranks, source, tmp_path / "out")
    assert code == 3, said
    assert artefacts(tmp_path / "out") == expected


def test_a_rank_killed_while_it_recomputes_costs_nothing_but_time(whole, tmp_path):
    source, expected = whole
    for ranks, order in ((2, {"at": 3}), (3, {"at": 1})):  # whoever comes to that call first
        code, _ = run(ranks, source, tmp_path / "out", order)
        assert (tmp_path / "out/cascade.json").exists()
        assert not (tmp_path / "out/rows.npy").exists(), code
    code, said = run(1, source, tmp_path / "out")
    assert code == 3, said
    assert artefacts(tmp_path / "out") == expected


def test_ctrl_c_to_one_rank_in_a_chunk_ends_the_others_with_theirs(whole, tmp_path):
    source, expected = whole
    small = {"max_atoms": 10}  # several batches in a chunk: the rank leaves between two of them
    order = {"rank": 1, "at": 2, "signal": "SIGINT", "pause": 0.05}
    code, said = run(2, source, tmp_path / "out", order, **small)
    assert code == 75, said
    notes = "".join(path.read_text() for path in (tmp_path / "out/cascade").glob("*.notes"))
    assert len(notes.split("\n\n")) <= 2, "chunks, of 11"
    code, said = run(2, source, tmp_path / "out", **small)
    assert code == 3, said
    for name in ("rows.npy", "forces.npy", "top.csv"):  # run.json tells the batches
        assert (tmp_path / "out" / name).read_bytes() == expected[name]
