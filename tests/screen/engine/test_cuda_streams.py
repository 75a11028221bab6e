"""Batches on several lanes: the same rows as one by one, in the same order, whatever happens on the way."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest

from atomsieve.screen.engine.cuda_streams import StreamedPredictor
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.run import run_screen
from tests.screen.screen_fakes import FakePredictor, MemoryReader, candidates

OPTIONS = ScreenOptions(chunk_size=64, max_atoms=100, commit_seconds=0.0, forces=True, head="all")


class Counting(FakePredictor):
    """Says how many batches were at work at once; the first waits for the second."""

    def __init__(self):
        super().__init__()
        self.both, self.threads = threading.Barrier(2, timeout=20), set()

    def before(self, batch):
        self.threads.add(threading.get_ident())
        if self.calls == 0:
            self.both.wait()


def test_a_run_on_lanes_gives_the_same_bytes(tmp_path):
    reader = MemoryReader(candidates(400))
    run_screen("c.npz", "gfm", OPTIONS, out=tmp_path / "one", predictor=FakePredictor(), reader=reader)
    inner = Counting()
    with StreamedPredictor(inner, 2) as lanes:
        result = run_screen("c.npz", "gfm", OPTIONS, out=tmp_path / "two", predictor=lanes, reader=reader)
    assert result.computed == 400
    assert len(inner.threads) == 2
    for name in ("rows.npy", "forces.npy", "top.csv", "run.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


class OutOfRoom(FakePredictor):
    def before(self, batch):
        if batch.n_atoms > 30:
            raise MemoryError("no room")


def test_a_batch_that_does_not_fit_is_computed_in_halves():
    batch = candidates(60, bad=False)
    with StreamedPredictor(OutOfRoom(), 2) as lanes:
        found, *_ = Runner(lanes, ["pbe", "scan"], False, 100, 10**6, None, 1000)(batch, 0)
    expected, *_ = Runner(FakePredictor(), ["pbe", "scan"], False, 100, 10**6, None, 1000)(batch, 0)
    np.testing.assert_allclose(found["energy"], expected["energy"], rtol=1e-12)
    assert not found["status"].any()


class OneRoom(FakePredictor):
    """Has room for a hundred atoms, of all batches at work together; the first two wait for each other."""

    def __init__(self):
        super().__init__()
        self.lock, self.used, self.failed = threading.Lock(), 0, 0
        self.both, self.begun = threading.Barrier(2, timeout=20), 0

    def __call__(self, batch, want, head=None, **more):
        with self.lock:
            self.used += batch.n_atoms
            over = self.used > 100
            self.failed += over
            self.begun += 1
            first = self.begun <= 2
        try:
            if first:
                self.both.wait()
            if over:
                raise MemoryError("no room")
            return super().__call__(batch, want, head)
        finally:
            with self.lock:
                self.used -= batch.n_atoms


def test_what_fits_alone_is_computed_alone_and_whole():
    batch = candidates(200, bad=False)
    inner = OneRoom()
    with StreamedPredictor(inner, 2) as lanes:
        found, *_ = Runner(lanes, ["pbe"], False, 99, 10**6, None, 1000)(batch, 0)
    assert inner.failed
    assert not found["status"].any()
    expected, *_ = Runner(FakePredictor(), ["pbe"], False, 99, 10**6, None, 1000)(batch, 0)
    assert found.tobytes() == expected.tobytes()


def test_ctrl_c_while_the_lanes_are_waited_for_does_not_block_them():
    busy = threading.Event()

    class Slow(FakePredictor):
        def before(self, batch):
            busy.wait(20)

    batch = candidates(3, bad=False)
    with StreamedPredictor(Slow(), 2) as lanes:
        first = lanes.submit(batch, {"energy"})
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            lanes(batch, {"energy"})
        busy.set()
        assert first.result(20) is not None
        assert lanes.submit(batch, {"energy"}).result(20) is not None


class Broken(FakePredictor):
    def before(self, batch):
        raise ZeroDivisionError


def test_an_error_on_a_lane_ends_the_run(tmp_path):
    reader = MemoryReader(candidates(400))
    with StreamedPredictor(Broken(), 2) as lanes, pytest.raises(ZeroDivisionError):
        run_screen("c.npz", "gfm", OPTIONS, out=tmp_path / "out", predictor=lanes, reader=reader)
