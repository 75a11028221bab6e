"""What the ranks find together is what one alone finds, and no rank reads it all."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from atomsieve.runs.mpi import Communicator
from atomsieve.screen.engine.startup_scan import count_atoms_before, read_ledgers
from atomsieve.screen.results import ledger
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.ledger import Entry
from atomsieve.structures import open_structures, write_structures
from tests.screen.screen_fakes import MemoryReader, candidates


class Threads(Communicator):
    """Ranks that are threads."""

    def __init__(self, rank, size, board):
        super().__init__()
        self.rank, self.size, self.board = rank, size, board

    def all_gather(self, value):
        self.board["values"][self.rank] = value
        self.board["barrier"].wait()
        found = list(self.board["values"])
        self.board["barrier"].wait()
        return found

    def together(self, work):
        value = work()
        self.gather(None)
        return value

    def first(self, work):
        return self.gather(work() if self.rank == 0 else None)[0]


def on_ranks(size, work):
    board = {"values": [None] * size, "barrier": threading.Barrier(size, timeout=20)}
    found = [None] * size

    def one(rank):
        found[rank] = work(Threads(rank, size, board))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class Counting(MemoryReader):
    """Notes which structures were asked for."""

    def __init__(self, batch):
        super().__init__(batch)
        self.asked = []

    def read_arrays(self, start, stop, fields):
        assert not list(fields)
        self.asked.append((start, stop))
        return {"ptr": self.batch.ptr[start : stop + 1] - self.batch.ptr[start]}


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("chunks", [Chunks(1000, 64), Chunks(1000, 64, taper=True), Chunks(5, 64), Chunks(1000, 1)])
def test_atoms_before_each_chunk(monkeypatch, size, chunks):
    monkeypatch.setattr("atomsieve.screen.engine.startup_scan.PIECE", 150)
    batch = candidates(1000)
    expected = batch.ptr[chunks.starts()]
    readers = [Counting(batch) for _ in range(size)]
    for found in on_ranks(size, lambda comm: count_atoms_before(comm, readers[comm.rank], chunks)):
        assert np.array_equal(found, expected)
    asked = sorted(span for reader in readers for span in reader.asked)
    assert [a for a, _ in asked] == [0, *[b for _, b in asked[:-1]]]  # each structure once, by one rank
    if chunks.count >= size:
        shares = [sum(b - a for a, b in reader.asked) for reader in readers]
        assert max(shares) <= chunks.n / size + 2 * chunks.size


def test_atoms_before_each_chunk_from_files(tmp_path):
    batch, chunks = candidates(300, bad=False), Chunks(250, 64)
    write_structures(tmp_path / "x.bp", batch, step_size=37)
    with open_structures(tmp_path / "x.bp") as reader:
        assert np.array_equal(count_atoms_before(Communicator(), reader, chunks), batch.ptr[chunks.starts()])
    assert np.array_equal(count_atoms_before(Communicator(), MemoryReader(batch), chunks), batch.ptr[chunks.starts()])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_what_the_ledgers_tell(tmp_path, size):
    folder = ResultsFolder(tmp_path)
    folder.ledger.mkdir()
    rng = np.random.default_rng(0)
    entered = []
    for rank in range(5):
        mine = [Entry(int(c), int(rng.integers(2**32)), int(rng.integers(2**32)), 64) for c in rng.integers(0, 40, 12)]
        ledger.append(folder.ledger / f"{rank:05d}.ledger", mine)
        entered += mine
    torn = folder.ledger / "00002.ledger"
    torn.write_bytes(torn.read_bytes() + b"1234abcd {")
    whole = ledger.read(folder.ledger)
    for found in on_ranks(size, lambda comm: read_ledgers(comm, folder)):
        assert found["chunk"].tolist() == sorted(entry.chunk for entry in entered)
        pairs = {tuple(row) for row in found.tolist()}
        assert pairs == {(e.chunk, e.rows, e.forces, 0) for entries in whole.values() for e in entries}
    assert torn.read_bytes().endswith(b"}\n")


def test_no_ledger_at_all(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.ledger.mkdir()
    for found in on_ranks(2, lambda comm: read_ledgers(comm, folder)):
        assert len(found) == 0 and found.dtype == ledger.KNOWN
