"""Screening with a shallow ensemble: the spread of forces for the best rows, for all, or for none."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.gfm import save_gfm
from atomsieve.models import Ensemble
from atomsieve.predict import Predictor
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.run import run_screen
from atomsieve.structures.dataset.writer import write_structures
from tests.helpers import copper_oxides, tiny_ensemble, tiny_heads
from tests.screen.screen_fakes import FakePredictor, MemoryReader
from tests.screen.screen_fakes import candidates as spring_candidates

TOP = 9
OF_SPREAD = ("max_force_std", "sigma_force")


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    plain = tiny_ensemble(3)
    heads = [head.model_copy(update={"references": {8: -4.5, 29: -3.5, 1: -13.6}}) for head in tiny_heads()]
    model = Ensemble(plain.config, heads, plain.seeds, "shallow")
    return save_gfm(tmp_path_factory.mktemp("shallow") / "gfm", model, default_head="metal")


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    path = tmp_path_factory.mktemp("candidates") / "c.bp"
    write_structures(path, copper_oxides(20))
    return path


def screened(candidates, gfm, out, **options):
    result = run_screen(candidates, gfm, ScreenOptions(device="cpu", top=TOP, chunk_size=7, **options), out=out)
    return result, np.load(out / "rows.npy")


def test_by_default_the_best_rows_get_it_when_the_run_is_finished(candidates, gfm, tmp_path):
    result, rows = screened(candidates, gfm, tmp_path / "out", head="all")
    assert np.isnan(rows["max_force_std"]).all()
    assert np.isfinite(rows["energy_std"]).all()
    assert (rows["energy_std"] > 0).all()
    assert json.loads((tmp_path / "out/run.json").read_text())["options"]["force_spread"] == "top"
    batch, predictor = copper_oxides(20), Predictor.load(gfm)
    assert set(result.top["head"]) <= {0, 1}
    with (tmp_path / "out/top.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == TOP
    for row, line in zip(result.top, table, strict=True):
        one = batch.slice(int(row["position"]), int(row["position"]) + 1)
        exact = predictor(one, {"energy", "forces", "force_spread"}, head=predictor.heads[int(row["head"])])
        expected = np.linalg.norm(exact.forces_std, axis=1).max()
        assert row["max_force_std"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert float(line["max_force_std [eV/Angstrom]"]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert result.top["max_force_std"].max() > 1e-3
    stored = {(r["position"], r["head"]): r for r in rows}
    for row in result.top:  # everything else is as in the row store
        for name in ROW.names:
            if name not in OF_SPREAD:
                np.testing.assert_array_equal(row[name], stored[row["position"], row["head"]][name])


def test_all_rows_or_none(candidates, gfm, tmp_path):
    _, every = screened(candidates, gfm, tmp_path / "all", force_spread="all")
    best, none = screened(candidates, gfm, tmp_path / "none", force_spread="none")
    assert (every["max_force_std"] > 0).all()
    assert np.isnan(none["max_force_std"]).all()
    assert np.isnan(best.top["max_force_std"]).all()
    assert "force_spread" not in json.loads((tmp_path / "all/run.json").read_text())["options"]
    np.testing.assert_allclose(every["energy"], none["energy"], rtol=1e-6)
    ranked, rows = screened(candidates, gfm, tmp_path / "ranked", force_spread="all", by="max_force_std")
    assert ranked.top["max_force_std"].tolist() == sorted(rows["max_force_std"].tolist())[:TOP]


def test_rows_with_and_without_it_are_not_mixed(candidates, gfm, tmp_path):
    screened(candidates, gfm, tmp_path / "out")
    with pytest.raises(AtomSieveError, match="force_spread"):
        screened(candidates, gfm, tmp_path / "out", force_spread="all")


@pytest.mark.parametrize("choice", [{"by": "max_force_std"}, {"where": "sigma_force < 0.1"}])
def test_what_rows_do_not_have_cannot_choose_them(candidates, gfm, tmp_path, choice):
    with pytest.raises(UsageError, match=r"a shallow ensemble gives .* use --force-spread all"):
        screened(candidates, gfm, tmp_path / "out", **choice)


class Short(FakePredictor):
    """A shallow ensemble with memory for the spread of forces of `room` atoms."""

    room, tries = 8, 0

    def __init__(self, error):
        super().__init__()
        self.kind = "shallow"
        self.error = error

    def __call__(self, batch, want, head=None, **more):
        found = super().__call__(batch, want, head)
        if "force_spread" not in want:
            return replace(found, forces_std=None, sigma_forces=None)
        if batch.n_atoms > self.room:
            self.tries += 1
            raise self.error
        return found


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_with_too_little_memory_for_it_batches_are_halved_and_what_does_not_fit_has_none(tmp_path, caplog, error):
    batch, short = spring_candidates(60, bad=False), Short(error)
    result = run_screen(
        "springs",
        "gfm",
        ScreenOptions(top=30, chunk_size=16),
        out=tmp_path / "out",
        predictor=short,
        reader=MemoryReader(batch),
    )
    large = result.top["natoms"] > short.room
    assert 3 < large.sum() < 27 and short.tries > large.sum()
    for name in OF_SPREAD:
        assert np.array_equal(np.isnan(result.top[name]), large)
    assert (result.top["status"] == 0).all() and np.isfinite(result.top["energy"]).all()
    assert caplog.text.count("too little memory for its spread of forces") == large.sum()
    exact = FakePredictor()(batch, set())
    for row in result.top[~large]:
        own = exact.forces_std[batch.ptr[row["position"]] : batch.ptr[row["position"] + 1]]
        assert row["max_force_std"] == pytest.approx(np.linalg.norm(own, axis=1).max(), rel=1e-6)


def test_an_unknown_choice_is_named():
    with pytest.raises(UsageError, match=r"unknown force-spread 'tops'.*did you mean 'top'"):
        ScreenOptions(force_spread="tops")
