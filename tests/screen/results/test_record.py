"""Questions to results: how far, the best rows, exports, also while rows are missing."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.predict.status import Status
from atomsieve.runs.lock import PathLock
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results import ledger
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.export import export
from atomsieve.screen.results.formulas import read_formulas
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.status import format_status_lines, read_status
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.best import best_rows, iter_matching_rows
from atomsieve.screen.selection.row_filter import restrict_to_head
from atomsieve.structures import SourceInfo, open_structures, write_structures
from atomsieve.structures.formats import writable_endings
from tests.screen.screen_fakes import FakePredictor, candidates


class Breaks(FakePredictor):
    def before(self, batch):
        if self.calls == 20:
            raise ZeroDivisionError


@pytest.fixture
def half(screen, tmp_path):
    with pytest.raises(ZeroDivisionError):
        screen(Breaks(), commit_seconds=0.0)
    return tmp_path / "out"


@pytest.fixture
def full(tmp_path):
    """Results of structures that lie in files, two heads, with forces; and the structures."""
    batch = candidates(300, bad=True)
    write_structures(tmp_path / "candidates.bp", batch, [])
    run_screen(
        tmp_path / "candidates.bp",
        "gfm",
        ScreenOptions(forces=True, chunk_size=64),
        out=tmp_path / "out",
        predictor=FakePredictor(("pbe",)),
    )
    return tmp_path / "out", batch


def test_status_of_a_run_broken_off(half):
    status = read_status(open_results(half), verify=True)
    assert 0 < status.done < status.structures == 1000
    assert sum(status.status.values()) == status.done
    assert not status.complete
    assert status.running is None
    assert status.damaged == []
    assert status.per_second > 0
    assert any("run the same command again to continue" in line for line in format_status_lines(status))


def test_the_rate_is_that_of_computing_all_of_a_chunk(half):
    results = open_results(half)
    before = read_status(results).per_second
    again = {k: [*e, replace(e[-1], time=e[-1].time + 30, seconds=1e-3)] for k, e in results.ledger.items()}
    results.__dict__["ledger"] = again  # as the second pass of a cascade enters what it has looked at
    assert read_status(results).per_second == before > 0


def test_status_of_a_run_at_work(half):
    with PathLock(half / "lock.json"):
        lines = format_status_lines(read_status(open_results(half)))
    assert lines[1].startswith("running: host ")
    assert "left (until" in lines[2]


def test_status_of_a_finished_run(screen, tmp_path):
    result = screen()
    status = read_status(open_results(tmp_path / "out"), verify=True)
    assert status.complete
    assert status.done == 1000
    assert status.status == result.status
    assert "complete" in format_status_lines(status)


def test_verify_finds_a_changed_byte(screen, tmp_path):
    screen()
    data = bytearray((tmp_path / "out" / "rows.npy").read_bytes())
    data[4096 + ROW.itemsize * 130] ^= 1
    (tmp_path / "out" / "rows.npy").write_bytes(data)
    assert read_status(open_results(tmp_path / "out"), verify=True).damaged == [2]


def test_the_best_rows_of_a_run_broken_off_are_those_that_are_durable(half, screen, tmp_path):
    screen(out="whole")
    rows = np.load(tmp_path / "whole" / "rows.npy")
    opened = open_results(half)
    done = np.isin(rows["position"] // 64, opened.durable()) & (rows["status"] == 0)
    expected = np.sort(rows[done], order=["energy_per_atom", "position"])[:5]
    assert best_rows(opened, 5, "energy_per_atom").tobytes() == expected.tobytes()
    with pytest.raises(AtomSieveError, match="is not complete"):
        export(opened, tmp_path / "x.csv")


def test_the_best_rows_by_any_column(screen, tmp_path):
    screen()
    rows = np.load(tmp_path / "out" / "rows.npy")
    best = best_rows(open_results(tmp_path / "out"), 7, "max_force_std", descending=True, where="natoms >= 5")
    able = rows[(rows["status"] == 0) & (rows["natoms"] >= 5)]
    assert best["max_force_std"].tolist() == sorted(able["max_force_std"].tolist(), reverse=True)[:7]


def test_a_folder_without_results(tmp_path):
    with pytest.raises(AtomSieveError, match="holds no screening results"):
        open_results(tmp_path)


def test_rows_that_are_too_short(screen, tmp_path):
    screen()
    with open(tmp_path / "out" / "rows.npy", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match=r"has 5000 bytes, run.json says"):
        open_results(tmp_path / "out").rows()


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
@pytest.mark.parametrize("where", [None, "status == 'OK' and natoms < 6"])
def test_tables_of_rows(full, tmp_path, kind, where):
    folder, _ = full
    rows = np.load(folder / "rows.npy")
    keep = rows if where is None else rows[(rows["status"] == 0) & (rows["natoms"] < 6)]
    results, out = open_results(folder), tmp_path / f"x.{kind}"
    assert export(results, out, iter_matching_rows(results, where)) == len(keep)
    if kind == "csv":
        with open(out) as file:
            table = list(csv.DictReader(file))
        position, energy = [int(r["position"]) for r in table], [float(r["energy [eV]"] or "nan") for r in table]
        names = [r["status"] for r in table]
    elif kind == "npz":
        with np.load(out) as arrays:
            position, energy = arrays["position"], arrays["energy"]
            names = arrays["status_names"][np.searchsorted(arrays["status_codes"], arrays["status"])]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(out)
        assert table.schema.field("energy").metadata[b"unit"] == b"eV"
        position, energy = table["position"].to_numpy(), table["energy"].to_numpy()
        names = table["status"].to_pylist()
    assert np.array_equal(position, keep["position"])
    assert np.array_equal(energy, keep["energy"], equal_nan=True)
    assert np.array_equal(np.array(names) == "OK", keep["status"] == 0)


def test_structures_with_their_results(full, tmp_path):
    folder, batch = full
    results = open_results(folder)
    rows = np.load(folder / "rows.npy")
    assert export(results, tmp_path / "all.bp") == 300
    with open_structures(tmp_path / "all.bp") as reader:
        again = reader.read(0, 300)
        assert reader.sources[0].name == "pbe"
    ok = rows["status"] == 0
    assert np.array_equal(again.id, batch.id)
    assert np.array_equal(again.positions, batch.positions, equal_nan=True)
    assert np.array_equal(again.has_energy, ok)
    assert np.array_equal(again.energy[ok], rows["energy"][ok])
    stored = np.load(folder / "forces.npy")
    atoms = ok[batch.structure_of_atom]
    assert np.array_equal(again.forces[atoms], stored[atoms].astype(float))


def test_the_best_structures_come_best_first(full, tmp_path):
    from ase.io import read

    folder, batch = full
    results = open_results(folder)
    best = best_rows(results, 12, "max_force")
    assert export(results, tmp_path / "best.extxyz", [best]) == 12
    images = read(tmp_path / "best.extxyz", ":")
    assert [a.info["id"] for a in images] == best["id"].tolist()
    for atoms, row in zip(images, best, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(row["energy"], rel=1e-12)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() == pytest.approx(row["max_force"], rel=1e-5)
        assert atoms.info["head"] == results.labels.heads[row["head"]]
        assert atoms.info["outside"] == (results.labels.text("outside", row["outside"]) or "none")
        own = batch.slice(int(row["position"]), int(row["position"]) + 1)
        np.testing.assert_allclose(atoms.positions, own.positions, atol=1e-7)


def test_structures_with_results_in_every_format_that_can_be_written(full, tmp_path):
    import ase.db

    results = open_results(full[0])
    best = best_rows(results, 9, "energy")
    for ending in writable_endings():
        if ending != ".parquet":  # a table of rows
            whole = 1 if ending in (".vasp", ".poscar") else 9  # a POSCAR holds one structure
            assert export(results, tmp_path / f"best{ending}", [best]) == whole
    assert export(results, tmp_path / "best", [best], form="poscar") == 9
    rows = list(ase.db.connect(tmp_path / "best.db").select())
    assert [row.data["position"] for row in rows] == best["position"].tolist()
    assert [row.data["head"] for row in rows] == [results.labels.heads[k] for k in best["head"]]
    assert [row.energy for row in rows] == pytest.approx(best["energy"].tolist())


def test_exports_are_refused_with_a_reason(full, tmp_path):
    folder, batch = full
    results = open_results(folder)
    with pytest.raises(UsageError, match=r"unknown format 'cvs' .did you mean 'csv'"):
        export(results, tmp_path / "x.cvs")
    export(results, tmp_path / "x.csv")
    with pytest.raises(AtomSieveError, match="already there"):
        export(results, tmp_path / "x.csv")
    with pytest.raises(AtomSieveError, match=r"there is no folder .*nowhere to write x\.csv"):
        export(results, tmp_path / "nowhere" / "x.csv")
    export(results, tmp_path / "x.csv", overwrite=True)
    write_structures(tmp_path / "candidates.bp", batch.take([1, 2, 3]), [], overwrite=True)
    with pytest.raises(DataError, match="no longer what was screened"):
        export(results, tmp_path / "x.extxyz")
    assert not (tmp_path / "x.extxyz").exists()
    assert read_formulas(results, best_rows(results, 3, "energy")) == {}


def test_the_input_is_never_written_over(full, tmp_path):
    folder, _ = full
    source = tmp_path / "candidates.bp"
    before = {path: path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file()}
    link = tmp_path / "link"
    link.symlink_to(source, target_is_directory=True)
    many = "20"
    for verb, *args in (
        ("export", source, "--overwrite", "-k", "3"),
        ("export", tmp_path / "x" / ".." / "candidates.bp", "--overwrite"),
        ("export", source / "x.bp", "--overwrite"),
        ("export", folder / "top.csv", "--overwrite"),
        ("dedup", "--out", source, "--overwrite", "--top", many),
        ("dedup", "--out", folder / "x.csv", "--top", many),
        ("hull", "-r", folder, "--out", folder / "top.csv", "--overwrite"),
        ("pick", "--n", "3", "--out", folder / "x.extxyz"),
        ("relax", "--out", folder, "--overwrite"),
    ):
        done = CliRunner().invoke(app, [verb, str(folder), *map(str, args)])
        assert isinstance(done.exception, UsageError), (verb, args, done.output)
        assert "would overwrite the " in str(done.exception)
    with pytest.raises(UsageError, match="would overwrite the structures that were screened"):
        export(open_results(folder), link / "x.csv", overwrite=True)
    assert {path: path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file()} == before


def test_a_head_is_exported_with_its_rows_without_result_in_their_order(tmp_path):
    write_structures(tmp_path / "c.bp", candidates(120), [])
    run_screen(tmp_path / "c.bp", "gfm", ScreenOptions(head="all"), out=tmp_path / "out", predictor=FakePredictor())
    rows = open_results(tmp_path / "out").rows()
    own = rows[rows["head"] == 1]
    assert (own["status"] != 0).any()

    def exported(*args):
        out = tmp_path / "x.npz"
        done = CliRunner().invoke(app, ["export", str(tmp_path / "out"), str(out), "--overwrite", *args])
        assert done.exit_code == 0, done.output
        return np.load(out)

    assert exported("--head", "scan")["position"].tolist() == list(range(120))
    some = own[own["natoms"] > 5]
    found = exported("--head", "scan", "--where", "natoms > 5 or natoms > 90")
    assert found["position"].tolist() == some["position"].tolist()
    assert set(found["head"]) == {1}
    best = best_rows(open_results(tmp_path / "out"), 4, "max_force", descending=True, where="head == 'scan'")
    found = exported("--head", "scan", "--top", "4", "--by", "max_force", "--descending")
    assert found["position"].tolist() == best["position"].tolist()
    with pytest.raises(UsageError, match="unknown head 'scam'"):
        restrict_to_head(open_results(tmp_path / "out"), None, "scam")
    assert exported("--head", "scan", "--where", "natoms > 5 # big")["position"].tolist() == some["position"].tolist()
    for given in (["--by", "max_force"], ["--by", "energy_per_atom"], ["--descending"], ["--ascending"]):
        refused = CliRunner().invoke(app, ["export", str(tmp_path / "out"), str(tmp_path / "no.csv"), *given])
        assert f"{' '.join(given)} goes with --top or --per; all rows come in input order" in str(refused.exception)
    for wrong in ("natoms > 5) or (natoms > 1", "(natoms > 5"):
        with pytest.raises(UsageError) as caught:
            restrict_to_head(open_results(tmp_path / "out"), wrong, "scan")
        assert f"cannot read the row filter {wrong!r}: " in str(caught.value)
    where = "status == 'UNSEEN_ELEMENT'"
    said = CliRunner().invoke(app, ["top", str(tmp_path / "out"), "--head", "scan", "--where", where])
    n = int((own["status"] == Status.UNSEEN_ELEMENT).sum())
    assert 0 < n < (rows["status"] == Status.UNSEEN_ELEMENT).sum()
    assert f"{n} more rows fulfil --where" in said.output


def test_a_name_is_no_command_of_a_spreadsheet(tmp_path):
    batch = candidates(30).replace(head=np.zeros(30, np.int32))
    write_structures(tmp_path / "c.bp", batch, [SourceInfo("=1+1")])
    run_screen(tmp_path / "c.bp", "gfm", ScreenOptions(), out=tmp_path / "out", predictor=FakePredictor(("pbe",)))
    for name in ("x.csv", "x.npz"):
        args = ["export", str(tmp_path / "out"), str(tmp_path / name), "--per", "source"]
        assert CliRunner().invoke(app, args).exit_code == 0
    with open(tmp_path / "x.csv") as file:
        row = next(csv.DictReader(file))
    assert row["source"] == "'=1+1"
    assert float(row["energy [eV]"]) == best_rows(open_results(tmp_path / "out"), 1, "energy_per_atom")["energy"][0]
    assert np.load(tmp_path / "x.npz")["source"].tolist() == ["=1+1"]


def test_a_chunk_in_the_ledgers_of_two_ranks_counts_as_it_was_last(screen, tmp_path):
    screen()
    results, told = open_results(tmp_path / "out"), read_status(open_results(tmp_path / "out")).status
    path = results.folder.ledger / "00000.ledger"
    last = list(ledger.entries(path))
    path.unlink()
    ledger.append(path, last)  # rank 0 wrote last; rank 1 before it, when nothing had a result
    ledger.append(
        path.with_name("00001.ledger"), [replace(e, time=e.time - 60, status={1: sum(e.status.values())}) for e in last]
    )
    assert len(open_results(tmp_path / "out").ledger[0]) == 2
    assert read_status(open_results(tmp_path / "out")).status == told


def test_a_structure_carries_the_results_of_one_head(tmp_path):
    write_structures(tmp_path / "candidates.bp", candidates(50, bad=False), [])
    run_screen(
        tmp_path / "candidates.bp", "gfm", ScreenOptions(head="all"), out=tmp_path / "out", predictor=FakePredictor()
    )
    results = open_results(tmp_path / "out")
    with pytest.raises(UsageError, match="has several heads"):
        export(results, tmp_path / "x.bp")
    assert export(results, tmp_path / "x.bp", iter_matching_rows(results, "head == 'scan'"), overwrite=True) == 50
    with open_structures(tmp_path / "x.bp") as reader:
        assert [reader.sources[h].name for h in np.unique(reader.read(0, 50).head)] == ["scan"]


def test_the_package_gives_its_public_names(screen, tmp_path):
    import atomsieve.screen
    from atomsieve.screen.run import run_screen

    screen()
    assert atomsieve.screen.open_results(tmp_path / "out").complete
    assert atomsieve.screen.run_screen is run_screen
    with pytest.raises(AttributeError, match="no attribute 'open_result'"):
        atomsieve.screen.open_result  # noqa: B018
