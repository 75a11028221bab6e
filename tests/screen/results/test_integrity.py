"""Damaged results: what is not as run.json and the ledger say is found, and said in one line with its remedy."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import DataError
from atomsieve.runs.lock import PathLock
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import ledger
from atomsieve.screen.results.export import export
from atomsieve.screen.results.integrity import find_damaged_chunks
from atomsieve.screen.results.npy_file import HEADER
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.status import read_status
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.best import best_rows, iter_matching_rows
from atomsieve.structures import open_structures, write_structures
from tests.screen.screen_fakes import FakePredictor, candidates


@pytest.fixture(params=[("pbe",), ("pbe", "scan")], ids=["head", "heads"])
def again(tmp_path, request):
    """Return a function that screens 300 structures in chunks of 64, with forces; called once already."""
    write_structures(tmp_path / "candidates.bp", candidates(300, bad=True), [])

    def run(forces=True, overwrite=False):
        return run_screen(
            tmp_path / "candidates.bp",
            "gfm",
            ScreenOptions(forces=forces, chunk_size=64, head="all"),
            out=tmp_path / "out",
            overwrite=overwrite,
            predictor=FakePredictor(request.param),
        )

    run()
    return run


@pytest.fixture
def out(again, tmp_path):
    return tmp_path / "out"


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


# -- verify --------------------------------------------------------------------------------------------------------


def test_verify_compares_the_forces(again, out):
    assert read_status(open_results(out), verify=True).damaged == []
    whole = (out / "forces.npy").read_bytes()
    first = open_results(out).ledger[3][-1].forces_at[0]
    flip(out / "forces.npy", HEADER + first)
    assert read_status(open_results(out), verify=True).damaged == [3]
    (out / "forces.npy").write_bytes(whole[:HEADER] + bytes(len(whole) - HEADER))
    assert read_status(open_results(out), verify=True).damaged == [0, 1, 2, 3, 4]
    again()
    assert (out / "forces.npy").read_bytes() == whole
    assert read_status(open_results(out), verify=True).damaged == []


@pytest.mark.parametrize("name", ["rows.npy", "forces.npy"])
def test_verify_compares_the_headers(again, out, name):
    whole = (out / name).read_bytes()
    flip(out / name, 80)
    with pytest.raises(DataError, match=rf"{name} does not begin with the header of .*; run the screening again"):
        read_status(open_results(out), verify=True)
    again()
    assert (out / name).read_bytes() == whole


def test_verify_compares_the_size_of_the_forces(out):
    path = out / "forces.npy"
    size = path.stat().st_size
    cut(path, size + 12)
    with pytest.raises(DataError, match=rf"forces.npy has {size + 12} bytes, the ledger says {size}; run"):
        find_damaged_chunks(open_results(out))


def test_verify_of_a_run_broken_off_compares_what_is_durable(screen, tmp_path):
    class Breaks(FakePredictor):
        def before(self, batch):
            if self.calls == 20:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        screen(Breaks(), commit_seconds=0.0, forces=True)
    results = open_results(tmp_path / "out")
    assert read_status(results, verify=True).damaged == []
    last = max(results.ledger)
    flip(tmp_path / "out" / "forces.npy.part", HEADER + results.ledger[last][-1].forces_at[0])
    assert read_status(results, verify=True).damaged == [last]


def test_damage_is_an_error_that_names_chunks_and_remedy(again, out):
    done = CliRunner().invoke(app, ["status", str(out), "--verify"])
    assert done.exit_code == 0
    assert "every durable chunk fits its checksums" in done.stdout
    for chunk in (1, 3):
        flip(out / "forces.npy", HEADER + open_results(out).ledger[chunk][-1].forces_at[0])
    done = CliRunner().invoke(app, ["status", str(out), "--verify"])
    assert isinstance(done.exception, DataError)
    assert done.exception.exit_code == 1
    assert str(done.exception) == (
        f"{out}: 2 of 5 chunks do not fit their checksums (1, 3); run the screening again, which computes them again"
    )
    assert "172 of 300 structures" in done.stdout
    assert "complete" not in done.stdout
    assert "fits" not in done.stdout
    with PathLock(out / "lock.json"):
        status = read_status(open_results(out), verify=True)
    assert status.wrong.endswith("(1, 3); a run is at work there, ask again when it has ended")
    again()
    assert CliRunner().invoke(app, ["status", str(out), "--verify"]).exit_code == 0


def test_few_of_many_damaged_chunks_are_named(screen, tmp_path):
    screen()
    path = tmp_path / "out" / "rows.npy"
    path.write_bytes(path.read_bytes()[:HEADER] + bytes(path.stat().st_size - HEADER))
    status = read_status(open_results(tmp_path / "out"), verify=True)
    assert "16 of 16 chunks do not fit their checksums (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...); run" in status.wrong
    assert status.done == 0
    assert not status.complete


def test_results_without_their_ledger_are_computed_again(again, out):
    names = ("rows.npy", "forces.npy", "top.csv")
    whole = [(out / name).read_bytes() for name in names]
    shutil.rmtree(out / "ledger")
    assert again().computed == 300
    assert [(out / name).read_bytes() for name in names] == whole
    assert again().computed == 0


# -- status --------------------------------------------------------------------------------------------------------


def status_of(out, *more):
    done = CliRunner().invoke(app, ["status", str(out), *more])
    assert isinstance(done.exception, DataError), done.output
    assert done.exception.exit_code == 1
    assert done.stdout == f"{out}: 300 structures\n"
    return str(done.exception)


@pytest.mark.parametrize("more", [(), ("--verify",)])
@pytest.mark.parametrize("name", ["rows.npy", "forces.npy"])
def test_status_looks_at_the_sizes_of_files(again, out, name, more):
    path = out / name
    size = path.stat().st_size
    cut(path, 5001)
    by = "run.json" if name == "rows.npy" else "the ledger"
    assert status_of(out, *more) == f"{path} has 5001 bytes, {by} says {size}; run the screening again"
    path.unlink()
    assert status_of(out, *more) == f"{path} is gone; run the screening again"
    if name == "rows.npy":
        with pytest.raises(DataError, match=r"out/rows.npy is gone; run the screening again"):
            best_rows(open_results(out), 3, "energy")
    again()
    assert read_status(open_results(out), verify=True).complete


def test_status_of_a_run_broken_off_whose_rows_are_gone(screen, tmp_path):
    class Breaks(FakePredictor):
        def before(self, batch):
            if self.calls == 20:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        screen(Breaks(), commit_seconds=0.0)
    assert read_status(open_results(tmp_path / "out")).broken is None
    (tmp_path / "out" / "rows.npy.part").unlink()
    assert read_status(open_results(tmp_path / "out")).broken.endswith("rows.npy.part is gone; run the screening again")


def test_status_of_a_run_that_has_just_begun(again, out):
    shutil.rmtree(out / "ledger")
    for name in ("rows.npy", "forces.npy"):
        (out / name).unlink()
    for verify in (False, True):
        status = read_status(open_results(out), verify=verify)
        assert (status.done, status.complete, status.wrong) == (0, False, None)


def test_status_says_that_the_ledger_is_gone(again, out):
    path = out / "ledger" / "00000.ledger"
    last = list(ledger.entries(path))
    path.unlink()
    ledger.append(path, last[:3])
    remedy = "though rows.npy is complete; run the screening again, which computes again what it lacks"
    assert status_of(out) == f"the ledger of the results, {out}/ledger, tells of 3 of 5 chunks, {remedy}"
    shutil.rmtree(out / "ledger")
    assert status_of(out) == f"the ledger of the results, {out}/ledger, is gone, {remedy}"
    again()
    assert read_status(open_results(out), verify=True).complete


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged: no valid JSON (Expecting value: line 1 column 1 (char 0))"),
        ("{}", "is damaged: it does not say its format"),
        ("[]", "is damaged: it does not say its format"),
        ('{"format": 7}', "is of another version of atomsieve (format 7, this one reads 2)"),
        ('{"format": 2}', ": columns of another version of atomsieve"),
        (None, "is damaged: it lacks what a run writes ('chunks')"),
    ],
)
def test_a_damaged_manifest_names_the_command_that_starts_afresh(screen, tmp_path, text, said):
    screen()
    out, path = tmp_path / "out", tmp_path / "out" / "run.json"
    if text is None:
        found = json.loads(path.read_text())
        del found["chunks"]
        text = json.dumps(found)
    path.write_text(text)
    verbs = [
        ("status",),
        ("top",),
        ("relax",),
        ("dedup",),
        ("hull", "-r", out),
        ("export", tmp_path / "x.csv"),
        ("pick", "--n", 3, "--out", tmp_path / "x.extxyz"),
    ]
    for verb, *args in verbs:
        done = CliRunner().invoke(app, [verb, str(out), *map(str, args)])
        assert isinstance(done.exception, DataError), (verb, done.output)
        joint = "" if said.startswith(":") else " "
        assert str(done.exception) == f"{path}{joint}{said}; start afresh with `screen run ... --overwrite`"
    screen(overwrite=True)
    assert read_status(open_results(out)).complete


# -- forces that are read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.extxyz", "x.bp"])
@pytest.mark.parametrize("size", [None, 0, 100, HEADER, HEADER + 1201, HEADER + 1200])
def test_structures_are_not_exported_with_forces_that_are_not_whole(out, tmp_path, name, size):
    results = open_results(out)
    where = f"head == {results.labels.heads[-1]!r}"
    export(results, tmp_path / name, iter_matching_rows(results, where))
    path = out / "forces.npy"
    wanted = path.stat().st_size
    if size is None:
        path.unlink()
    else:
        cut(path, size)
    said = "is gone" if size is None else f"has {size} bytes, the structures that were screened need {wanted}"
    before = sorted(tmp_path.rglob("x.*"))
    with pytest.raises(DataError, match=rf"forces.npy {said}; run the screening again"):
        export(results, tmp_path / name, iter_matching_rows(results, where), overwrite=True)
    assert sorted(tmp_path.rglob("x.*")) == before
    export(results, tmp_path / "x.csv", iter_matching_rows(results, where))  # reads no forces


def test_a_run_without_forces_is_exported_without(again, tmp_path):
    again(forces=False, overwrite=True)
    results = open_results(tmp_path / "out")
    assert results.forces(12) is None
    rows = iter_matching_rows(results, f"head == {results.labels.heads[0]!r}")
    assert export(results, tmp_path / "x.bp", rows) == 300
    with open_structures(tmp_path / "x.bp") as reader:
        assert reader.read(0, 300).forces is None
