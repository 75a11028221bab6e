"""Calibrating a folder and predicting with it: factors recovered, intervals cover fresh structures, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.evaluation import residuals
from atomsieve.evaluation.calibrate import calibrate_gfm
from atomsieve.evaluation.residuals import choose_atom_stride, predict_file
from atomsieve.gfm import ensemble_id, load_gfm, read_calibration, record_files, weights_id
from atomsieve.gfm.manifest import CALIBRATION
from atomsieve.predict import Predictor
from atomsieve.predict.intervals import HeadUncertainty
from atomsieve.structures.dataset.open import open_structures
from atomsieve.uncertainty.calibration import LEVELS, HeadCalibration, PropertyCalibration
from atomsieve.uncertainty.strata import choose_group, find_element_group, list_groups
from tests.helpers import copper_oxides, tiny_gfm
from tests.labelled import ENERGY_FACTOR, FORCE_FACTOR, labelled_file, noisy_labels

WANT = {"energy", "forces", "spread", "force_spread"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("plain") / "gfm", layers=1)


@pytest.fixture(scope="module")
def held_out(plain, tmp_path_factory):
    return labelled_file(tmp_path_factory.mktemp("data") / "kept.bp", noisy_labels(plain, 240, 1))


@pytest.fixture(scope="module")
def gfm(plain, held_out, tmp_path_factory):
    folder = shutil.copytree(plain, tmp_path_factory.mktemp("calibrated") / "gfm")
    calibrate_gfm(folder, held_out, device="cpu")
    return folder


def test_the_factors_are_recovered_and_recorded_with_the_data(gfm, plain, held_out):
    found = read_calibration(gfm)
    metal = found.head("metal")
    assert metal.energy_per_atom.scale == pytest.approx(ENERGY_FACTOR, rel=0.15)
    assert metal.force_component.scale == pytest.approx(FORCE_FACTOR, rel=0.1)
    assert set(found.heads) == {"metal"} and found.members == 3
    with open_structures(held_out) as reader:
        assert [(d.name, d.sha256, d.structures) for d in found.data] == [("kept.bp", reader.identity(), 240)]
    load_gfm(gfm)
    assert ensemble_id(gfm) != ensemble_id(plain) and weights_id(gfm) == weights_id(plain)
    assert "calibrated, 240 errors" in (gfm / "README.md").read_text()


def test_intervals_cover_fresh_structures(gfm, plain):
    fresh = noisy_labels(plain, 500, 2)
    out = Predictor.load(gfm)(fresh, WANT)
    assert out.calibrated == {"energy", "forces"}
    hits = np.abs(out.energy - fresh.energy) <= out.interval_energy
    assert hits.mean() == pytest.approx(0.9, abs=4 * np.sqrt(0.09 * (1 / 240 + 1 / 500)))
    within = np.abs(out.forces - fresh.forces) <= out.interval_forces[:, None]
    assert within.mean() == pytest.approx(0.9, abs=0.03)
    assert (np.abs(out.energy - fresh.energy) <= 1.645 * out.energy_std).mean() < 0.6


def test_what_is_uncalibrated_is_nan_and_is_named(gfm):
    predictor = Predictor.load(gfm)
    batch = copper_oxides(3)
    out = predictor(batch.replace(numbers=np.full(batch.n_atoms, 8, np.uint8)), WANT, "organic")
    assert out.calibrated == frozenset()
    assert np.isfinite(out.energy_std).all() and np.isfinite(out.forces_std).all()
    for name in ("sigma_energy", "interval_energy", "sigma_forces", "interval_forces"):
        assert np.isnan(getattr(out, name)).all()
    assert predictor.describe()["calibrated"] == {"organic": [], "metal": ["energy", "forces"]}


def test_a_group_of_its_own_has_its_own_quantile():
    """Half a width is sigma times the quantile of the finest group known; computed here structure by structure."""
    batch = copper_oxides(40, 5)
    wide, narrow = ({str(level): k + level for level in LEVELS} for k in (5.0, 1.0))
    fit = PropertyCalibration(
        n=300,
        structures=300,
        scale=2.0,
        conformal=narrow,
        size_edges=[4, 8],
        groups={"oxide": {"n": 150, "conformal": wide}, "small": {"n": 100, "conformal": {"0.5": 3.0}}},
    )
    head = HeadUncertainty(HeadCalibration(energy_per_atom=fit, force_component=fit))
    spread = np.linspace(0.1, 1, 40)
    names = list_groups(find_element_group(batch), batch.counts, fit.size_edges)
    column = choose_group(names, fit.groups)
    assert {0, 1, 2, 3} - set(column) == {0}  # elements, size, and none at all are all there
    for level in (0.5, 0.9):
        expected = [
            2.0 * s * fit.quantile(level, None if c == 3 else str(row[c]))
            for s, row, c in zip(spread, names, column, strict=True)
        ]
        np.testing.assert_allclose(head.interval_energy(batch, spread, level), expected)
    of_atoms = np.repeat(spread, batch.counts)
    half = head.interval_forces(batch, np.repeat(of_atoms[:, None], 3, 1), 0.5)
    np.testing.assert_allclose(half, head.interval_energy(batch, spread, 0.5)[batch.structure_of_atom])


def test_order_and_batching_of_structures_change_no_interval(gfm):
    batch = copper_oxides(30, 7)
    order = np.random.default_rng(0).permutation(30)
    predictor = Predictor.load(gfm, precision="fp64")
    one, two = predictor(batch, WANT), predictor(batch.take(order), WANT)
    np.testing.assert_allclose(one.interval_energy[order], two.interval_energy, rtol=1e-9)


def test_the_other_heads_keep_their_calibration(gfm, plain, tmp_path):
    own = shutil.copytree(gfm, tmp_path / "gfm")
    before = read_calibration(own).head("metal")
    batch = noisy_labels(plain, 30, 3)
    copper = np.bincount(batch.structure_of_atom, batch.numbers == 29) > 0
    none = labelled_file(tmp_path / "none.bp", batch.take(np.flatnonzero(copper)), source="organic")
    with pytest.raises(DataError, match="no structure with a label and a result"):
        calibrate_gfm(own, none, device="cpu")  # `organic` has not seen copper
    few = labelled_file(tmp_path / "few.bp", batch, source="organic")
    ((name, (fit, usable)),) = calibrate_gfm(own, few, device="cpu").items()
    assert (name, fit.calibrated, usable) == ("organic", frozenset(), int((~copper).sum())) and usable < 10
    assert read_calibration(own).heads == {"metal": before}
    assert [d.name for d in read_calibration(own).data] == ["kept.bp", "few.bp"]


def test_what_a_file_cannot_fit_keeps_its_calibration(gfm, plain, tmp_path):
    own = shutil.copytree(gfm, tmp_path / "gfm")
    before = read_calibration(own).head("metal")
    fresh = noisy_labels(plain, 60, 8)
    few = labelled_file(tmp_path / "few.bp", fresh.take(np.arange(5)))
    assert calibrate_gfm(own, few, device="cpu")["metal"][0].calibrated == frozenset()
    assert read_calibration(own).head("metal") == before
    energies = labelled_file(tmp_path / "energies.bp", fresh.replace(has_forces=np.zeros(60, bool)))
    fit, usable = calibrate_gfm(own, energies, device="cpu")["metal"]
    now = read_calibration(own)
    assert (fit.calibrated, usable) == ({"energy"}, 60)
    assert now.head("metal").energy_per_atom == fit.energy_per_atom != before.energy_per_atom
    assert now.head("metal").force_component == before.force_component
    assert "kept.bp" in [d.name for d in now.data]  # the forces are still of it


def test_of_two_calibrations_at_once_none_is_lost(plain, held_out, tmp_path, monkeypatch):
    """Another process calibrates another head while this one predicts."""
    from atomsieve.evaluation import calibrate as module

    own, other = shutil.copytree(plain, tmp_path / "gfm"), HeadCalibration(energy_per_atom={"n": 20, "scale": 7.0})
    predict = module.predict_file

    def meanwhile(*args):
        record_files(own, {CALIBRATION: module.Calibration(heads={"organic": other}).dumps()})
        return predict(*args)

    monkeypatch.setattr(module, "predict_file", meanwhile)
    read = []
    monkeypatch.setattr(
        module, "read_calibration", lambda f: read.append(f.joinpath(".manifest.lock").exists()) or read_calibration(f)
    )
    calibrate_gfm(own, held_out, device="cpu")
    assert read == [True] and read_calibration(own).heads.keys() == {"organic", "metal"}


def test_structures_that_name_none_of_several_sources_are_refused():
    from types import SimpleNamespace as Name

    class Reader:
        path, sources, column = "x.bp", [Name(name="organic"), Name(name="metal")], {}

        def __len__(self):
            return 3

        def read_arrays(self, *_):
            return self.column

    reader, heads = Reader(), ["organic", "metal"]
    with pytest.raises(UsageError, match=r"3 structures are of no source.*--head"):
        residuals.source_heads(reader, heads, None)
    source, names = residuals.source_heads(reader, heads, "metal")
    assert {names[k] for k in source} == {"metal"}
    reader.column = {"head": np.array([1, 0, 1])}
    assert residuals.source_heads(reader, heads, None)[0].tolist() == [1, 0, 1]
    reader.column, reader.sources = {}, reader.sources[1:]
    source, names = residuals.source_heads(reader, heads, None)
    assert [names[k] for k in source] == ["metal"] * 3


def test_data_are_refused_in_one_line(gfm, plain, held_out, tmp_path):
    stranger = labelled_file(tmp_path / "metals.bp", noisy_labels(plain, 12, 4), source="metals")
    with pytest.raises(UsageError, match=r"'metals' is no head.*did you mean 'metal'.*allowed: organic, metal.*--head"):
        calibrate_gfm(gfm, stranger, device="cpu")
    own = shutil.copytree(gfm, tmp_path / "gfm")
    assert set(calibrate_gfm(own, stranger, head="metal", device="cpu")) == {"metal"}
    with open_structures(held_out) as reader:
        identity = reader.identity()
    raw = json.loads((own / "manifest.json").read_text())
    for use, refused in (("train", True), ("auto", True), ("test", False), ("calibration", False)):
        raw["training"] = {"config": {"data": [{"path": "/elsewhere", "use": use}]}, "data_sha256": [identity]}
        (own / "manifest.json").write_text(json.dumps(raw))
        if refused:
            with pytest.raises(UsageError, match=r"was trained on.*--allow-training-data"):
                calibrate_gfm(own, held_out, device="cpu")
    calibrate_gfm(own, held_out, device="cpu")


def test_one_member_has_nothing_to_calibrate(held_out, tmp_path):
    with pytest.raises(UsageError, match="one member"):
        calibrate_gfm(tiny_gfm(tmp_path / "one", members=1, layers=1), held_out, device="cpu")


def test_of_many_atoms_some_are_taken_evenly(gfm, held_out, monkeypatch):
    assert choose_atom_stride(10) == 1 and 3 * 1_000_000 / choose_atom_stride(1_000_000) <= residuals.MOST_COMPONENTS
    predictor = Predictor.load(gfm)
    with open_structures(held_out) as reader:
        every = predict_file(predictor, reader)["metal"]
        monkeypatch.setattr(residuals, "MOST_COMPONENTS", reader.n_atoms)
        third = predict_file(predictor, reader)["metal"]
    assert len(every.force) == reader.n_atoms
    assert len(third.force) == pytest.approx(reader.n_atoms / 3, rel=0.15)
    np.testing.assert_array_equal(every.energy, third.energy)
    one = np.abs(every.predicted_force - every.force).mean()
    assert np.abs(third.predicted_force - third.force).mean() == pytest.approx(one, rel=0.15)
