"""Screening what people have: files that are no datasets, moved candidates, and what later commands find of them."""

from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest

import atomsieve
from atomsieve.cli.main import run
from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.screen import open_results
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.export import export
from atomsieve.screen.results.screened_input import open_screened_input
from atomsieve.screen.run import run_screen
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.labels import LabelKeys
from tests.helpers import copper_oxides, tiny_gfm
from tests.screen.screen_fakes import FakePredictor

BAD = '1\nProperties=species:S:1:pos:R:3 pbc="F F F"\nH nan 0 0\n'
UNREADABLE = '1\nProperties=species:S:1:pos:R:3 pbc="F F F"\nXx 0 0 0\n'
CHARGED = '1\nProperties=species:S:1:pos:R:3 total=1 pbc="F F F"\nH 0 0 0\n'


@pytest.fixture
def file(tmp_path):
    from ase.io import write

    path = tmp_path / "c.extxyz"
    write(path, copper_oxides(40).to_ase())
    path.write_text(path.read_text() + UNREADABLE + BAD)
    return path


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm")


def screen(path, out=None, reading=None, predictor=None, **options):
    chosen = ScreenOptions(chunk_size=16, max_atoms=200, top=10, **options)
    return run_screen(path, None, chosen, out=out, reading=reading, predictor=predictor or FakePredictor())


def test_a_file_gives_the_rows_of_its_dataset(file, tmp_path):
    convert([Input(file)], tmp_path / "c.bp", ConvertOptions(keys=LabelKeys(none=True), keep_bad=True))
    screen(tmp_path / "c.bp", tmp_path / "a")
    result = screen(file, tmp_path / "b")
    assert (tmp_path / "a" / "rows.npy").read_bytes() == (tmp_path / "b" / "rows.npy").read_bytes()
    assert (tmp_path / "a" / "top.csv").read_bytes() == (tmp_path / "b" / "top.csv").read_bytes()
    rows = np.load(tmp_path / "b" / "rows.npy")
    assert rows["id"].tolist() == [*range(40), 41]
    assert result.status == {"OK": 40, "NAN_INPUT": 1}
    assert result.exit_code == 3
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())["unreadable"]
    assert (summary["read"], summary["count"]) == (42, 1)
    assert summary["first"][0]["where"] == f"{file}: frame 40"
    assert len(list((tmp_path / "converted").iterdir())) == 1


def test_only_unreadable_frames_make_the_exit_code_3(tmp_path):
    (tmp_path / "c.extxyz").write_text(UNREADABLE + BAD.replace("nan", "0.5"))
    result = screen(tmp_path / "c.extxyz", tmp_path / "r")
    assert result.status == {"OK": 1}
    assert result.exit_code == 3


def test_a_run_that_was_broken_off_continues_with_the_same_copy(file, tmp_path):
    class Dies(FakePredictor):
        def before(self, batch):
            if self.calls == 2:
                raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        screen(file, tmp_path / "r", predictor=Dies())
    copies = {p: p.stat().st_ino for p in (tmp_path / "converted").rglob("manifest.json")}
    screen(file, tmp_path / "r")
    assert {p: p.stat().st_ino for p in (tmp_path / "converted").rglob("manifest.json")} == copies
    screen(file, tmp_path / "whole")
    assert (tmp_path / "whole" / "rows.npy").read_bytes() == (tmp_path / "r" / "rows.npy").read_bytes()


def test_another_content_under_the_name_is_another_run(file, tmp_path):
    screen(file, tmp_path / "r")
    file.write_text(file.read_text() + CHARGED)
    with pytest.raises(AtomSieveError, match=r"results of other settings \(input.identity"):
        screen(file, tmp_path / "r")


def test_a_dropped_copy_is_made_again_when_structures_are_asked_for(file, tmp_path, caplog):
    screen(file, tmp_path / "r", keep_converted=False)
    assert not (tmp_path / "converted").exists()
    results = open_results(tmp_path / "r")
    assert export(results, tmp_path / "out.extxyz") == 41
    assert f"converting {file} again" in caplog.text
    with open_screened_input(results) as reader:
        assert len(reader) == 41


def test_a_dropped_copy_of_a_changed_file_is_refused(file, tmp_path):
    screen(file, tmp_path / "r", keep_converted=False)
    original = shutil.copy(file, tmp_path / "kept.extxyz")
    file.write_text(CHARGED)
    with pytest.raises(DataError, match="is not the file that was screened"):
        export(open_results(tmp_path / "r"), tmp_path / "out.extxyz")
    file.unlink()
    with pytest.raises(AtomSieveError, match="say where it is with --input PATH"):
        export(open_results(tmp_path / "r"), tmp_path / "out.extxyz")
    assert export(open_results(tmp_path / "r", original), tmp_path / "out.extxyz") == 41


def test_results_that_moved_with_their_copy_find_it(file, tmp_path):
    screen(file, tmp_path / "here" / "r")
    (tmp_path / "here").rename(tmp_path / "there")
    file.unlink()
    with open_screened_input(open_results(tmp_path / "there" / "r")) as reader:
        assert len(reader) == 41


