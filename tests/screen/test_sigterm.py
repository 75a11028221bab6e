"""SIGTERM leaves time for the chunk at hand, Ctrl-C for the batch."""

from __future__ import annotations

import os
import signal
import time

import pytest

from atomsieve.errors import Interrupted, UsageError
from atomsieve.screen.engine.in_flight import decode_markers
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import ledger
from tests.screen.screen_fakes import FakePredictor


class Signalled(FakePredictor):
    """Sends its own process a signal at the first batch of a chunk, and then takes its time."""

    def __init__(self, number, chunk=4, seconds=0.0):
        super().__init__()
        self.number, self.first, self.seconds = number, 1000 + 64 * chunk, seconds
        self.sent = False
        self.after = 0

    def before(self, batch):
        if self.sent:
            self.after += 1
        elif batch.id.max() >= self.first:
            self.sent = True
            os.kill(os.getpid(), self.number)
            time.sleep(self.seconds)


def durable(path):
    return sorted(ledger.read(path / "ledger"))


@pytest.mark.parametrize(
    ("number", "grace", "seconds", "chunks"),
    [
        (signal.SIGTERM, 60.0, 0.0, 5),  # the chunk at hand is finished, and no other one is begun
        (signal.SIGTERM, 0.0, 0.0, 4),
        (signal.SIGTERM, 0.02, 0.1, 4),  # the time is over before the batch is
        (signal.SIGINT, 60.0, 0.0, 4),
    ],
)
def test_what_a_signal_leaves_time_for(screen, tmp_path, number, grace, seconds, chunks):
    predictor = Signalled(number, seconds=seconds)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(Interrupted, match=f"screened now and safe in .*: {64 * chunks} structures; run") as caught:
        screen(predictor, grace=grace)
    assert caught.value.exit_code == 75
    assert durable(tmp_path / "out") == list(range(chunks))
    assert (predictor.after > 0) == (chunks == 5)
    assert {n: signal.getsignal(n) for n in before} == before
    screen()
    screen(out="whole")
    for name in ("rows.npy", "top.csv", "run.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_batch_system_kills_before_the_grace_is_over_is_no_suspect(screen, tmp_path):
    predictor, kept, at_once = Signalled(signal.SIGTERM), [], []
    look = predictor.before

    def before(batch):
        alone = not predictor.sent
        look(batch)
        at_once.append(alone and predictor.sent)
        kept.append((tmp_path / "out" / "at_hand.bin").read_bytes())  # what SIGKILL would leave here

    predictor.before = before
    with pytest.raises(Interrupted):
        screen(predictor)
    here = at_once.index(True)
    assert all(decode_markers(data) for data in kept[:here]) and not any(decode_markers(data) for data in kept[here:])
    assert len(kept) > here + 1


def test_a_signal_in_the_last_chunk_changes_nothing(screen, tmp_path):
    result = screen(Signalled(signal.SIGTERM, chunk=15))
    assert result.computed == 1000
    assert (tmp_path / "out" / "rows.npy").exists()


@pytest.mark.parametrize("grace", [-1.0, float("nan")])
def test_a_wrong_time_is_refused(grace):
    with pytest.raises(UsageError, match="grace must be at least 0"):
        ScreenOptions(grace=grace)
