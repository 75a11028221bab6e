"""Picking: uncertain and different, within budgets, from good rows alone, and only with the ensemble that screened."""

from __future__ import annotations

import csv
import json
from math import gcd

import numpy as np
import pytest
from ase.io import read
from typer.testing import CliRunner

from atomsieve.cli.screen import app
from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.followup.label_candidates import (
    farthest_points,
    mean_features,
    most_uncertain,
    pick,
    write_candidates,
)
from atomsieve.gfm import load_gfm
from atomsieve.graphs import build_graph
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.record import open_results
from atomsieve.screen.run import run_screen
from atomsieve.structures import StructureBatch, write_structures
from tests.helpers import copper_oxides, tiny_gfm


def naive(features, weight, group, n, per_group=None):
    """Choose points one after another, in plain Python."""
    chosen = []
    while len(chosen) < n:
        best, merit = None, -1.0
        for k in range(len(weight)):
            used = sum(group[c] == group[k] for c in chosen)
            if k in chosen or (per_group is not None and used >= per_group):
                continue
            near = min((np.linalg.norm(features[k] - features[c]) for c in chosen), default=1.0)
            if weight[k] * near > merit:
                best, merit = k, weight[k] * near
        if best is None:
            break
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("per_group", [None, 1, 3])
def test_farthest_points_are_those_of_a_plain_search(per_group):
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(60, 5)), rng.uniform(0.1, 1.0, 60)
    group = rng.integers(0, 8, 60)
    found = farthest_points(features, weight, group, 25, per_group)
    assert found.tolist() == naive(features, weight, group, 25, per_group)
    if per_group is not None:
        assert np.bincount(group[found]).max() <= per_group
        assert len(found) <= 8 * per_group


def test_farthest_points_of_awkward_inputs():
    same = np.zeros((5, 3))
    assert sorted(farthest_points(same, np.ones(5), np.zeros(5, int), 5)) == [0, 1, 2, 3, 4]
    line = np.arange(5.0)[:, None]
    found = farthest_points(line, np.zeros(5), np.zeros(5, int), 3)  # without any uncertainty, distance decides
    assert found.tolist() == [0, 4, 2]
    assert len(farthest_points(np.zeros((0, 3)), np.zeros(0), np.zeros(0, int), 3)) == 0


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """Return the results of 120 copper oxides, some of them bad, and the ensemble."""
    place = tmp_path_factory.mktemp("pick")
    gfm = tiny_gfm(place / "gfm")
    batch = copper_oxides(120)
    positions = batch.positions.copy()
    positions[batch.ptr[:10]] = np.nan
    numbers = batch.numbers.copy()
    numbers[batch.ptr[10:15]] = 92
    batch = batch.replace(positions=positions, numbers=numbers, id=np.arange(120) + 500)
    write_structures(place / "candidates.bp", batch)
    options = ScreenOptions(device="cpu", chunk_size=50)
    run_screen(place / "candidates.bp", gfm, options, out=place / "results")
    return place


@pytest.fixture
def results(screened):
    return open_results(screened / "results")


def test_the_candidates_are_the_most_uncertain_good_rows(results):
    rows, score, good = most_uncertain(results, "energy_std", "metal", None, 30)
    every = np.asarray(results.rows())
    usable = every[every["status"] == 0]
    per_atom = usable["energy_std"].astype(float) / usable["natoms"]
    order = np.lexsort((usable["position"], -per_atom))[:30]
    assert good == len(usable) == 105
    assert rows.tobytes() == usable[order].tobytes()
    np.testing.assert_allclose(score, per_atom[order])


def test_picked_are_those_of_a_plain_search(results, screened):
    found = pick(results, 12, candidates=5)
    rows, score, _ = most_uncertain(results, "energy_std", "metal", None, 60)
    ensemble, _ = load_gfm(screened / "gfm")
    batch = copper_oxides(120).take(rows["position"])
    graph = build_graph(batch, ensemble.config.cutoff)
    import torch

    features = ensemble(graph, torch.ones(60, dtype=torch.int64)).features[0].numpy().astype(float)
    means = np.array([features[a:b].mean(0) for a, b in zip(batch.ptr[:-1], batch.ptr[1:], strict=True)])
    assert found.rows["position"].tolist() == rows["position"][naive(means, score, np.zeros(60), 12)].tolist()
    assert np.array_equal(found.structures.numbers, copper_oxides(120).take(found.rows["position"]).numbers)
    assert (found.by, found.head, found.good, found.candidates) == ("energy_std", "metal", 105, 60)


def test_bad_rows_are_never_picked_and_filters_hold(results):
    every = pick(results, 105)
    assert sorted(every.rows["position"]) == list(range(15, 120))
    small = pick(results, 5, where="natoms < 5", by="max_force_std")
    assert (small.rows["natoms"] < 5).all()
    assert small.by == "max_force_std"


def test_the_budget_of_each_formula_is_kept(results):
    def reduced(numbers):
        oxygen, copper = int((numbers == 8).sum()), int((numbers == 29).sum())
        return oxygen // gcd(oxygen, copper), copper // gcd(oxygen, copper)

    found = pick(results, 100, per_formula=2)
    batch = found.structures
    formulas = [reduced(batch.numbers[a:b]) for a, b in zip(batch.ptr[:-1], batch.ptr[1:], strict=True)]
    assert len(formulas) < 100
    assert max(formulas.count(f) for f in formulas) == 2


