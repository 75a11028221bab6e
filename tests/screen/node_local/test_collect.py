"""Results kept on a node first: the same bytes in the end, whatever is lost on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from atomsieve.errors import AtomSieveError, Interrupted, UsageError
from atomsieve.screen.node_local import writer as node_local_writer
from atomsieve.screen.node_local.collect import collect
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import ledger
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.npy_file import ArrayFiles, row_file
from tests.screen.screen_fakes import FakePredictor

IDENTICAL = ("rows.npy", "forces.npy", "top.csv", "run.json")


def artefacts(path):
    return {name: (path / name).read_bytes() for name in IDENTICAL if (path / name).exists()}


class Breaks(FakePredictor):
    """Fails at a call."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def before(self, batch):
        if self.calls == self.at:
            raise ZeroDivisionError


@pytest.fixture
def near(tmp_path):
    return tmp_path / "node"


@pytest.fixture
def whole(screen, tmp_path):
    """What a run without any of this gives."""
    screen(out="whole", forces=True)
    return artefacts(tmp_path / "whole")


@pytest.fixture
def broken(screen, near, tmp_path, monkeypatch):
    """A run that died with chunks on its node only; returns how many structures they hold."""
    with monkeypatch.context() as dies:
        dies.setattr(node_local_writer.LocalWriter, "collect", lambda self: None)
        with pytest.raises(ZeroDivisionError):
            screen(Breaks(30), forces=True, local=str(near), commit_seconds=0.0)
    assert ledger.read(tmp_path / "out" / "ledger") == {}
    (folder,) = near.iterdir()
    found = ledger.read(folder / "ledger")
    assert len(found) > 3
    return sum(entries[0].structures for entries in found.values())


def test_the_same_bytes_and_nothing_stays_on_the_node(screen, near, tmp_path, whole):
    screen(forces=True, local=str(near))
    assert artefacts(tmp_path / "out") == whole
    assert list(near.iterdir()) == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    assert sorted(ledger.read(tmp_path / "out" / "ledger")) == list(range(16))


