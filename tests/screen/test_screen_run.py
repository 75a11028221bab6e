"""A run from end to end in one process, with a fake predictor: artefacts, continuing, refusals."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from atomsieve.errors import AtomSieveError, DataError, Interrupted, UsageError
from atomsieve.runs.lock import PathLock
from atomsieve.runs.mpi import Communicator
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import ledger, npy_file
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.run import run_screen
from tests.screen.screen_fakes import FakePredictor, MemoryReader, candidates

SMALL = {"chunk_size": 64, "max_atoms": 200, "commit_seconds": 100.0, "top": 50}
IDENTICAL = ("members.npy", "rows.npy", "forces.npy", "top.csv", "run.json")


def artefacts(path):
    return {name: (path / name).read_bytes() for name in IDENTICAL if (path / name).exists()}


def test_the_rows_are_the_predictions(screen, tmp_path, batch):
    result = screen()
    rows = np.load(tmp_path / "out" / "rows.npy")
    assert rows.dtype == ROW
    whole = FakePredictor()(batch, set())
    assert np.array_equal(rows["position"], np.arange(len(batch)))
    assert np.array_equal(rows["id"], batch.id)
    assert np.array_equal(rows["status"], whole.status)
    np.testing.assert_allclose(rows["energy"], whole.energy, rtol=1e-12)
    assert result.structures == result.computed == 1000
    assert result.exit_code == 3
    assert sum(result.status.values()) == 1000
    assert result.status["NAN_INPUT"] == (whole.status == 1).sum()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "ledger",
        "members.npy",
        "rows.npy",
        "run.json",
        "run.log.jsonl",
        "summary.json",
        "top.csv",
    ]


def test_no_failure_is_exit_code_0(screen):
    assert screen(structures=candidates(100, bad=False)).exit_code == 0


def test_the_table_of_best_rows_is_exact_and_readable(screen, tmp_path, batch):
    result = screen(where="natoms > 2 and max_force < 6", top=20)
    with open(tmp_path / "out" / "top.csv") as file:
        table = list(csv.DictReader(file))
    rows = np.load(tmp_path / "out" / "rows.npy")
    able = rows[(rows["status"] == 0) & (rows["natoms"] > 2) & (rows["max_force"] < 6)]
    expected = able[np.argsort(able["energy_per_atom"], kind="stable")][:20]
    assert [int(r["position"]) for r in table] == expected["position"].tolist()
    assert [float(r["energy [eV]"]) for r in table] == expected["energy"].tolist()
    assert result.top.tobytes() == expected.tobytes()
    atoms = batch.slice(int(table[0]["position"]), int(table[0]["position"]) + 1).to_ase()[0]
    assert table[0]["formula"] == atoms.get_chemical_formula("hill")


def test_forces_lie_in_input_order(screen, tmp_path, batch):
    screen(forces=True)
    forces = np.load(tmp_path / "out" / "forces.npy")
    whole = FakePredictor()(batch, set())
    assert forces.dtype == np.float32
    np.testing.assert_allclose(forces, whole.forces, rtol=1e-6)


def test_all_heads(screen, tmp_path):
    screen(head="all", forces=True, limit=100)
    rows = np.load(tmp_path / "out" / "rows.npy")
    assert np.array_equal(rows["position"], np.repeat(np.arange(100), 2))
    assert np.array_equal(rows["head"], np.tile([0, 1], 100))
    assert np.load(tmp_path / "out" / "forces.npy").shape[1:] == (2, 3)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["heads"] == ["pbe", "scan"]


class Stops(FakePredictor):
    """Raises, or asks its process to stop, at a call."""

    def __init__(self, at, error=None):
        super().__init__()
        self.at, self.error = at, error

    def before(self, batch):
        if self.calls == self.at:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("at", [0, 1, 7, 30])
def test_a_broken_run_continues_to_the_same_bytes(screen, tmp_path, at):
    screen(out="whole", forces=True)
    with pytest.raises(ZeroDivisionError):
        screen(Stops(at, ZeroDivisionError()), forces=True, commit_seconds=0.0)
    assert not (tmp_path / "out" / "rows.npy").exists()
    result = screen(forces=True)
    assert artefacts(tmp_path / "out") == artefacts(tmp_path / "whole")
    assert (result.computed < 1000) == (at > 4)


def test_ctrl_c_keeps_what_is_done(screen, tmp_path):
    with pytest.raises(Interrupted, match="run the same command again") as caught:
        screen(Stops(20))
    assert caught.value.exit_code == 75
    kept = ledger.read(tmp_path / "out" / "ledger")
    assert len(kept) > 2
    result = screen()
    assert result.computed == 1000 - sum(e[0].structures for e in kept.values())
    screen(out="whole")
    assert artefacts(tmp_path / "out") == artefacts(tmp_path / "whole")


def test_a_finished_run_is_not_computed_again(screen, tmp_path):
    screen()
    before = artefacts(tmp_path / "out")
    again = FakePredictor()
    result = screen(again)
    assert again.calls == result.computed == 0
    assert artefacts(tmp_path / "out") == before


def test_another_choice_of_best_rows_needs_no_computing(screen, tmp_path):
    screen()
    again = FakePredictor()
    result = screen(again, by="max_force", descending=True, top=3)
    assert again.calls == 0
    rows = np.load(tmp_path / "out" / "rows.npy")
    assert result.top["max_force"].tolist() == sorted(rows["max_force"][rows["status"] == 0].tolist())[:-4:-1]


@pytest.mark.parametrize("complete", [False, True])
def test_other_software_is_told_where_something_is_left_to_compute(screen, tmp_path, caplog, complete):
    screen()
    run, rows = tmp_path / "out" / "run.json", tmp_path / "out" / "rows.npy"
    was = json.loads(run.read_text())
    assert len(was["software"]["kernels"]) == 16 or was["software"]["kernels"] == "none"
    run.write_text(json.dumps(was | {"software": was["software"] | {"torch": "1.0"}}))
    if not complete:
        rows.rename(tmp_path / "out" / "rows.npy.part")
    screen()
    told = [r.getMessage() for r in caplog.records if "began with other software (torch 1.0 -> " in r.getMessage()]
    assert len(told) == (not complete)


def test_damaged_bytes_are_computed_again(screen, tmp_path):
    screen(forces=True)
    before = artefacts(tmp_path / "out")
    for name, place in (("rows.npy", 4096 + 56 * 70), ("forces.npy", -1)):
        data = bytearray((tmp_path / "out" / name).read_bytes())
        data[place] ^= 1
        (tmp_path / "out" / name).write_bytes(data)
    result = screen(forces=True, console=(console := Console(file=StringIO())))
    assert "2 chunks do not fit their checksums and are computed again" in console.file.getvalue()
    assert result.computed == 64 + 1000 % 64  # the second chunk and the last
    assert artefacts(tmp_path / "out") == before


def test_chunks_that_another_rank_did_not_check_are_not_called_damaged(screen, tmp_path, batch):
    """It was asked to stop; this rank, which tells what was found, was not."""

    class First(Communicator):
        size = 2

        def all_gather(self, value):
            other = True if isinstance(value, bool) else value[:0] if isinstance(value, np.ndarray) else value
            return [value, other]

    screen()
    os.rename(tmp_path / "out" / "rows.npy", tmp_path / "out" / "rows.npy.part")
    console = Console(file=StringIO(), width=200)
    with pytest.raises(SystemExit):  # all leave: nothing is to be said of what the other rank did not come to
        run_screen(
            tmp_path / "candidates.bp",
            "gfm",
            ScreenOptions(**SMALL),
            out=tmp_path / "out",
            console=console,
            predictor=FakePredictor(),
            reader=MemoryReader(batch),
            comm=First(),
        )
    assert "8 of 16 chunks are done" in console.file.getvalue()
    assert "checksums" not in console.file.getvalue()


def test_what_is_read_from_a_file_at_once_has_no_limit(tmp_path, monkeypatch):
    (tmp_path / "rows").write_bytes(data := bytes(range(200)))
    monkeypatch.setattr(npy_file, "BLOCK", 7)
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, n, at: read(handle, min(n, 7), at))  # as the kernel above 2 GiB
    with open(tmp_path / "rows", "rb") as file:
        assert npy_file.read_bytes(file.fileno(), 3, 60) == data[3:60]
        assert npy_file.read_bytes(file.fileno(), 190, 300) == data[190:]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"predictor": FakePredictor(ensemble_id="f" * 64)}, r"ensemble.id: eeeeeeeeeeee\.\.\. -> ffffffffffff\.\.\."),
        ({"structures": candidates(1000, seed=5)}, "input.identity: "),
        ({"structures": candidates(999)}, "input.structures: 1000 -> 999"),
        ({"chunk_size": 128}, r"\(--chunk-size: 64 -> 128\)"),
        ({"max_atoms": 300}, "batches.max_atoms: 200 -> 300"),
        ({"head": "scan"}, "ensemble.heads: pbe -> scan"),
        ({"forces": True}, "options.forces: False -> True"),
        ({"limit": 10}, "options.screened: 1000 -> 10"),
    ],
)
def test_other_settings_are_refused_by_name_unless_overwritten(screen, tmp_path, changed, said):
    screen()
    before = artefacts(tmp_path / "out")
    with pytest.raises(AtomSieveError, match=said):
        screen(**changed)
    assert artefacts(tmp_path / "out") == before
    screen(**changed, overwrite=True)
    screen(**changed, out="fresh")
    assert artefacts(tmp_path / "out") == artefacts(tmp_path / "fresh")


def test_a_run_is_continued_with_its_chunks_unless_others_are_asked_for(screen, tmp_path):
    screen()
    before = artefacts(tmp_path / "out")
    screen(chunk_size=None)
    assert artefacts(tmp_path / "out") == before
    screen(chunk_size=None, out="own")
    with pytest.raises(AtomSieveError, match=r"\(--chunk-size: left out -> 64\)"):
        screen(out="own")


def test_what_a_killed_start_left_is_no_other_file(screen, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    old = ("lock.json.0a1b2c", ".run.json.4711")  # killed while it took the lock, or wrote its manifest
    for name in old:
        (out / name).write_text("{")
        os.utime(out / name, (1e9, 1e9))
    screen()
    for name in (".summary.json.4711", ".top.csv.4711"):
        (out / name).write_text("{")
    screen()
    assert not [p.name for p in out.iterdir() if p.name.startswith((".", "lock"))]


def test_a_folder_with_other_files_is_left_alone(screen, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(AtomSieveError, match="holds other files"):
        screen(overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_overwriting_removes_only_what_a_run_wrote(screen, tmp_path):
    screen()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    screen(chunk_size=100, overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_in_use_is_refused(screen, tmp_path):
    screen()
    with (
        PathLock(tmp_path / "out" / "lock.json"),
        pytest.raises(AtomSieveError, match=rf"in use by another run \(host \S+, process {os.getpid()}, since"),
    ):
        screen()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "pbee"}, "unknown head 'pbee' (did you mean 'pbe'?)"),
        ({"by": "max_forse"}, "did you mean 'max_force'"),
        ({"where": "max_forse < 1"}, "did you mean 'max_force'"),
        ({"where": "__import__('os').abort()"}, "not allowed"),
    ],
)
def test_typos_and_programs_are_refused_before_anything_is_written(screen, tmp_path, options, said):
    with pytest.raises(UsageError) as caught:
        screen(**options)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_empty_input_is_refused(screen):
    with pytest.raises(DataError, match="holds no structures"):
        screen(structures=candidates(0))


def test_a_reader_that_changes_its_mind_is_noticed(tmp_path, batch):
    class Shrinks(MemoryReader):
        def read(self, start, stop, fields=None):
            return super().read(start, stop - 1)

    with pytest.raises(AtomSieveError, match="changed while it was read"):
        run_screen("x.bp", "gfm", out=tmp_path / "out", predictor=FakePredictor(), reader=Shrinks(batch))


def test_a_full_disk_is_told_before_work_begins(screen, tmp_path, monkeypatch):
    class Usage:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Usage)
    with pytest.raises(AtomSieveError, match=r"no space left .* 0.\d{3} MB are needed, 0.004 MB are free"):
        screen()
    monkeypatch.undo()
    assert screen().computed == 1000


@pytest.mark.parametrize("where", ["data", "ledger"])
def test_a_disk_that_fills_up_on_the_way(screen, tmp_path, monkeypatch, where):
    screen(out="whole")
    real_write, real_append, calls, lines = os.pwrite, ledger.append, [], []

    def full(handle, data, offset):
        calls.append(offset)
        if where == "data" and len(calls) > 20:  # chunks, and what is at hand
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(handle, data, offset)

    def torn(path, entries):
        lines.extend(entries)
        if where == "ledger" and len(lines) > 4:
            with open(path, "ab") as file:
                file.write(ledger.encode(entries[0])[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        real_append(path, entries)

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(ledger, "append", torn)
    with pytest.raises(AtomSieveError, match=r"no space left for results in .*run the same command again") as caught:
        screen(commit_seconds=0.0)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert 0 < screen().computed < 1000
    assert artefacts(tmp_path / "out") == artefacts(tmp_path / "whole")


def test_a_run_killed_while_overwriting_starts_afresh(screen, tmp_path):
    screen()
    folder = ResultsFolder(tmp_path / "out")
    for path in folder.ledger.iterdir():
        path.unlink()
    folder.rows.unlink()
    assert screen().computed == 1000


def test_run_json_that_is_not_ours(screen, tmp_path):
    screen()
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        screen()
    assert screen(overwrite=True).computed == 1000


def test_the_log_and_the_summary_tell_the_story(screen, tmp_path):
    screen()
    events = [json.loads(line)["event"] for line in (tmp_path / "out" / "run.log.jsonl").read_text().splitlines()]
    assert events == ["start", "progress", "finished"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["structures"] == 1000
    stages = summary["seconds_per_stage"]
    assert stages.keys() >= {"load", "read", "pack", "predict", "reduce", "write"}
    assert all(spent["mean"] <= spent["max"] for spent in stages.values())


class FillsUp(FakePredictor):
    """Asks its process to stop when the disk is full."""

    def __init__(self, full):
        super().__init__()
        self.full = full

    def before(self, batch):
        if self.full:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_disk_that_is_full_is_told_also_when_the_run_is_stopped(screen, monkeypatch):
    seen = []

    def full(path, entries):
        seen.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ledger, "append", full)
    with pytest.raises(AtomSieveError, match="no space left"):
        screen(FillsUp(seen), commit_seconds=0.0)
