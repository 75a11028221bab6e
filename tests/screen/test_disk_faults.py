"""Disks that fill up, folders that vanish, input that cannot be read: a clear end in one line, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import ledger
from atomsieve.screen.run import run_screen
from atomsieve.structures import open_structures, write_structures
from tests.screen.screen_fakes import FakePredictor, candidates, save

PROGRAM = Path(__file__).parent / "screen_fakes.py"
IDENTICAL = ("rows.npy", "forces.npy", "top.csv", "run.json")


def artefacts(path):
    return {name: (path / name).read_bytes() for name in IDENTICAL if (path / name).exists()}


class Meanwhile(FakePredictor):
    """Something happens at a call, once the ledger tells of `chunks`."""

    def __init__(self, out, what, chunks=3):
        super().__init__()
        self.out, self.what, self.chunks = out, what, chunks

    def before(self, batch):
        if self.what is None:
            return
        since = time.monotonic()
        while self.calls >= 20 and time.monotonic() < since + 30:  # the writer is a thread
            if len(ledger.read(self.out / "ledger")) >= self.chunks:
                self.what()
                self.what = None
                return
            time.sleep(0.002)


def one_line(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# -- the results folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forces", [False, True])
def test_a_results_folder_that_is_deleted(screen, tmp_path, forces):
    out, away = tmp_path / "out", tmp_path / "away"

    def delete():
        out.rename(away)  # at once: the writer makes files there meanwhile
        shutil.rmtree(away, ignore_errors=True)

    with pytest.raises(AtomSieveError) as caught:
        screen(Meanwhile(out, delete), commit_seconds=0.0, forces=forces)
    one_line(caught, f"{out} ", "is gone", "run the same command again")
    assert caught.value.exit_code == 1
    assert screen(forces=forces).computed == 1000


def test_a_results_folder_that_is_moved_and_put_back(screen, tmp_path):
    out, away = tmp_path / "out", tmp_path / "away"
    screen(out="whole")
    with pytest.raises(AtomSieveError) as caught:
        screen(Meanwhile(out, lambda: out.rename(away)), commit_seconds=0.0)
    one_line(caught, f"{out} ", "is gone", "put it back")
    away.rename(out)
    (out / "lock.json").unlink(missing_ok=True)
    assert 0 < screen().computed < 1000
    assert artefacts(out) == artefacts(tmp_path / "whole")


def test_a_row_store_that_is_deleted_alone(screen, tmp_path):
    out = tmp_path / "out"
    screen(out="whole")
    with pytest.raises(AtomSieveError) as caught:
        screen(Meanwhile(out, (out / "rows.npy.part").unlink), commit_seconds=0.0)
    one_line(caught, "is gone")
    screen()
    assert artefacts(out) == artefacts(tmp_path / "whole")


def test_a_folder_that_vanishes_under_results_on_nodes_loses_nothing_of_them(screen, tmp_path):
    out, away, near = tmp_path / "out", tmp_path / "away", tmp_path / "node"
    screen(out="whole")

    def moved():
        out.rename(away)

    class Moves(Meanwhile):
        def before(self, batch):
            if self.calls == 30:
                moved()

    with pytest.raises(AtomSieveError) as caught:
        screen(Moves(out, None), commit_seconds=0.0, local=str(near))
    one_line(caught, f"{out} ", "is gone")
    away.rename(out)
    (out / "lock.json").unlink(missing_ok=True)
    assert screen(local=str(near)).computed == 0  # all that was computed lay on the node
    assert artefacts(out) == artefacts(tmp_path / "whole")


def test_a_folder_on_the_node_that_is_deleted(screen, tmp_path):
    screen(out="whole")
    near = tmp_path / "node"

    class Cleans(FakePredictor):
        def before(self, batch):
            if self.calls == 30:
                near.rename(tmp_path / "away")  # at once: the writer makes files there meanwhile
                shutil.rmtree(tmp_path / "away")

    with pytest.raises(AtomSieveError) as caught:
        screen(Cleans(), commit_seconds=0.0, local=str(near))
    one_line(caught, str(near), "is gone")
    screen(local=str(near))
    assert artefacts(tmp_path / "out") == artefacts(tmp_path / "whole")


# -- room -----------------------------------------------------------------------------------------------------------


def program(source, out, limit=None, **order):
    """Run a screening in a process of its own, which may write files of at most `limit` bytes."""

    def limited():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, str(PROGRAM), str(source), str(out), json.dumps(order)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if limit is not None:  # the limit would hold for what coverage writes, too
        env = {name: value for name, value in env.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, preexec_fn=limited, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("where", ["out", "node"])
def test_a_limit_on_the_size_of_files(tmp_path, where):
    source = save(tmp_path / "candidates.npz", candidates(1000))
    options = {"local": str(tmp_path / "node")} if where == "node" else {}
    done = program(source, tmp_path / "out", 60_000, options=options)  # the rows take 72,000 and a header
    assert done.returncode == 1
    assert (
        done.stderr.count("error: ") == 1 and "File too large (a limit on the size of files: ulimit -f" in done.stderr
    )
    assert program(source, tmp_path / "out", options=options).returncode == 3
    assert np.load(tmp_path / "out" / "rows.npy").shape == (1000,)


@pytest.fixture
def disk(tmp_path):
    """A disk of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(path):
    """Take what room is left, while the writer takes room as well."""
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def test_a_disk_of_a_node_that_fills_up_on_the_way(screen, tmp_path, disk):
    screen(out="whole", forces=True)

    class Fills(FakePredictor):
        def before(self, batch):
            if self.calls == 20:
                fill(disk / "filler")

    with pytest.raises(AtomSieveError) as caught:
        screen(Fills(), forces=True, local=str(disk), commit_seconds=0.0)
    one_line(caught, f"no space left for results in {disk}", "finished chunks are safe", "make room and run the same")
    (disk / "filler").unlink()
    assert 0 < screen(forces=True, local=str(disk)).computed < 1000
    assert artefacts(tmp_path / "out") == artefacts(tmp_path / "whole")