def test_the_same_twice_gives_the_same_files(results, tmp_path):
    first, second = (write_candidates(pick(results, 10), results, tmp_path / f"{k}.extxyz") for k in "ab")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_files_say_what_is_to_be_labelled(results, tmp_path):
    found = pick(results, 10)
    path, table = write_candidates(found, results, tmp_path / "picked.extxyz")
    images = read(path, ":")
    with table.open() as file:
        lines = list(csv.DictReader(file))
    assert len(images) == len(lines) == 10
    for k, (atoms, line, row) in enumerate(zip(images, lines, found.rows, strict=True)):
        assert atoms.info["order"] == int(line["order"]) == k + 1
        assert atoms.info["position"] == int(line["position"]) == row["position"]
        assert atoms.info["id"] == row["id"] == row["position"] + 500
        assert (atoms.info["head"], line["level_of_theory"]) == ("metal", "made up")
        assert atoms.info["spread"] == pytest.approx(float(row["energy_std"]), rel=1e-5)
        assert float(line["score"]) == pytest.approx(row["energy_std"] / row["natoms"], rel=1e-5)
        assert line["reasons"] == atoms.info["reasons"]
        assert atoms.calc is None or not atoms.calc.results  # a prediction must not pass for a label
        assert np.array_equal(atoms.numbers, found.structures.slice(k, k + 1).numbers)
    with pytest.raises(AtomSieveError, match="already there"):
        write_candidates(found, results, tmp_path / "picked.extxyz")
    with pytest.raises(UsageError, match="extxyz"):
        write_candidates(found, results, tmp_path / "picked.cif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["picked.csv", "picked.extxyz"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 106}, "--n 106 is more than the 105 rows .*give --n 105 or less"),
        ({"n": 0}, "--n must be at least 1, got 0"),
        ({"n": 5, "by": "max_force_sdt"}, "did you mean 'max_force_std'"),
        ({"n": 5, "by": "sigma_energy"}, "more than the 0 rows"),
        ({"n": 5, "head": "mettal"}, "did you mean 'metal'"),
        ({"n": 5, "per_formula": 0}, "--per-formula must be at least 1"),
    ],
)
def test_wrong_calls_are_told_in_one_line(results, options, said):
    with pytest.raises(UsageError, match=said) as error:
        pick(results, **options)
    assert "\n" not in str(error.value)


def test_another_ensemble_is_refused(results, tmp_path):
    other = tiny_gfm(tmp_path / "other", members=2)
    with pytest.raises(DataError, match="is not the ensemble that screened"):
        pick(results, 5, ensemble=other)
    with pytest.raises(AtomSieveError, match="--ensemble"):
        pick(results, 5, ensemble=tmp_path / "nothing")


def test_changed_candidates_are_refused(screened, tmp_path):
    manifest = json.loads((screened / "results" / "run.json").read_text())
    other = tmp_path / "other.bp"
    write_structures(other, copper_oxides(120, seed=1))
    copy = tmp_path / "results"
    copy.mkdir()
    for path in (screened / "results").iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "ledger").mkdir()
    (copy / "run.json").write_text(json.dumps(manifest | {"input_path": str(other)}))
    with pytest.raises(DataError, match="no longer what was screened"):
        pick(open_results(copy), 5)


def test_the_command(screened, tmp_path):
    call = ["pick", str(screened / "results"), "--n", "5", "--out", str(tmp_path / "p.extxyz"), "--per-formula", "1"]
    found = CliRunner().invoke(app, call)
    assert found.exit_code == 0, found.output
    assert "of 105 rows picked by energy_std, head metal" in found.output
    assert len(read(tmp_path / "p.extxyz", ":")) == 5
    more = CliRunner().invoke(app, [*call[:3], "90", *call[4:], "--overwrite"])
    assert "fewer than --n 90" in more.output


def test_empty_batches_have_no_formula():
    from atomsieve.structures.conversion.split import group_by_formula

    assert len(group_by_formula(StructureBatch.empty())) == 0


def test_features_come_through_the_interface_of_predictors(screened):
    from dataclasses import replace

    from atomsieve.predict import Predictor

    predictor = Predictor.load(screened / "gfm")
    batch = copper_oxides(12).take(np.arange(2, 12))
    found = mean_features(predictor, batch, "metal")
    assert found.shape == (10, predictor.capabilities.features) and np.isfinite(found).all()
    assert mean_features(predictor, batch.slice(0, 0), "metal").shape == (0, predictor.capabilities.features)
    unknown = batch.replace(numbers=np.full_like(batch.numbers, 92))
    with pytest.raises(AtomSieveError, match=r"10 of 10 structures .* have none now \(UNSEEN_ELEMENT\)"):
        mean_features(predictor, unknown, "metal")

    class WithoutFeatures:
        capabilities, backend = replace(predictor.capabilities, features=None), "onnx"

    with pytest.raises(AtomSieveError, match="backend onnx gives no features"):
        mean_features(WithoutFeatures(), batch, "metal")
