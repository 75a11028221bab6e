"""The end of a training calibrates on the part that was kept for it, alone or on several ranks."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.evaluation.calibrate import calibrate_gfm
from atomsieve.gfm.folder import load_gfm, read_calibration
from atomsieve.predict import Predictor
from atomsieve.structures.dataset.open import open_structures
from atomsieve.structures.dataset.writer import write_structures
from atomsieve.train.config import dump_config
from atomsieve.train.data.catalog import scan
from atomsieve.train.data.outliers import remove_outliers
from atomsieve.train.data.split import CALIBRATION, assign_parts
from atomsieve.train.fits import predict_part
from atomsieve.train.run import train
from tests.helpers import copper_oxides, tiny_gfm
from tests.train.test_ranks import launch
from tests.train.thread_ranks import on_threads


def console():
    from rich.console import Console

    return Console(file=io.StringIO(), width=200)


def test_the_part_kept_calibrates_as_the_command_would(small, data_file, tmp_path):
    config = small(split={"train": 0.3, "val": 0.1, "test": 0.0, "calibration": 0.6})
    gfm = train(config).gfm
    by_training = read_calibration(gfm)
    assert by_training.head("emt").calibrated == {"energy", "forces"}
    assert by_training.head("springs").calibrated == {"energy"}  # has no forces
    (data,) = by_training.data
    with open_structures(data_file) as reader:
        assert data.sha256 == reader.identity()
        with pytest.raises(UsageError, match=r"was trained on.*--allow-training-data"):
            calibrate_gfm(gfm, data_file)
        batch, sources = reader.read(0, len(reader)), reader.sources
    # The same structures in a file of their own give the same calibration by the command.
    with open_structures(data_file) as reader:
        catalog = scan(config.data, [reader])
        catalog = catalog.take(remove_outliers(catalog, config.cleaning).keep)
    rows = catalog.row[assign_parts(catalog, config.split, config.data) == CALIBRATION]
    write_structures(tmp_path / "kept.bp", batch.take(rows), sources)
    assert data.structures == len(rows)
    by_command = calibrate_gfm(gfm, tmp_path / "kept.bp", device="cpu")
    for name in ("emt", "springs"):
        one, two = by_training.head(name).energy_per_atom, by_command[name][0].energy_per_atom
        assert one.n == two.n == by_command[name][1]
        assert one.scale == pytest.approx(two.scale, rel=1e-4)
        assert one.conformal["0.9"] == pytest.approx(two.conformal["0.9"], rel=1e-3)
    assert Predictor.load(gfm).describe()["calibrated"] == {"emt": ["energy", "forces"], "springs": ["energy"]}
    load_gfm(gfm)


def test_without_a_part_for_it_every_head_is_uncalibrated_and_training_says_so(small):
    said = console()
    config = small(split={"train": 0.7, "val": 0.3, "test": 0.0, "calibration": 0.0})
    gfm = train(config, said).gfm
    assert read_calibration(gfm).heads == {}
    assert "every head is uncalibrated: no structures were kept for calibration" in said.file.getvalue()
    assert "| not calibrated | not calibrated |" in (gfm / "README.md").read_text()


@pytest.fixture
def labelled_store():
    """A store of labelled structures of two heads."""
    batch, rng = copper_oxides(60), np.random.default_rng(0)
    batch = batch.replace(energy=rng.normal(size=60), forces=rng.normal(size=(batch.n_atoms, 3)))
    catalog = SimpleNamespace(head=np.arange(60) % 2, sources=["organic", "metal"], n_atoms=batch.counts)
    return SimpleNamespace(catalog=catalog, fetch=batch.take)


def test_ranks_share_the_structures_of_a_part_and_all_have_the_whole(labelled_store, tmp_path):
    gfm, rows, every = tiny_gfm(tmp_path / "gfm"), np.arange(1, 60), {}
    for size in (1, 2, 3):
        found = on_threads(
            size,
            lambda group: predict_part(Predictor.load(gfm, device="cpu"), labelled_store, rows, group, most=20, seed=4),
        )
        every[size] = found[0]
        assert all(set(other) == {"organic", "metal"} for other in found)
    for head, alone in every[1].items():
        assert alone.position.tolist() == list(range(20))
        for size in (2, 3):
            for name in ("position", "natoms", "atom_structure", "force", "energy"):
                np.testing.assert_array_equal(getattr(every[size][head], name), getattr(alone, name), err_msg=name)
            np.testing.assert_allclose(every[size][head].predicted, alone.predicted, rtol=1e-6)


@pytest.mark.nightly
@pytest.mark.mpi
@pytest.mark.slow
def test_two_ranks_calibrate_as_one(small, tmp_path):
    """Each predicts its share, and what is fitted is the whole; the weights are the same to rounding."""
    split = {"train": 0.3, "val": 0.1, "test": 0.0, "calibration": 0.6}
    found = []
    for launcher in ("alone", "mpirun"):
        config = small(launcher, precision="fp64", split=split, budget={"steps": 2}, batch={"atoms": 40})
        (tmp_path / f"{launcher}.yaml").write_text(dump_config(config))
        launch(launcher, "-m", "atomsieve", "train", tmp_path / f"{launcher}.yaml")
        found.append(read_calibration(config.output / "gfm"))
    one, two = found
    assert one.data == two.data
    for name in ("emt", "springs"):
        a, b = one.head(name), two.head(name)
        assert a.calibrated == b.calibrated and "energy" in a.calibrated
        assert a.energy_per_atom.n == b.energy_per_atom.n == b.energy_per_atom.structures
        assert a.energy_per_atom.scale == pytest.approx(b.energy_per_atom.scale, rel=1e-3)
    assert one.head("emt").force_component.n == two.head("emt").force_component.n
    assert one.head("emt").force_component.scale == pytest.approx(two.head("emt").force_component.scale, rel=1e-3)