def test_a_disk_of_a_node_that_is_too_small_is_said_before_work_begins(screen, disk):
    never = FakePredictor()
    with pytest.raises(AtomSieveError) as caught:
        screen(never, structures=candidates(5000), local=str(disk))
    one_line(caught, "no space left for results in", "an equal share of 1 node is 0.428 MB, 0.", "leave it out")
    assert never.calls == 0


# -- the input -------------------------------------------------------------------------------------------------------


class Here:
    """A reader that is not handed to a process of its own."""

    reopenable = False

    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return len(self.reader)

    def __getattr__(self, name):
        return getattr(self.reader, name)


@pytest.mark.parametrize(
    ("fault", "reader"), [("truncated", None), ("truncated", Here), ("deleted", Here), ("overwritten", Here)]
)
def test_a_part_of_the_input_that_cannot_be_read(tmp_path, fault, reader):
    source, out = tmp_path / "candidates.bp", tmp_path / "out"
    write_structures(source, candidates(1000, bad=False), step_size=100)
    options = ScreenOptions(chunk_size=100, max_atoms=200, commit_seconds=0.0)
    run_screen(
        source, "gfm", options, out=tmp_path / "whole", predictor=FakePredictor(), reader=Here(open_structures(source))
    )
    (data,) = source.glob("part-*/data.0")
    kept = data.read_bytes()

    def damage():
        if fault == "truncated":
            os.truncate(data, len(kept) // 2)
        elif fault == "deleted":
            data.unlink()
        else:
            data.write_bytes(kept[: len(kept) // 2] + b"\7" * (len(kept) - len(kept) // 2))

    def run(predictor, reader):
        given = None if reader is None else reader(open_structures(source))
        return run_screen(source, "gfm", options, out=out, predictor=predictor, reader=given)

    with pytest.raises(DataError) as caught:
        run(Meanwhile(out, damage), reader)
    one_line(caught, str(source))
    assert caught.value.exit_code == 1
    assert len(ledger.read(out / "ledger")) >= 3
    data.write_bytes(kept)
    assert run(FakePredictor(), Here).computed < 1000
    assert artefacts(out) == artefacts(tmp_path / "whole")
