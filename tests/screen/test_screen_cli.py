"""The `screen` command with a real (untrained) ensemble: what a user types, and what a user sees."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from atomsieve.cli.main import run
from atomsieve.predict import Predictor
from atomsieve.predict.status import Status
from atomsieve.structures import SourceInfo, StructureBatch, write_structures
from tests.helpers import copper_oxides, tiny_gfm


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm")


@pytest.fixture
def batch():
    good = copper_oxides(60)
    bad = copper_oxides(4, seed=7)
    bad.positions[bad.ptr[0]] = np.nan
    bad.numbers[bad.ptr[1]] = 79
    bad.cell[2] = 0.0
    crowded = StructureBatch.from_ase([bad.to_ase()[3] + bad.to_ase()[3]])
    charged = copper_oxides(1, seed=8).replace(charge=np.array([1.0], np.float32))
    return StructureBatch.concatenate([good.slice(0, 30), bad.slice(0, 3), crowded, charged, good.slice(30, 60)])


@pytest.fixture
def source(tmp_path, batch):
    write_structures(tmp_path / "candidates.adios", batch, [])
    return tmp_path / "candidates.adios"


def call(*args):
    return run("screen", [str(a) for a in args])


def test_bare(source, gfm, batch, capfd):
    assert call("run", source, "--ensemble", gfm) == 3
    said = capfd.readouterr()
    assert "head: metal (the ensemble's default)" in said.err
    assert f"results: {source}.results" in said.err
    assert "UNSEEN_ELEMENT" in said.out
    assert "Cu" in said.out
    rows = np.load(f"{source}.results/rows.npy")
    expected = Predictor.load(gfm)(batch, {"energy", "forces", "spread"})
    assert np.array_equal(rows["status"], expected.status)
    assert [Status(s).name for s in rows["status"][30:35]] == [
        "NAN_INPUT",
        "UNSEEN_ELEMENT",
        "BAD_CELL",
        "OVERLAPPING_ATOMS",
        "CHARGE_NOT_MODELLED",
    ]
    ok = rows["status"] == 0
    assert ok.sum() == 60
    np.testing.assert_allclose(rows["energy"][ok], expected.energy[ok], rtol=1e-6)
    np.testing.assert_allclose(rows["energy_std"][ok], expected.energy_std[ok], rtol=1e-3)
    strongest = [np.linalg.norm(expected.forces[a:b], axis=1).max() for a, b in pairwise(batch.ptr)]
    np.testing.assert_allclose(rows["max_force"][ok], np.array(strongest)[ok], atol=1e-5)


def test_asked_for_more(source, gfm, tmp_path, capfd):
    out = tmp_path / "out"
    extent = ["--head", "all", "--forces", "--limit", 20, "--precision", "fp64"]
    choice = ["--top", 5, "--by", "max_force", "--descending", "--where", "head == 'metal' and natoms > 1"]
    assert call("run", source, "-e", gfm, "--out", out, *extent, *choice) == 3
    rows = np.load(out / "rows.npy")
    assert rows.shape == (40,)
    assert (out / "top.csv").read_text().count("\n") == 6
    capfd.readouterr()
    assert call("status", out, "--verify") == 0
    assert "20 of 20 structures" in capfd.readouterr().out
    assert call("top", out, "-k", 3, "--by", "natoms") == 0
    assert "3 rows with the smallest natoms" in capfd.readouterr().out
    assert call("export", out, tmp_path / "x.extxyz", "--where", "head == 'metal'", "-k", 4) == 0
    assert "4 rows written to" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--head", "metall"], 2, "unknown head 'metall' (did you mean 'metal'?)"),
        (["--by", "energy_per_aton"], 2, "did you mean 'energy_per_atom'"),
        (["--where", "exit()"], 2, "unknown function 'exit'"),
        (["--where", "max_force.__class__ == 1"], 2, "not allowed in a row filter"),
        (["--precision", "fp8"], 2, "unknown precision 'fp8'"),
        (["--device", "gpu"], 2, "gpu"),
        (["--limit", "0"], 2, "limit"),
    ],
)
def test_a_wrong_call_is_one_line(source, gfm, capfd, args, code, said):
    assert call("run", source, "-e", gfm, *args) == code
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert said in error[0]


def test_missing_and_damaged_inputs(source, gfm, tmp_path, capfd):
    assert call("run", tmp_path / "nothing.bp", "-e", gfm) == 1
    assert "nothing.bp does not exist" in capfd.readouterr().err
    assert call("run", source, "-e", tmp_path / "nowhere") == 1
    assert "nowhere" in capfd.readouterr().err
    weights = next(gfm.rglob("weights.safetensors"))
    data = weights.read_bytes()
    try:
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert call("run", source, "-e", gfm) == 1
        assert "weights.safetensors" in capfd.readouterr().err
    finally:
        weights.write_bytes(data)


def test_another_ensemble_is_refused(source, gfm, tmp_path, capfd):
    assert call("run", source, "-e", gfm) == 3
    other = tiny_gfm(tmp_path / "other", members=2)
    assert call("run", source, "-e", other) == 1
    assert "ensemble.id: " in capfd.readouterr().err
    assert call("run", source, "-e", other, "--overwrite") == 3


@pytest.mark.parametrize("up", [".", "part/.."])
def test_a_folder_is_named_from_within(source, gfm, monkeypatch, capfd, up):
    results = source.with_name(f"{source.name}.results")
    (source / "part").mkdir()
    monkeypatch.chdir(source)
    assert call("run", up, "--ensemble", gfm) == 3
    assert results.is_dir()
    (results / "part").mkdir()
    monkeypatch.chdir(results)
    assert call("relax", up, "--top", 1, "--max-steps", 0) == 0
    assert source.with_name(f"{results.name}.relaxed").is_dir()
    capfd.readouterr()
    assert call("dedup", up, "--out", ".") == 2
    assert "unknown format ''; allowed: " in capfd.readouterr().err


def test_paths_and_names_of_sources_are_shown_as_they_are(gfm, batch, tmp_path, capfd):
    place = tmp_path / "[draft]" / "q[" / ":x:"
    place.mkdir(parents=True)
    source, out = place / "c[/b].bp", place / "res[bold]"
    write_structures(source, batch.replace(head=np.zeros(len(batch), np.int32)), [SourceInfo("ox[/ox]")])
    assert call("run", source, "--ensemble", gfm, "--out", out) == 3
    assert f"results: {out}" in capfd.readouterr().err
    assert call("status", out) == 0
    assert capfd.readouterr().out.startswith(f"{out}: ")
    assert call("top", out, "--per", "source", "-k", 2) == 0
    assert "ox[/ox]" in capfd.readouterr().out
    assert call("export", out, place / "x.csv") == 0
    assert capfd.readouterr().out.strip().endswith(f"rows written to {place}/x.csv")
    assert call("relax", out, "--top", 1, "--max-steps", 0) == 0
    assert f"{out}.relaxed/relaxed.csv" in capfd.readouterr().out


def test_a_run_of_all_heads_says_that_they_are_ranked_together(source, gfm, tmp_path, capfd):
    line = "heads are ranked together, and energies of different heads have different zeros; --head chooses one"
    for more, told in (((), True), (("--by", "max_force"), False), (("--where", "head == 'metal'"), False)):
        call("run", source, "--ensemble", gfm, "--head", "all", "--out", tmp_path / "all", "--overwrite", *more)
        assert (line in capfd.readouterr().out.replace("\n", " ")) == told
