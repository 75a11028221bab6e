"""The stages beside the computing: chunks read ahead by another process, and written by a thread."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.screen.engine import reader_process
from atomsieve.screen.engine.reader_process import AHEAD, ChunkSource
from atomsieve.screen.engine.writer_thread import WAITING, ChunkWriter
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.columns import blank_rows
from atomsieve.screen.results.npy_file import ChunkArrays
from atomsieve.structures import StructureWriter, open_structures
from atomsieve.structures.fields import CONDITIONS
from tests.screen.screen_fakes import MemoryReader, candidates

N, SIZE = 400, 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("reading") / "candidates.bp"
    with StructureWriter(path, step_size=100) as writer:
        for first in range(0, N, 100):
            writer.append(candidates(N, bad=False).slice(first, first + 100))
    return path


class Claims:
    """Hands out chunks and remembers how many were taken."""

    def __init__(self, count):
        self.taken, self.count = 0, count

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == self.count:
            raise StopIteration
        self.taken += 1
        return self.taken - 1


def up(found):
    """Wait until the process that reads ahead is there."""
    deadline = time.monotonic() + 60
    while not found._process.up:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def same(a, b):
    assert a.present().keys() == b.present().keys()
    for name, array in a.present().items():
        np.testing.assert_array_equal(array, b.present()[name])
        assert array.dtype == b.present()[name].dtype


def test_chunks_come_in_order_and_whole_from_another_process(dataset):
    chunks = Chunks(N, SIZE)
    claims = Claims(chunks.count)
    with open_structures(dataset) as reader, ChunkSource(reader, claims, chunks.span) as found:
        for expected, (chunk, batch) in enumerate(found):
            assert chunk == expected
            assert claims.taken <= expected + 1 + AHEAD  # work is not hoarded
            same(batch, reader.read(*chunks.span(chunk), CONDITIONS))
            assert found._here == (expected == 0)
            up(found)
        assert expected == chunks.count - 1
        child = found._process._child
    assert child.returncode is not None
    assert found.seconds > 0
    assert found.waited > 0


def test_nobody_waits_for_the_process_to_start(dataset, monkeypatch):
    monkeypatch.setattr(reader_process._ReaderProcess, "_receive", lambda self: None)  # it never says that it is up
    chunks = Chunks(N, SIZE)
    with open_structures(dataset) as reader, ChunkSource(reader, Claims(chunks.count), chunks.span) as found:
        assert [chunk for chunk, _ in found] == list(range(chunks.count))


def test_one_chunk_needs_no_process(dataset):
    with open_structures(dataset) as reader, ChunkSource(reader, iter([2]), Chunks(N, SIZE).span) as found:
        assert [chunk for chunk, _ in found] == [2]
        assert found._process is None


def test_a_reader_of_another_kind_is_read_here_and_nothing_is_claimed_ahead():
    chunks, reader = Chunks(N, SIZE), MemoryReader(candidates(N))
    claims = Claims(chunks.count)
    with ChunkSource(reader, claims, chunks.span) as found:
        for expected, (_, batch) in enumerate(found):
            assert claims.taken == expected + 1
            same(batch, reader.read(*chunks.span(expected)))


def test_damage_is_told_at_its_chunk(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "copy.bp")
    reader, chunks = open_structures(tmp_path / "copy.bp"), Chunks(N, 100)
    data = next((tmp_path / "copy.bp").rglob("data.0"))
    whole = bytearray(data.read_bytes())
    whole[-1] ^= 1
    data.write_bytes(whole)
    with reader, ChunkSource(reader, Claims(4), chunks.span) as found:
        assert next(found)[0] == 0
        up(found)
        assert [next(found)[0] for _ in range(2)] == [1, 2]
        assert not found._here
        with pytest.raises(DataError, match="damaged"):
            next(found)


def test_an_input_that_changed_is_refused(dataset, tmp_path, monkeypatch):
    reader = open_structures(dataset)
    monkeypatch.setattr(reader, "identity", lambda: "another")
    spans = Chunks(N, 100).span
    with ChunkSource(reader, Claims(4), spans) as found:
        next(found)
        up(found)
        next(found)
        with pytest.raises(DataError, match="changed while it was screened"):
            next(found)


def test_after_a_process_that_was_killed_the_rank_reads_what_it_was_asked_for(dataset):
    """So if it was the chunk that killed it, the rank dies of it, and it is known which chunk that was."""
    chunks, begun = Chunks(N, SIZE), []
    with open_structures(dataset) as reader, ChunkSource(reader, Claims(7), chunks.span, begun.append) as found:
        next(found)
        up(found)
        next(found)
        os.kill(found._process._child.pid, signal.SIGKILL)
        rest = list(found)
        assert [chunk for chunk, _ in rest] == [2, 3, 4, 5, 6]
        same(rest[0][1], reader.read(*chunks.span(2), CONDITIONS))
    assert set(begun) >= {0, 1, 3, 4, 5, 6}  # the second may have been read before it died


def test_a_run_that_ends_before_its_reader_has_started_says_nothing(dataset, caplog):
    with open_structures(dataset) as reader:
        reader_process._ReaderProcess(reader).close()
    assert not caplog.records


def test_what_makes_no_sense_is_told(dataset, monkeypatch):
    monkeypatch.setattr(reader_process, "_read_array", lambda *given: 1 / 0)
    with open_structures(dataset) as reader, ChunkSource(reader, Claims(7), Chunks(N, SIZE).span) as found:
        next(found)
        up(found)
        next(found)
        with pytest.raises(DataError, match="makes no sense"):
            next(found)


class EnoughError(Exception):
    pass


def test_a_wait_for_a_chunk_can_be_left(dataset):
    waits = []

    def idle():
        waits.append(1)
        if len(waits) == 3:
            raise EnoughError

    with open_structures(dataset) as reader, ChunkSource(reader, Claims(7), Chunks(N, SIZE).span, idle=idle) as found:
        next(found)
        up(found)
        os.kill(found._process._child.pid, signal.SIGSTOP)
        next(found)
        with pytest.raises(EnoughError):
            next(found)


def test_files_in_the_working_directory_are_not_taken_for_modules(dataset, tmp_path, monkeypatch):
    (tmp_path / "signal.py").write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    with open_structures(dataset) as reader, ChunkSource(reader, Claims(7), Chunks(N, SIZE).span) as found:
        next(found)
        up(found)


def test_without_a_process_chunks_are_read_here(dataset, monkeypatch):
    def refused(*given, **more):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(reader_process, "start_module", refused)
    with open_structures(dataset) as reader, ChunkSource(reader, Claims(7), Chunks(N, SIZE).span) as found:
        assert [chunk for chunk, _ in found] == list(range(7))


def test_the_process_ends_with_the_one_that_started_it(dataset):
    with open_structures(dataset) as reader:
        process = reader_process._ReaderProcess(reader)
        process._child.stdin.close()
        assert process._child.wait(20) == 0
        process.close()


class Target:
    """Stands in for a ResultWriter."""

    def __init__(self, fail_at=None):
        self.put_so_far, self.fail_at, self.left_with, self.go = [], fail_at, "not left", threading.Event()
        self.go.set()

    def __enter__(self):
        return self

    def put(self, chunk, arrays, seconds):
        self.go.wait(20)
        if chunk == self.fail_at:
            raise AtomSieveError("no space left")
        self.put_so_far.append(chunk)

    def commit_if_due(self):
        pass

    def __exit__(self, *exception):
        self.left_with = exception[0]


def chunk(k):
    return k, ChunkArrays(blank_rows(3)), 0.0


def test_everything_handed_over_is_reduced_and_written_in_order():
    target, seen = Target(), []
    with ChunkWriter(target, lambda rows: seen.append(len(rows))) as writing:
        for k in range(20):
            writing.put(chunk(k))
    assert target.put_so_far == list(range(20))
    assert seen == [3] * 20
    assert target.left_with is None


def test_what_was_computed_is_written_also_when_the_loop_fails():
    target = Target()

    def loop():
        with ChunkWriter(target, lambda rows: None) as writing:
            writing.put(chunk(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert target.put_so_far == [0]
    assert target.left_with is None  # so that it makes them durable


def test_an_error_of_the_writer_ends_the_loop():
    target = Target(fail_at=1)

    def loop():
        with ChunkWriter(target, lambda rows: None) as writing:
            for k in range(1000):
                writing.put(chunk(k))

    with pytest.raises(AtomSieveError, match="no space left"):
        loop()
    assert target.put_so_far == [0]
    assert target.left_with is AtomSieveError


def test_computing_does_not_run_away_from_a_slow_disk():
    target = Target()
    target.go.clear()
    with ChunkWriter(target, lambda rows: None) as writing:
        for k in range(WAITING):
            writing.put(chunk(k))
        waits = threading.Thread(target=lambda: [writing.put(chunk(k)) for k in (97, 98)])
        waits.start()
        waits.join(0.5)
        assert waits.is_alive()
        target.go.set()
        waits.join(20)
    assert target.put_so_far == [*range(WAITING), 97, 98]
