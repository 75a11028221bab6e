"""A precision cascade with real (untrained) ensembles, by its command: the best rows of the better precision."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from atomsieve.cli.main import run
from atomsieve.errors import UsageError
from atomsieve.gfm import save_gfm
from atomsieve.models import Ensemble, HeadSpec, ModelConfig
from atomsieve.predict import Predictor
from atomsieve.screen.cascade.predictors import take_members
from atomsieve.structures import StructureBatch, write_structures
from tests.helpers import copper_oxides, tiny_ensemble, tiny_gfm, tiny_heads


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("candidates") / "c.bp"
    write_structures(path, copper_oxides(240))
    return path


def call(*args):
    return run("screen", [str(a) for a in args])


def screened(source, gfm, out, *options, code=0):
    assert call("run", source, "-e", gfm, "--out", out, "--device", "cpu", "--top", 9, "-q", *options) == code
    return np.load(out / "rows.npy"), table(out)


def table(out):
    with open(out / "top.csv") as file:
        return list(csv.DictReader(file))


def same(one, other):
    """Tell that two tables have the same rows in the same order, and the same numbers to rounding."""
    assert [r["position"] for r in one] == [r["position"] for r in other]
    for a, b in zip(one, other, strict=True):
        assert a["precision"] == b["precision"]
        for name in ("energy [eV]", "max_force [eV/Angstrom]", "energy_std [eV]"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("pair", ["bf16:fp32", "fp32:fp64"])
@pytest.mark.parametrize("choice", [(), ("--by", "max_force", "--where", "energy_std < 0.3 or in_domain")])
def test_the_best_rows_are_those_of_the_better_precision(source, gfm, tmp_path, pair, choice):
    cheap, better = pair.split(":")
    rows, ours = screened(source, gfm, tmp_path / "out", "--cascade", pair, *choice)
    full, theirs = screened(source, gfm, tmp_path / "full", "--precision", better, *choice)
    same(ours, theirs)
    assert {row["precision"] for row in ours} == {better}
    again = rows["precision"] == 1
    assert 9 <= again.sum() < len(rows)
    np.testing.assert_allclose(rows["energy"][again], full["energy"][again], rtol=1e-6)
    plain, _ = screened(source, gfm, tmp_path / "cheap", "--precision", cheap, *choice)
    assert np.array_equal(rows["energy"][~again], plain["energy"][~again])
    found = json.loads((tmp_path / "out/cascade.json").read_text())
    assert found["tested"]["energy_per_atom"] > 0  # on the ensemble's own test vector


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_one_member_screens_and_all_decide(source, tmp_path, kind):
    heads = [head.model_copy(update={"references": {8: -4.5, 29: -3.5}}) for head in tiny_heads()]
    model = tiny_ensemble(3)
    folder = save_gfm(tmp_path / "gfm", Ensemble(model.config, heads, model.seeds, kind), default_head="metal")
    options = ("--cascade", "fp32:fp32", "--cascade-members", 1)
    rows, ours = screened(source, folder, tmp_path / "out", *options)
    full, theirs = screened(source, folder, tmp_path / "full")
    same(ours, theirs)
    if kind == "shallow":  # the spread of forces comes from all members
        assert [float(r["max_force_std [eV/Angstrom]"]) for r in ours] == pytest.approx(
            [float(r["max_force_std [eV/Angstrom]"]) for r in theirs], rel=1e-3, abs=1e-5
        )
    again = rows["precision"] == 1
    assert json.loads((tmp_path / "out/run.json").read_text())["precisions"] == ["fp32/1", "fp32"]
    assert np.isnan(rows["energy_std"][~again]).all()
    assert (rows["energy_std"][again] > 0).all()
    alone = take_members(Predictor.load(folder), 1)(copper_oxides(240), {"energy"})
    np.testing.assert_allclose(rows["energy"][~again], alone.energy[~again], rtol=1e-6)
    assert np.abs(full["energy"] - alone.energy).max() > 1e-4


def test_results_of_a_cascade_are_results(source, gfm, tmp_path, capfd):
    rows, _ = screened(source, gfm, tmp_path / "out", "--cascade", "bf16:fp32")
    assert call("run", source, "-e", gfm, "--out", tmp_path / "out", "--top", 9, "--cascade", "bf16:fp32") == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"cascade bf16 -> fp32: {(rows['precision'] == 1).sum():,} of 240 rows recomputed" in said
    assert "energy_per_atom: bound" in said
    assert call("status", tmp_path / "out", "--verify") == 0
    assert "every durable chunk fits its checksums" in capfd.readouterr().out
    assert call("export", tmp_path / "out", tmp_path / "better.csv", "--where", "precision == 'fp32'") == 0
    with open(tmp_path / "better.csv") as file:
        assert sum(1 for _ in file) - 1 == (rows["precision"] == 1).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cascade", "fp64:fp32"], "must be the cheaper one"),
        (["--cascade", "bf16:fp32", "--precision", "fp32"], "which names both precisions"),
        (["--cascade-members", "1"], "goes with --cascade"),
        (["--cascade", "fp32:fp32", "--cascade-members", "3"], "the ensemble has 3; give 1 to 2"),
        (["--cascade", "fp32:fp32", "--cascade-members", "1", "--by", "energy_std"], "has no error bound"),
        (["--cascade", "bf16:fp32", "--where", "exp(max_force) < 3"], "has no error bound"),
    ],
)
def test_wrong_input_is_told_in_one_line(source, gfm, tmp_path, capfd, options, message):
    assert call("run", source, "-e", gfm, "--out", tmp_path / "out", *options) == 2
    said = capfd.readouterr().err.strip()
    assert message in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_an_ensemble_of_one_member_has_no_part(tmp_path):
    alone = Predictor.load(tiny_gfm(tmp_path / "gfm", members=1))
    with pytest.raises(UsageError, match="cascade-members 1: the ensemble has one member; leave the option out"):
        take_members(alone, 1)


def test_real_candidates_have_the_same_best_rows(shared_data, tmp_path):
    path = shared_data / "candidates" / "wbm_equilibrium.extxyz.gz"
    if not path.exists():
        pytest.skip(f"real candidates not found: {path}")
    from ase.io import read

    write_structures(tmp_path / "c.bp", StructureBatch.from_ase(read(path, ":400")))
    seen = dict.fromkeys(range(1, 100), 1)
    head = HeadSpec(name="any", level_of_theory="none", references=dict.fromkeys(seen, -1.0), scale=1.0, elements=seen)
    model = Ensemble(ModelConfig(hidden=16, layers=2, head_hidden=16), [head], [1, 2])
    folder = save_gfm(tmp_path / "gfm", model, default_head="any")
    rows, ours = screened(tmp_path / "c.bp", folder, tmp_path / "out", "--cascade", "bf16:fp32")
    _, theirs = screened(tmp_path / "c.bp", folder, tmp_path / "full")
    same(ours, theirs)
    assert (rows["precision"] == 0).any()