def test_standard_input_and_options_of_files(tmp_path, monkeypatch):
    def pipe():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CHARGED.encode() + BAD.encode())))

    pipe()
    screen("-", tmp_path / "r", ReadOptions(charge_key="total"))
    with open_screened_input(open_results(tmp_path / "r")) as reader:
        assert reader.read(0, 1).charge.tolist() == [1.0]
    assert json.loads((tmp_path / "r" / "run.json").read_text())["input_path"] == "-"
    pipe()
    with pytest.raises(UsageError, match=r"leave out --drop-converted"):
        screen("-", tmp_path / "s", keep_converted=False)
    with pytest.raises(UsageError, match="name their folder with --out"):
        screen("-")
    assert run("screen", ["run", "-", "-o", str(tmp_path / "s"), "--max-restarts", "2"]) == 2


def test_the_python_call_takes_options_of_files(file, gfm, tmp_path):
    result = atomsieve.screen(file, gfm, out=tmp_path / "r", device="cpu", spin=1.0, top=3)
    assert result.structures == 41
    with open_screened_input(open_results(tmp_path / "r")) as reader:
        assert set(reader.read(0, 41).spin.tolist()) == {1.0}
    with pytest.raises(UsageError, match="did you mean 'charge_key'"):
        atomsieve.screen(file, gfm, charge_kay="q")


def test_wrong_names_are_told_before_anything_is_converted(file, gfm, tmp_path, capfd):
    def call(*more):
        return run("screen", ["run", str(file), "-o", str(tmp_path / "r"), *more])

    assert call("-e", str(gfm), "--head", "metall") == 2
    assert "did you mean 'metal'" in capfd.readouterr().err
    assert call("-e", str(tmp_path / "nowhere")) == 1
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").touch()
    assert call("-e", str(gfm)) == 1
    assert "holds other files" in capfd.readouterr().err
    assert not (tmp_path / "converted").exists()


def test_the_command_says_what_it_converts(file, gfm, tmp_path, capfd):
    args = ["run", str(file), "-e", str(gfm), "-o", str(tmp_path / "r"), "--device", "cpu"]
    assert run("screen", args) == 3
    said = capfd.readouterr()
    assert f"converting {file} once, into {tmp_path / 'converted'}" in said.err
    assert "1 of 42 structures could not be read and are left out" in said.out
    assert f"{file}: frame 40" in said.out
    assert run("screen", args) == 3
    said = capfd.readouterr()
    assert f"{file} was converted before" in said.err
    assert "1 of 42 structures could not be read" in said.out


# -- moved candidates ----------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(file, tmp_path):
    convert([Input(file)], tmp_path / "c.bp", ConvertOptions(keys=LabelKeys(none=True), keep_bad=True))
    screen(tmp_path / "c.bp", tmp_path / "r")
    return (tmp_path / "c.bp").rename(tmp_path / "moved.bp")


def test_a_run_follows_its_input_to_a_new_path(dataset, tmp_path):
    with pytest.raises(AtomSieveError, match=r"no longer at .*c\.bp; put them back, or say where"):
        export(open_results(tmp_path / "r"), tmp_path / "out.extxyz")
    screen(dataset, tmp_path / "r")
    assert json.loads((tmp_path / "r" / "run.json").read_text())["input_path"] == str(dataset)
    assert export(open_results(tmp_path / "r"), tmp_path / "out.extxyz") == 41


@pytest.mark.parametrize("verb", ["export", "dedup", "top"])
def test_verbs_take_the_new_path(dataset, tmp_path, verb, capfd):
    more = {
        "export": [str(tmp_path / "x.extxyz")],
        "dedup": ["-k", "5", "-o", str(tmp_path / "x.csv")],
        "top": ["--per", "formula"],
    }[verb]
    call = [verb, str(tmp_path / "r"), *more, "--head", "pbe"]
    assert run("screen", call) == 1
    assert "say where they are with --input PATH" in capfd.readouterr().err
    convert([Input(tmp_path / "c.extxyz")], tmp_path / "other.bp", ConvertOptions())
    assert run("screen", [*call, "--input", str(tmp_path / "other.bp")]) == 1
    assert "is no longer what was screened" in capfd.readouterr().err
    assert run("screen", [*call, "--input", str(dataset)]) == 0, capfd.readouterr().err


def test_pick_and_relax_take_the_new_path(dataset, gfm, tmp_path, capfd):
    out = ["-o", str(tmp_path / "results")]
    assert run("screen", ["run", str(dataset), "-e", str(gfm), *out, "--device", "cpu", "-q"]) == 3
    moved = dataset.rename(tmp_path / "again.bp")
    for verb in (
        ["relax", "--max-steps", "1", "--device", "cpu"],
        ["pick", "-o", str(tmp_path / "x.extxyz"), "-n", "2"],
    ):
        call = [verb[0], str(tmp_path / "results"), "-k" if verb[0] == "relax" else "--candidates", "2", *verb[1:]]
        assert run("screen", call) == 1
        assert "say where they are with --input PATH" in capfd.readouterr().err
        assert run("screen", [*call, "--input", str(moved)]) in (0, 3), capfd.readouterr().err
