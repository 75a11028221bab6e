"""Copies of parts of the input on a nearer disk: the same structures, verified, and read where they lie."""

from __future__ import annotations

import shutil
from io import StringIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from atomsieve.errors import DataError
from atomsieve.runs.mpi import Communicator
from atomsieve.screen.engine.locality import assign_queues, format_copies
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.run import run_screen
from atomsieve.structures import StructureWriter, open_structures
from tests.screen.screen_fakes import FakePredictor, candidates

ranks_of = st.integers(1, 4)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.lists(st.integers(0, 3), max_size=90), ranks_of)
def test_every_chunk_is_handed_out_once_and_own_ones_first(queue, order, ranks):
    comm, todo, lot = Communicator(), [10 * k for k in range(len(queue))], np.array(queue)
    hands = [comm.claim(todo, lot, own) for own in range(ranks)]
    taken: list[list[int]] = [[] for _ in hands]
    for turn in [*order, *range(ranks)] + [r for r in range(ranks) for _ in todo]:
        chunk = next(hands[turn % ranks], None)
        if chunk is not None:
            rank, of = turn % ranks, queue[chunk // 10]
            left = {queue[c // 10] for c in todo if all(c not in t for t in taken)}
            assert of == rank or rank not in left  # nobody helps others while own work waits
            taken[rank].append(chunk)
    assert sorted(chunk for own in taken for chunk in own) == todo


def test_nothing_is_handed_out_after_a_stop():
    comm = Communicator()
    hand = comm.claim([1, 2, 3], np.array([0, 1, 1]), 1)
    assert next(hand) == 2
    for _ in range(40):  # as many ranks may ask for it
        comm.stop_claims()
        assert next(hand, None) is None
        assert next(comm.claim([1, 2, 3]), None) is None
    comm.reset_claims()
    assert next(comm.claim([1, 2, 3])) == 1


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Three parts of 100 structures, and a folder with a copy of the second."""
    path, near = tmp_path / "candidates.bp", tmp_path / "near"
    batch = candidates(300)
    monkeypatch.setattr("atomsieve.structures.dataset.part_writer.STEPS_PER_PART", 2)
    with StructureWriter(path, step_size=50) as writer:
        writer.append(batch)
    near.mkdir()
    with open_structures(path) as reader:
        part = reader.manifest.parts[1].path
    shutil.copytree(path / part, near / part)
    return path, near, batch


class Several(Communicator):
    """One rank of those that hold `held`."""

    def __init__(self, held, rank):
        super().__init__()
        self.held, self.rank = held, rank

    def all_gather(self, value):
        return self.held


def test_chunks_wait_for_those_that_hold_their_part(dataset):
    path, near, _ = dataset
    with open_structures(path, copies=near) as reader:
        assert reader.copied == {1}
        chunks = Chunks(300, 25)
        queue, own = assign_queues(Several([(), (1,), (1,), (0, 1)], 1), reader, chunks, list(range(12)))
    # in the order of their tuples: (0, 1) has queue 1, (1,) queue 2; part 1 goes to both in turn
    assert queue.tolist() == [1, 1, 1, 1, 1, 2, 1, 2, 0, 0, 0, 0]
    assert own == 2
    assert assign_queues(Several([(), ()], 0), reader, chunks, [1]) == (None, 0)


def test_copies_are_read_and_verified(dataset):
    path, near, batch = dataset
    with open_structures(path, copies=near) as reader:
        np.testing.assert_array_equal(reader.read(80, 220).positions, batch.slice(80, 220).positions)
    data = next(near.rglob("data.0"))
    changed = bytearray(data.read_bytes())
    changed[len(changed) // 2] ^= 1
    data.write_bytes(changed)
    with open_structures(path) as reader:
        reader.read(80, 220)  # the original is sound
    with open_structures(path, copies=near) as reader, pytest.raises(DataError, match=f"{near}.* is damaged"):
        reader.read(80, 220)


def test_a_copy_that_is_not_whole_is_left_out(dataset):
    path, near, _ = dataset
    data = next(near.rglob("data.0"))
    data.write_bytes(data.read_bytes()[:-1])
    with open_structures(path, copies=near) as reader:
        assert not reader.copied
        reader.read(80, 220)
    with pytest.raises(DataError, match="is no folder; name the one that holds copies"):
        open_structures(path, copies=near / "elsewhere")


def test_a_run_with_copies_gives_the_same_bytes(dataset, tmp_path):
    path, near, _ = dataset
    for out, copies in (("one", None), ("two", str(near))):
        options = ScreenOptions(chunk_size=16, commit_seconds=0.0, copies=copies)
        run_screen(path, "gfm", options, out=tmp_path / out, predictor=FakePredictor())
    assert (tmp_path / "one" / "rows.npy").read_bytes() == (tmp_path / "two" / "rows.npy").read_bytes()


def test_a_run_says_how_many_parts_are_copies(dataset, tmp_path):
    path, near, _ = dataset
    (tmp_path / "other").mkdir()
    for copies, line in (
        (near, f"copies: 1 of 3 parts are read from {near}"),
        (tmp_path / "other", f"warning: --copies {tmp_path / 'other'} holds no part of the candidates whole"),
        (None, None),
    ):
        shown = StringIO()
        options = ScreenOptions(chunk_size=16, copies=None if copies is None else str(copies))
        run_screen(
            path,
            "gfm",
            options,
            out=tmp_path / "out",
            predictor=FakePredictor(),
            overwrite=True,
            console=Console(file=shown, width=300),
        )
        assert "copies" not in shown.getvalue() if line is None else shown.getvalue().count(line) == 1
    with pytest.raises(DataError, match="elsewhere is no folder; name the one that holds copies"):
        run_screen(
            path, "gfm", ScreenOptions(copies=str(near / "elsewhere")), out=tmp_path / "no", predictor=FakePredictor()
        )
    with open_structures(path, copies=near) as reader:  # nodes hold different ones
        assert (
            format_copies(Several([(1,), (0, 1), ()], 0), reader, "/local")
            == "copies: 2 of 3 parts are read from /local"
        )
