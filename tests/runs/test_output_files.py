"""Targets that take no file: one line with the file and what to do, before the work where that can be known."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
from ase.build import bulk
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.followup.hull_references import gather_references
from atomsieve.followup.hull_table import COLUMNS
from atomsieve.followup.hull_table import write_table as write_hull
from atomsieve.followup.relax.files import RelaxFolder
from atomsieve.runs import output_files
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.export import export
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.targets import check_target
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.best import iter_matching_rows
from atomsieve.structures import StructureBatch, write_structures
from tests.screen.screen_fakes import FakePredictor


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    images = [bulk("Cu", "fcc", a=3.5 + 0.01 * k) for k in range(60)]
    write_structures(folder / "c.bp", StructureBatch.from_ase(images), [])
    run_screen(
        folder / "c.bp", "gfm", ScreenOptions(head="all"), out=folder / "out", predictor=FakePredictor(("pbe", "scan"))
    )
    return open_results(folder / "out")


@pytest.fixture
def small_files():
    """Let no file of this process grow beyond a few kilobytes."""
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, heard)


@pytest.mark.parametrize("name", ["t.csv", "t.extxyz"])
def test_a_disk_that_takes_no_more(results, tmp_path, small_files, name):
    where = f"head == {results.labels.heads[0]!r}"
    with pytest.raises(AtomSieveError, match=rf"cannot write .*{name}: File too large .*choose another place"):
        export(results, tmp_path / name, iter_matching_rows(results, where))
    assert not os.listdir(tmp_path)


def test_a_table_of_a_hull_that_does_not_fit(results, tmp_path, small_files):
    table = {name: [1.5] * 1000 for name in COLUMNS}
    with pytest.raises(AtomSieveError, match=r"cannot write .*hull.csv: File too large"):
        write_hull(table, results, tmp_path / "hull.csv")
    assert not os.listdir(tmp_path)


def test_a_full_disk_says_what_is_free(tmp_path):
    with (
        pytest.raises(AtomSieveError, match=r"x.csv: no space left in .* MB free\); make room"),
        output_files.output_errors(tmp_path / "x.csv"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_errors_of_other_files_pass_through(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(FileNotFoundError), output_files.output_errors(tmp_path / "sub" / "x.csv"):
        (tmp_path / "input").read_text()


def test_a_folder_that_takes_no_file_is_refused_before_the_work(results, tmp_path, monkeypatch):
    monkeypatch.setattr(output_files.os, "access", lambda path, mode: False)
    with pytest.raises(AtomSieveError, match="is read-only, or not yours; choose another place"):
        check_target(tmp_path / "x.csv", False, results)
    monkeypatch.undo()
    monkeypatch.setattr(output_files, "get_free_bytes", lambda folder: 0)
    with pytest.raises(AtomSieveError, match=r"no space left in .*; make room"):
        check_target(tmp_path / "x.csv", False, results)


def test_several_heads_in_one_ranking_are_said(results):
    path = str(results.folder.path)
    said = CliRunner().invoke(app, ["top", path, "-k", "3"])
    assert said.exit_code == 0, said.output
    assert "energies of different heads have different zeros" in said.output
    one = CliRunner().invoke(app, ["top", path, "-k", "3", "--head", "scan"])
    assert "different zeros" not in one.output


def test_a_file_where_the_results_folder_should_be(results, tmp_path):
    place = tmp_path / "t.sh"
    place.write_text("echo")
    with pytest.raises(AtomSieveError, match=r"t.sh is a file, no folder for results; choose another --out"):
        run_screen(results.manifest["input_path"], "gfm", ScreenOptions(), out=place, predictor=FakePredictor(("pbe",)))


def test_a_table_is_no_reference(results, tmp_path):
    table = tmp_path / "hull.csv"
    table.write_text("position,id\n")
    with pytest.raises(UsageError, match=r"--references .*hull.csv: its name is of no known format") as caught:
        gather_references(results, "pbe", "fp32", [table])
    assert "name it with --format" not in str(caught.value)


def test_long_settings_lose_their_end_visibly():
    said = RelaxFolder(Path("relaxed")).list_differences({"input": "a" * 70}, {"input": "b" * 59})
    assert said == [f"input: {'a' * 57}... -> {'b' * 59}"]