def test_a_death_at_the_very_end_leaves_nothing_on_the_node_for_good(screen, near, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as dies:
        dies.setattr(node_local_writer.LocalStore, "remove", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            screen(forces=True, local=str(near))
    assert (tmp_path / "out/local.json").exists() and len(list(near.iterdir())) == 1
    screen(forces=True, local=str(near))
    assert list(near.iterdir()) == [] and not (tmp_path / "out/local.json").exists()
    assert artefacts(tmp_path / "out") == whole


def test_until_it_is_collected_a_chunk_is_on_the_node_only(screen, near, tmp_path, broken):
    rows = np.load(next(near.iterdir()) / "rows.npy.part")
    assert np.count_nonzero(rows["natoms"]) > 100
    far = np.load(tmp_path / "out" / "rows.npy.part")
    assert not far["natoms"].any()


def test_collected_now_and_then_means_durable_in_the_results_folder(screen, near, tmp_path, monkeypatch):
    def nothing(self):
        self.commit()

    monkeypatch.setattr(node_local_writer.LocalWriter, "flush", nothing)
    with pytest.raises(ZeroDivisionError):
        screen(Breaks(30), local=str(near), commit_seconds=0.0, collect_seconds=0.0)
    here = ledger.read(next(near.iterdir()) / "ledger")
    assert ledger.read(tmp_path / "out" / "ledger") == here
    again = screen(local=str(near))
    assert again.computed == 1000 - sum(entries[0].structures for entries in here.values())


def test_an_error_that_leaves_the_process_alive_loses_nothing_on_the_node(screen, near, tmp_path):
    with pytest.raises(ZeroDivisionError):
        screen(Breaks(30), local=str(near))
    assert len(ledger.read(tmp_path / "out" / "ledger")) > 3


def test_the_next_start_finds_what_lies_on_the_node(screen, near, tmp_path, whole, broken):
    console = Console(file=StringIO())
    result = screen(forces=True, local=str(near), console=console)
    assert result.computed == 1000 - broken
    assert "collected: " in console.file.getvalue()
    assert artefacts(tmp_path / "out") == whole


def test_the_verb_collects_and_a_run_without_a_node_goes_on(screen, near, tmp_path, whole, broken):
    from atomsieve.cli.screen import app

    done = CliRunner().invoke(app, ["collect", str(tmp_path / "out"), "--local", str(near)])
    assert done.exit_code == 0, done.output
    assert f"({broken} structures) brought to" in done.output
    assert list(near.iterdir()) == []
    assert screen(forces=True).computed == 1000 - broken
    assert artefacts(tmp_path / "out") == whole
    assert not (tmp_path / "out" / "local.json").exists()


def test_a_lost_node_costs_its_chunks_and_no_more(screen, near, tmp_path, whole, broken):
    for path in next(near.iterdir()).rglob("*"):
        if path.is_file():
            path.unlink()
    console = Console(file=StringIO(), width=200)
    assert screen(forces=True, console=console).computed == 1000
    assert "is computed again" in console.file.getvalue()
    assert artefacts(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["rows.npy.part", "forces.npy.part"])
def test_damage_on_the_node_is_found_and_only_that_chunk_computed_again(screen, near, tmp_path, whole, broken, name):
    path = next(near.iterdir()) / name
    data = bytearray(path.read_bytes())
    data[4096 + 70] ^= 1  # in the first chunk
    path.write_bytes(data)
    console = Console(file=StringIO(), width=200)
    assert screen(forces=True, local=str(near), console=console).computed == 1000 - broken + 64
    assert "1 chunks on nodes do not fit their checksums" in console.file.getvalue()
    assert artefacts(tmp_path / "out") == whole


def test_data_that_was_deleted_from_the_node_is_computed_again(screen, near, tmp_path, whole, broken):
    (next(near.iterdir()) / "rows.npy.part").unlink()
    assert screen(forces=True, local=str(near)).computed == 1000
    assert artefacts(tmp_path / "out") == whole


def test_what_was_discarded_is_not_taken_from_the_node(screen, near, tmp_path, whole, broken):
    assert screen(forces=True, local=str(near), overwrite=True).computed == 1000
    assert artefacts(tmp_path / "out") == whole


@pytest.mark.parametrize("after", [0, 3, 7])
def test_a_death_while_collecting_loses_nothing(screen, near, tmp_path, whole, monkeypatch, after):
    real, calls = node_local_writer.copy, []

    def dies(*given):
        calls.append(given)
        if len(calls) > after:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(node_local_writer, "copy", dies)
    monkeypatch.setattr(node_local_writer, "TOGETHER", 5000)
    with pytest.raises(KeyboardInterrupt):
        screen(forces=True, local=str(near))
    monkeypatch.undo()
    assert screen(forces=True, local=str(near)).computed == 0
    assert artefacts(tmp_path / "out") == whole


@pytest.mark.parametrize("way", ["refused", "short", "absent"])
def test_the_kernel_may_not_copy_or_not_all_at_once(screen, near, tmp_path, whole, monkeypatch, way):
    def partly(source, target, count, offset_src, offset_dst):
        if way == "refused":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        data = os.pread(source, min(count, 1000), offset_src)
        return os.pwrite(target, data, offset_dst)

    if way == "absent":
        monkeypatch.delattr(node_local_writer.os, "copy_file_range")
    else:
        monkeypatch.setattr(node_local_writer.os, "copy_file_range", partly)
    screen(forces=True, local=str(near))
    assert artefacts(tmp_path / "out") == whole


def test_a_copy_that_differs_is_noticed(screen, near, tmp_path, monkeypatch):
    def wrong(source, target, place):
        os.pwrite(target, b"\1" * (place[1] - place[0]), place[0])

    monkeypatch.setattr(node_local_writer, "copy", wrong)
    with pytest.raises(AtomSieveError, match="does not read back from"):
        screen(local=str(near))
    monkeypatch.undo()
    assert ledger.read(tmp_path / "out" / "ledger") == {}
    assert screen(local=str(near)).computed == 0


def test_two_runs_share_a_disk(screen, near, tmp_path, whole, broken):
    screen(out="other", forces=True, local=str(near), limit=320)
    first = np.load(tmp_path / "whole" / "rows.npy")[:320]
    assert np.load(tmp_path / "other" / "rows.npy").tobytes() == first.tobytes()
    assert screen(forces=True, local=str(near)).computed == 1000 - broken


def test_a_ledger_line_torn_on_the_node_costs_its_chunk(screen, near, tmp_path, whole, broken):
    path = next(near.iterdir()) / "ledger" / "00000.ledger"
    path.write_bytes(path.read_bytes()[:-5])
    assert screen(forces=True, local=str(near)).computed == 1000 - broken + 64
    assert artefacts(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out, near: near.rename(near.with_name("elsewhere")), "nothing of this run lies in"),
        (lambda out, near: ResultsFolder(out).local.unlink(), "is of a run without --local"),
        (lambda out, near: ResultsFolder(out).run.unlink(), "holds no screening results"),
        (
            lambda out, near: ResultsFolder(out).run.write_text(ResultsFolder(out).run.read_text() + " "),
            "is of a run without --local",
        ),
    ],
)
def test_what_cannot_be_collected_is_said(near, tmp_path, broken, change, said):
    change(tmp_path / "out", near)
    with pytest.raises(AtomSieveError, match=said):
        collect(tmp_path / "out", near)
    assert not (tmp_path / "out" / "lock.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_collects_before_it_leaves(screen, near, tmp_path, whole, number):
    class Stopped(FakePredictor):
        def before(self, batch):
            if self.calls == 20:
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        screen(Stopped(), forces=True, local=str(near))
    kept = ledger.read(tmp_path / "out" / "ledger")
    assert len(kept) > 2
    shutil.rmtree(near)  # as at the end of a job
    assert screen(forces=True, local=str(near)).computed == 1000 - sum(e[0].structures for e in kept.values())
    assert artefacts(tmp_path / "out") == whole


def test_a_complete_run_needs_no_room_on_the_node(screen, near, tmp_path, whole, monkeypatch):
    screen(forces=True, local=str(near))

    class Full:
        f_bavail, f_frsize = 0, 4096

    monkeypatch.setattr(node_local_writer.os, "statvfs", lambda path: Full)
    again = screen(forces=True, local=str(near))
    assert again.computed == 0
    assert artefacts(tmp_path / "out") == whole


def test_a_complete_run_has_nothing_to_collect(screen, near, tmp_path):
    screen(local=str(near))
    with pytest.raises(AtomSieveError, match="is complete; there is nothing to collect"):
        collect(tmp_path / "out", near)


def test_a_place_that_cannot_be_written(screen, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AtomSieveError, match=r"cannot keep results in --local .*file \(Not a directory\)"):
        screen(local=str(tmp_path / "file"))
    with pytest.raises(AtomSieveError, match="is the results folder"):
        screen(local=str(tmp_path / "out"))


def test_ranks_do_not_collect_all_at_once(near, tmp_path):
    folder = ResultsFolder(tmp_path / "out")
    folder.ledger.mkdir(parents=True)
    chunks = Chunks(640, 64)
    rows = row_file(folder, chunks, 1)
    rows.prepare()
    store = node_local_writer.LocalStore.open(near, "key", folder.path)
    now = time.monotonic()
    ages = []
    for rank in range(8):
        writer = node_local_writer.LocalWriter(
            store, node_local_writer.Carrier(folder, rows, False, rank), ArrayFiles(rows), rank, 1.0, 600.0
        )
        ages.append(now - writer._collected)
    gaps = np.diff([*sorted(ages), min(ages) + 600.0])
    assert min(ages) > -60 and max(ages) < 600 and gaps.min() > 30


def test_the_key_belongs_to_the_run_json(screen, near, tmp_path, broken):
    folder = ResultsFolder(tmp_path / "out")
    key = json.loads(folder.local.read_text())["key"]
    assert node_local_writer.find_key(folder) == key
    folder.run.write_text(folder.run.read_text() + "\n")
    assert node_local_writer.find_key(folder) != key


def test_an_option_that_goes_with_another_is_refused_alone(tmp_path):
    from atomsieve.cli.screen.run import NodeOptions

    with pytest.raises(UsageError, match="--collect-every 5 goes with --local"):
        NodeOptions(collect_every=5.0).as_screen_options()
    assert NodeOptions().as_screen_options() == {"copies": None}
    assert ScreenOptions(**NodeOptions(local=tmp_path).as_screen_options()).collect_seconds == 600.0
    assert ScreenOptions(**NodeOptions(local=tmp_path, collect_every=5.0).as_screen_options()).collect_seconds == 5.0


def test_a_folder_on_nodes_that_is_not_there_is_not_made_by_mistake(tmp_path):
    place = tmp_path / "scrach" / "mine"
    with pytest.raises(AtomSieveError, match=r"--local .* there is no such folder; make it"):
        node_local_writer.LocalStore.open(place, "key", tmp_path / "results")
    assert not place.parent.exists()
