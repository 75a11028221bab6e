"""The Prometheus file of a run: read back by the official parser, whole at every moment, no burden to the run."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from pathlib import Path

import pytest

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")

from atomsieve.errors import AtomSieveError, UsageError  # noqa: E402
from atomsieve.screen.telemetry.prometheus import Metrics, Snapshot, read_memory  # noqa: E402

LABELS = {"ensemble": "0123", "head": 'with "quotes"\nand \\', "device": "cpu"}


def read(path):
    """Return {(name, labels): value} as a collector sees it."""
    found = {}
    for family in parser.text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, "a value twice"
            found[key] = sample.value
    return found


def test_every_number_comes_back(tmp_path):
    metrics = Metrics(tmp_path / "screen.prom", 0, LABELS)
    metrics(
        Snapshot(
            total=1000,
            done=600,
            failed=7,
            left=300,
            per_second=12.5,
            stages={"read": 1.5, "predict": 40.25},
            queues={"batches": 3},
            memory={"resident": 1e9},
            joules={"cpu": None, "gpu": 77.0},
            batch_part=0.6,
        )
    )
    found = read(tmp_path / "screen.prom")
    p = "atomsieve_screen_"
    assert found[(p + "structures", ())] == 1000
    assert found[(p + "structures_done_total", ())] == 600
    assert found[(p + "structures_failed_total", ())] == 7
    assert found[(p + "structures_left", ())] == 300
    assert found[(p + "structures_per_second", ())] == 12.5
    assert found[(p + "stage_seconds_total", (("rank", "0"), ("stage", "predict")))] == 40.25
    assert found[(p + "queue_depth", (("queue", "batches"), ("rank", "0")))] == 3
    assert found[(p + "memory_bytes", (("kind", "resident"), ("rank", "0")))] == 1e9
    assert found[(p + "batch_part", (("rank", "0"),))] == 0.6
    assert found[(p + "energy_joules_total", (("kind", "gpu"), ("rank", "0")))] == 77.0
    assert not [key for key in found if "energy" in key[0] and ("kind", "cpu") in key[1]], "unknown is not zero"
    assert found[(p + "info", tuple(sorted(LABELS.items())))] == 1
    assert found[(p + "finished", ())] == 0
    metrics(Snapshot(1000, 1000, 7, 0, 12.5), finished=True)
    assert read(tmp_path / "screen.prom")[(p + "finished", ())] == 1


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "screen.prom"
    metrics = Metrics(path, 0, LABELS)
    metrics(Snapshot(10, 0, 0, 10, 0.0))
    stop, broken = threading.Event(), []

    def look():
        while not stop.is_set():
            if (("atomsieve_screen_finished", ())) not in read(path):
                broken.append(path.read_text())

    reader = threading.Thread(target=look)
    reader.start()
    for k in range(200):
        metrics(Snapshot(10, k, 0, 10, 0.0, stages={f"s{n}": n for n in range(k % 7)}))
    stop.set()
    reader.join()
    assert not broken and os.listdir(tmp_path) == ["screen.prom"]


def test_only_rank_0_writes_unless_the_name_says_that_every_rank_does(tmp_path):
    for rank in range(3):
        Metrics(tmp_path / "one.prom", rank, {})(Snapshot(10, rank, 0, 1, 1.0, stages={"read": rank}))
        Metrics(tmp_path / "of-{rank}.prom", rank, {})(Snapshot(10, rank, 0, 1, 1.0, stages={"read": rank}))
    assert sorted(os.listdir(tmp_path)) == ["of-0.prom", "of-1.prom", "of-2.prom", "one.prom"]
    assert read(tmp_path / "one.prom")[("atomsieve_screen_structures_done_total", ())] == 0
    seconds = ("atomsieve_screen_stage_seconds_total", (("rank", "2"), ("stage", "read")))
    assert read(tmp_path / "of-2.prom")[seconds] == 2


def test_a_place_that_cannot_be_written_is_said_before_the_run(tmp_path, monkeypatch):
    def refused(path):
        raise OSError(30, "Read-only file system")

    with pytest.raises(AtomSieveError, match=r"there is no folder .*make it"):
        Metrics(tmp_path / "nowhere" / "screen.prom", 0, {})
    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(AtomSieveError, match=r"cannot be written \(Read-only file system\); name a file in another"):
        Metrics(tmp_path / "x.prom", 0, {})
    monkeypatch.undo()
    with pytest.raises(AtomSieveError, match="is a folder; name a file in it"):
        Metrics(tmp_path, 0, {})


def test_other_words_in_braces_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"unknown \{rnk\}; only \{rank\} is replaced"):
        Metrics(tmp_path / "x-{rnk}-{rank}.prom", 0, {})
    assert not any(tmp_path.iterdir())


def test_a_place_that_is_lost_in_mid_run_is_said_once_and_stops_nothing(tmp_path, caplog):
    folder = tmp_path / "gone"
    folder.mkdir()
    metrics = Metrics(folder / "screen.prom", 0, {})
    folder.rmdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            metrics(Snapshot(10, 0, 0, 10, 0.0))
    assert caplog.text.count("cannot be written") == 1


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(AtomSieveError, match=r"pip install 'atomsieve\[metrics\]'"):
        Metrics(tmp_path / "screen.prom", 0, {})


def test_memory_of_this_process_is_told():
    found = read_memory("cpu")
    assert found["resident_peak"] >= 0.9 * found["resident"] > 1e6


def test_every_metric_is_documented(tmp_path):
    full = Snapshot(1, 1, 0, 0, 1.0, {"read": 1.0}, {"chunks": 1}, {"resident": 1.0}, {"gpu": 1.0})
    Metrics(tmp_path / "screen.prom", 0, LABELS)(full)
    text = (Path(__file__).resolve().parents[3] / "docs/watching.md").read_text()
    names = {name for name, _ in read(tmp_path / "screen.prom")}
    assert {f"`{name}`" for name in names} == set(re.findall(r"`atomsieve_screen_\w+`", text))
