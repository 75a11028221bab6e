"""Head auto in all uses: screening from file to file, the ASE calculator, a server's engine."""

import json

import numpy as np
import pytest
from ase.calculators.calculator import CalculatorSetupError

from atomsieve.calculators import GFMCalculator
from atomsieve.errors import UsageError
from atomsieve.gfm import record_files
from atomsieve.gfm.manifest import MIXTURE
from atomsieve.gfm.mixture_file import dump_mixture
from atomsieve.predict import Predictor
from atomsieve.remote.requests import ServedEnsemble
from atomsieve.remote.wire import request_arrays
from atomsieve.screen.options import MIXED, ScreenOptions
from atomsieve.screen.run import run_screen
from atomsieve.serve.model.engine import Engine, describe_model
from atomsieve.serve.model.settings import Settings
from atomsieve.structures import write_structures
from atomsieve.uncertainty.head_mixture import Mixture
from tests.helpers import copper_oxides, tiny_gfm

HEADS = ("organic", "metal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tiny_gfm(tmp_path_factory.mktemp("uses") / "gfm", members=2)
    rng = np.random.default_rng(1)
    record_files(path, {MIXTURE: dump_mixture(Mixture(HEADS, ((rng.normal(size=(2, 118)), rng.normal(size=2)),)))})
    return path


@pytest.fixture(scope="module")
def batch():
    mixed = copper_oxides(12)
    numbers = np.where(mixed.structure_of_atom < 3, 8, mixed.numbers).astype(np.uint8)  # oxygen: known to both heads
    return mixed.replace(numbers=numbers)


@pytest.fixture(scope="module")
def exact(folder, batch):
    return Predictor.load(folder, head="auto", precision="fp64")(batch)


def test_screening_by_it(folder, batch, exact, tmp_path):
    write_structures(tmp_path / "in.bp", batch)
    options = ScreenOptions(head="auto", precision="fp64", chunk_size=5, top=3, forces=True)
    out = tmp_path / "out"
    result = run_screen(tmp_path / "in.bp", folder, options, out=out)
    assert result.exit_code == 0
    rows, run = np.load(out / "rows.npy"), json.loads((out / "run.json").read_text())
    assert run["heads"] == run["ensemble"]["heads"] == ["auto"]
    assert run["uncalibrated"] == ["auto"]
    np.testing.assert_allclose(rows["energy"], exact.energy, rtol=1e-12)
    np.testing.assert_allclose(rows["energy_std"], exact.energy_std, rtol=1e-5)
    np.testing.assert_allclose(np.load(out / "forces.npy"), exact.forces, atol=1e-6)
    every = run_screen(tmp_path / "in.bp", folder, ScreenOptions(head="all", precision="fp64"), out=tmp_path / "all")
    assert json.loads((tmp_path / "all" / "run.json").read_text())["heads"] == list(HEADS)
    assert every.structures == 12
    assert MIXED == "auto"
    with pytest.raises((UsageError, SystemExit)):
        run_screen(tmp_path / "in.bp", tiny_gfm(tmp_path / "bare"), options, out=tmp_path / "no")


def test_a_calculator_of_it(folder, batch, exact):
    calc, plain = GFMCalculator(folder, head="auto"), GFMCalculator(folder, head="metal")
    for s in (0, 7):
        atoms = batch.to_ase()[s]
        atoms.calc = calc
        assert atoms.get_potential_energy() == pytest.approx(float(exact.energy[s]), rel=1e-12)
        own = exact.forces[batch.ptr[s] : batch.ptr[s + 1]]
        np.testing.assert_allclose(atoms.get_forces(), own, atol=1e-10)
        assert "sigma_energy" not in calc.implemented_properties
    plain.set(head="auto")
    assert plain.get_property("energy", batch.to_ase()[0]) == pytest.approx(float(exact.energy[0]), rel=1e-12)
    with pytest.raises(CalculatorSetupError, match="allowed: auto, metal, organic"):
        plain.set(head="autos")


def test_a_server_of_it(folder, batch, exact):
    predictor, settings = Predictor.load(folder, precision="fp64"), Settings(precision="fp64")
    engine = Engine(predictor, settings)
    found = engine.answer_one(request_arrays(batch), "auto", ["energy", "forces", "status"])
    np.testing.assert_allclose(found["energy"].ravel(), exact.energy, rtol=1e-12)
    np.testing.assert_allclose(found["forces"].reshape(-1, 3), exact.forces, atol=1e-10)
    told = json.loads(json.dumps(describe_model(predictor, settings, ["energy"]), allow_nan=False))
    client = ServedEnsemble(told, "auto", alone=False)
    assert client.heads == [*HEADS, "auto"]
    assert not client.is_calibrated("auto")
    assert np.isnan(client.references("auto")).all()
    assert client.elements("auto") == [1, 6, 7, 8, 29]
