"""From a results folder to relaxed structures: the chosen rows, ASE's minima, the same bytes after a break."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from rich.console import Console
from typer.testing import CliRunner

from atomsieve.calculators import ChangeLimits, GFMCalculator, Stop
from atomsieve.cli.screen import app
from atomsieve.errors import AtomSieveError, DataError, Interrupted, UsageError
from atomsieve.followup.relax import group as relax_group
from atomsieve.followup.relax import run as relax_module
from atomsieve.followup.relax.files import COLUMNS
from atomsieve.followup.relax.options import RelaxOptions
from atomsieve.followup.relax.report import print_relaxation
from atomsieve.followup.relax.run import find_group_bounds, run_relax
from atomsieve.predict import Predictor
from atomsieve.runs import output_folder
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.record import open_results
from atomsieve.screen.run import run_screen
from atomsieve.screen.selection.best import best_rows
from atomsieve.screen.selection.select import Selection
from atomsieve.structures import open_structures, write_structures
from tests.helpers import copper_oxides, tiny_gfm

SAME = ("relax.json", "relaxed.csv", "relaxed.extxyz")
OPTIONS = {
    "fmax": 0.02,
    "max_steps": 18,
    "cell": True,
    "precision": "fp64",
    "max_atoms": 24,
    "group_atoms": 50,
    "device": "cpu",
    "limits": ChangeLimits.none(),
    "optimizer": "fire",
}


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """A folder with an ensemble, candidates of which two are broken, and what screening made of them."""
    folder = tmp_path_factory.mktemp("survivors")
    tiny_gfm(folder / "gfm", hidden=8, layers=1)
    batch = copper_oxides(30, seed=3)
    numbers, positions = batch.numbers.copy(), batch.positions.copy()
    numbers[batch.ptr[4]], positions[batch.ptr[9]] = 92, np.nan
    batch = batch.replace(numbers=numbers, positions=positions, id=np.arange(30) + 500)
    write_structures(folder / "c.bp", batch)
    options = ScreenOptions(precision="fp64", device="cpu", chunk_size=8)
    run_screen(folder / "c.bp", folder / "gfm", options, out=folder / "results")
    return folder


def lines(folder):
    with open(folder / "relaxed.csv", newline="") as file:
        return list(csv.DictReader(file))


def make_options(top=20, where=None, head=None, **changes):
    return RelaxOptions(selection=Selection(top=top, where=where, head=head), **{**OPTIONS, **changes})


def relaxed(screened, out, **changes):
    result = run_relax(screened / "results", make_options(**changes), out=out)
    return result, lines(out)


@pytest.fixture(scope="module")
def whole(screened, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "relaxed"
    result, rows = relaxed(screened, out, trajectory=2)
    return out, result, rows


def test_the_best_rows_are_relaxed_as_ase_does(screened, whole):
    out, result, rows = whole
    best = best_rows(open_results(screened / "results"), 20, "energy_per_atom")
    assert [int(row["position"]) for row in rows] == best["position"].tolist()
    assert [int(row["id"]) for row in rows] == best["id"].tolist()
    assert [float(row["energy_before [eV]"]) for row in rows] == pytest.approx(best["energy"].tolist(), rel=1e-9)
    assert sum(result.reasons.values()) == 20 and set(result.reasons) == {"CONVERGED", "STEPS"}
    assert len(list((out / "groups").glob("*.npz"))) == len(find_group_bounds(best["natoms"].astype(int), 50)) - 1 > 1
    calc = GFMCalculator(screened / "gfm", precision="fp64", device="cpu")
    with open_structures(screened / "c.bp") as reader:
        start = reader.read(0, 30)
    for k in (0, 7, 19):
        atoms = start.take([best["position"][k]]).to_ase()[0]
        atoms.calc = calc
        dyn = FIRE(FrechetCellFilter(atoms), logfile=None)
        assert dyn.run(fmax=0.02, steps=18) == (rows[k]["reason"] == "CONVERGED")
        assert dyn.nsteps == int(rows[k]["steps"])
        assert atoms.get_potential_energy() == pytest.approx(float(rows[k]["energy [eV]"]), abs=1e-5)
        assert atoms.get_volume() == pytest.approx(float(rows[k]["volume [Angstrom^3]"]), rel=1e-4)


def test_the_three_files_say_the_same(screened, whole):
    out, _, rows = whole
    images = read(out / "relaxed.extxyz", ":")
    with open_structures(out / "relaxed.bp") as reader:
        batch, sources = reader.read(0, len(reader)), reader.sources
    assert len(images) == len(rows) == len(batch) == 20 and sources[0].name == "metal"
    assert batch.id.tolist() == [int(row["id"]) for row in rows]
    assert batch.has_energy.all() and batch.has_forces.all() and batch.has_stress.all()
    assert list(rows[0]) == [f"{name} [{unit}]" if unit else name for name, (unit, _) in COLUMNS.items()]
    found = Predictor.load(screened / "gfm", precision="fp64")(batch, {"energy", "forces", "stress", "spread"})
    for k, (row, atoms) in enumerate(zip(rows, images, strict=True)):
        own = slice(*batch.ptr[k : k + 2])
        assert np.allclose(atoms.positions, batch.positions[own], atol=1e-7)
        assert atoms.info["reason"] == row["reason"] and atoms.info["steps"] == int(row["steps"])
        assert atoms.get_potential_energy() == pytest.approx(batch.energy[k], abs=1e-6)
        assert np.allclose(atoms.get_forces(), batch.forces[own], atol=1e-6)
        assert found.energy[k] == pytest.approx(float(row["energy [eV]"]), abs=1e-7)
        assert found.energy_std[k] == pytest.approx(float(row["energy_std [eV]"]), abs=1e-7)
        assert np.allclose(found.forces[own], batch.forces[own], atol=1e-8)
        assert np.allclose(found.stress[k], batch.stress[k], atol=1e-8)
        assert (row["in_domain"] == "True") == found.in_domain[k]


def test_trajectories_end_where_the_structure_is(whole):
    out, _, rows = whole
    images = {atoms.info["position"]: atoms for atoms in read(out / "relaxed.extxyz", ":")}
    assert len(list((out / "trajectories").iterdir())) == 20
    for row in rows:
        frames = read(out / "trajectories" / f"{row['position']}.extxyz", ":")
        steps = [atoms.info["step"] for atoms in frames]
        last = int(row["steps"])
        assert steps == sorted({*range(0, last + 1, 2), last})
        assert np.allclose(frames[-1].positions, images[int(row["position"])].positions)
        assert frames[-1].get_potential_energy() <= frames[0].get_potential_energy() + 1e-9


@pytest.mark.parametrize("fault", ["dies", "is stopped"])
def test_broken_off_and_continued_gives_the_same_bytes(screened, whole, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(relax_group, "KEEP_SECONDS", 0.0)
    forward, calls = Predictor.__call__, []
    request = "atomsieve.followup.relax.run.StopRequest.__enter__"

    def breaking(self, *args, **kwargs):
        calls.append(1)
        if fault == "dies" and len(calls) == 30:
            raise RuntimeError("no more")
        return forward(self, *args, **kwargs)

    class Stopping:
        @property
        def requested(self):
            return len(calls) > 29

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "__call__", breaking)
        if fault == "is stopped":
            patched.setattr(request, lambda self: Stopping())
        with pytest.raises(Interrupted if fault == "is stopped" else RuntimeError) as caught:
            relaxed(screened, tmp_path / "out", trajectory=2)
    if fault == "is stopped":
        assert "run the same command again to continue" in str(caught.value)
    assert list((tmp_path / "out" / "groups").glob("*.state.npz"))
    assert not (tmp_path / "out" / "relaxed.csv").exists() and not (tmp_path / "out" / "lock.json").exists()
    again, done = [], 29 if fault == "dies" else 30
    monkeypatch.setattr(Predictor, "__call__", lambda self, *a, **k: again.append(1) or forward(self, *a, **k))
    relaxed(screened, tmp_path / "out", trajectory=2)
    out = whole[0]
    events = map(json.loads, (out / "run.log.jsonl").read_text().splitlines())
    assert len(again) == sum(event.get("evaluations", 0) for event in events) - done, "nothing is done twice"
    for name in [*SAME, *(f"trajectories/{path.name}" for path in (out / "trajectories").iterdir())]:
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes(), name
    for path in sorted((out / "groups").iterdir()):
        assert (tmp_path / "out" / "groups" / path.name).read_bytes() == path.read_bytes()
    data = "relaxed.bp/part-00000.r000.bp/data.0"
    assert (tmp_path / "out" / data).read_bytes() == (out / data).read_bytes()


def test_a_relaxation_that_is_done_is_not_done_again_and_other_settings_are_refused(screened, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    (out / "relaxed.bp").rename(tmp_path / "away")
    result, _ = relaxed(screened, out, trajectory=2)
    assert result.computed == 0 and not (out / "relaxed.bp").exists()
    with pytest.raises(AtomSieveError, match=r"options\.fmax: 0\.02 -> 0\.01\).*--overwrite"):
        relaxed(screened, out, trajectory=2, fmax=0.01)
    with pytest.raises(AtomSieveError, match=r"other settings \(options\.top: 20 -> 5\)"):
        relaxed(screened, out, trajectory=2, top=5)
    (out / "groups" / "00001.npz").unlink()
    (out / "relaxed.csv").unlink()
    relaxed(screened, out, trajectory=2)
    assert (out / "relaxed.csv").read_bytes() == (whole[0] / "relaxed.csv").read_bytes()
    again = make_options(top=3, max_steps=0)
    result = run_relax(screened / "results", again, out=out, overwrite=True)
    assert result.structures == 3 and not (out / "trajectories").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    with pytest.raises(AtomSieveError, match="holds other files than relaxed structures"):
        run_relax(screened / "results", again, out=tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "precious").exists()


@pytest.mark.parametrize("left", [0, 10, 400, -1])
def test_a_damaged_group_is_relaxed_again(screened, whole, tmp_path, left):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    path = out / "groups" / "00001.npz"
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:left] if left >= 0 else content[:middle] + b"\xff" * 64 + content[middle + 64 :])
    said = Console(file=io.StringIO(), width=200)
    result = run_relax(screened / "results", make_options(trajectory=2), out=out, console=said)
    assert path.read_bytes() == content
    assert 0 < result.computed < 20 and result.reasons == whole[1].reasons
    assert "groups [1] are damaged and relaxed again" in said.file.getvalue()
    for name in SAME:
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes()


def test_a_group_that_is_damaged_meanwhile_is_named(screened, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)

    def late(work, todo, stop):
        (out / "groups" / "00000.npz").write_bytes(b"PK")

    with monkeypatch.context() as patched:
        patched.setattr(relax_module, "_relax", late)
        with pytest.raises(DataError, match=r"00000\.npz is gone or damaged; run the same command again"):
            relaxed(screened, out, trajectory=2)
    assert relaxed(screened, out, trajectory=2)[0].reasons == whole[1].reasons


def test_a_first_start_that_ends_before_anything_is_asked_leaves_a_folder_for_the_next(screened, tmp_path, monkeypatch):
    def full(path, data):
        raise AtomSieveError("no space left")

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(output_folder, "write_output", full)
        with pytest.raises(AtomSieveError, match="no space left"):
            relaxed(screened, out, top=2, max_steps=0)
    assert not list(out.iterdir())
    for name in (".relax.json.4711", "lock.json.8f3a"):  # of one that was killed
        (out / name).write_text("{")
    (out / "groups").mkdir()
    assert relaxed(screened, out, top=2, max_steps=0)[0].structures == 2
    assert not (out / ".relax.json.4711").exists()
    (out / "relax.json").unlink()
    with pytest.raises(AtomSieveError, match=r"holds groups, relaxed.bp.* without relax\.json.*--overwrite"):
        relaxed(screened, out, top=3, max_steps=0)
    again = make_options(top=3, max_steps=0)
    assert run_relax(screened / "results", again, out=out, overwrite=True).structures == 3


def test_filters_and_guard_reach_the_table(screened, tmp_path):
    _, rows = relaxed(screened, tmp_path / "out", where="natoms < 5", max_energy_std=1e-4, fmax=1e-4, max_steps=3)
    assert rows and all(int(row["natoms"]) < 5 for row in rows)
    stopped = [row for row in rows if row["reason"] == "GUARD"]
    assert stopped and all(row["guard"].startswith("energy_std per atom") for row in stopped)
    assert all(not row["guard"] for row in rows if row["reason"] != "GUARD")


def test_what_fails_on_the_way_has_a_place_and_no_labels(screened, tmp_path, monkeypatch):
    forward, calls = Predictor.__call__, []

    def breaking(self, batch, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            positions = batch.positions.copy()
            positions[0] = np.nan
            batch = batch.replace(positions=positions)
        return forward(self, batch, *args, **kwargs)

    monkeypatch.setattr(Predictor, "__call__", breaking)
    result, rows = relaxed(screened, tmp_path / "out", fmax=1e-6, max_steps=4, top=5)
    assert result.reasons["FAILED"] == 1 and result.exit_code == 3 and len(rows) == 5
    failed = [row["reason"] == "FAILED" for row in rows]
    assert [row["status"] for row in rows] == ["NAN_INPUT" if bad else "OK" for bad in failed]
    with open_structures(tmp_path / "out" / "relaxed.bp") as reader:
        batch = reader.read(0, 5)
    assert (~batch.has_energy).tolist() == failed and (~batch.has_forces).tolist() == failed
    assert np.isfinite(batch.positions).all()
    assert [atoms.calc is None for atoms in read(tmp_path / "out" / "relaxed.extxyz", ":")] == failed


def test_the_command(screened, tmp_path):
    call = CliRunner().invoke
    out = tmp_path / "out"
    base = ["relax", str(screened / "results"), "--top", "4", "--out", str(out), "--device", "cpu"]
    done = call(app, [*base, "--fmax", "0.05", "--max-steps", "30", "--cell"])
    assert done.exit_code == 0, done.output
    assert "converged structures with the smallest energy per atom" in done.stdout
    assert "CONVERGED: forces (and stress) are below the limit" in done.stdout
    assert len(lines(out)) == 4
    refused = call(app, [*base, "--every", "5"]).exception
    assert isinstance(refused, UsageError) and "--every 5 goes with --trajectory" in str(refused)
    assert "all of it was done before" in call(app, [*base, "--fmax", "0.05", "--max-steps", "30", "--cell"]).stdout


def test_refusals(screened, tmp_path):
    options, results = make_options(), screened / "results"
    with pytest.raises(UsageError, match="has no row to relax"):
        run_relax(results, make_options(where="natoms > 1000"), out=tmp_path / "out")
    with pytest.raises(UsageError, match="unknown head 'metl'"):
        run_relax(results, make_options(head="metl"), out=tmp_path / "out")
    with pytest.raises(UsageError, match="not calibrated"):
        run_relax(results, make_options(max_sigma_energy=0.1), out=tmp_path / "out")
    other = tiny_gfm(tmp_path / "gfm", members=2, hidden=8, layers=1)
    with pytest.raises(DataError, match="is not the ensemble that screened"):
        run_relax(results, options, ensemble=other, out=tmp_path / "out")
    with pytest.raises(AtomSieveError, match="holds no screening results"):
        run_relax(tmp_path, options)
    assert not (tmp_path / "out").exists()
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    manifest = json.loads((copy / "run.json").read_text())
    manifest["input"]["identity"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is no longer what was screened"):
        run_relax(copy, options, out=tmp_path / "out")
    (copy / "rows.npy").rename(copy / "rows.npy.part")
    with pytest.raises(AtomSieveError, match="is not complete"):
        run_relax(copy, options, out=tmp_path / "out")


def test_limits_give_reasons_of_their_own_and_older_folders_continue_without(screened, whole, tmp_path):
    options = {"top": 12, "max_steps": 6, "precision": "fp32"}
    _, rows = relaxed(screened, tmp_path / "a", limits=ChangeLimits(max_volume_change=1.02, max_moved=0.05), **options)
    passed = [row for row in rows if Stop[row["reason"]].is_change]
    assert passed and all((row in passed) == bool(row["passed"]) for row in rows)
    for row in rows:
        ratio = float(row["volume [Angstrom^3]"]) / float(row["volume_before [Angstrom^3]"])
        assert float(row["volume_ratio"]) == pytest.approx(ratio, rel=1e-6)
        assert (row["reason"] in ("EXPLODED", "COLLAPSED")) == (abs(np.log(ratio)) > np.log(1.02))
        assert row["space_group_before"] and row["fragments"]
    _, rows = relaxed(screened, tmp_path / "b", **options)
    table = (tmp_path / "b" / "relaxed.csv").read_bytes()
    for path in (tmp_path / "b" / "groups").glob("*.npz"):  # as an older version wrote them
        arrays = relax_group.read_arrays(path)
        older = {name: array for name, array in arrays.items() if not name.startswith(("change.", "passed"))}
        relax_group.write_arrays(path, older)
    (tmp_path / "b" / "relaxed.csv").unlink()
    result, _ = relaxed(screened, tmp_path / "b", **options)
    assert result.computed == 0 and (tmp_path / "b" / "relaxed.csv").read_bytes() == table
    with pytest.raises(AtomSieveError, match=r"options\.limits\.max_volume_change: \(none\) -> 1\.5"):
        relaxed(screened, tmp_path / "b", limits=ChangeLimits(), **options)
    console = Console(file=io.StringIO(), width=200)
    limited = make_options(**options | {"limits": ChangeLimits(max_volume_change=1.02, max_moved=0.05)})
    print_relaxation(console, run_relax(screened / "results", limited, out=tmp_path / "a"), 5)
    assert f"of {len(passed)} structures whose result is not believed" in console.file.getvalue()


def test_groups_are_cut_by_atoms_whatever_the_sizes():
    natoms = np.array([3, 3, 3, 50, 1, 1, 20, 3])
    bounds = find_group_bounds(natoms, 10)
    assert bounds[0] == 0 and bounds[-1] == 8 and (np.diff(bounds) > 0).all()
    assert bounds.tolist() == [0, 4, 5, 7, 8]
    assert find_group_bounds(natoms, 10**6).tolist() == [0, 8]


def test_columns_and_reasons_are_documented_as_they_are():
    text = (Path(__file__).parents[2] / "docs" / "relax.md").read_text()
    for name, (unit, meaning) in COLUMNS.items():
        assert f"| `{name}` | {unit} | {meaning} |" in text
    for reason in Stop:
        assert f"| `{reason.name}` | {reason.meaning} |" in text
