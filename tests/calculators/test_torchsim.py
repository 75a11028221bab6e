"""The torch-sim model passes torch-sim's own checks, and its numbers are the Predictor's."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

ts = pytest.importorskip("torch_sim")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from atomsieve import forks  # noqa: E402
from atomsieve.calculators import relax  # noqa: E402
from atomsieve.calculators.torchsim import TorchSimModel  # noqa: E402
from atomsieve.errors import DataError, UsageError  # noqa: E402
from atomsieve.gfm import save_gfm  # noqa: E402
from atomsieve.models import Ensemble, HeadSpec, ModelConfig  # noqa: E402
from atomsieve.predict import Predictor  # noqa: E402
from atomsieve.structures import StructureBatch  # noqa: E402
from tests.helpers import tiny_ensemble, tiny_gfm  # noqa: E402

CPU = torch.device("cpu")


def silicon_iron(folder, **config):
    known = {14: -4.0, 26: -6.0}
    head = HeadSpec(name="x", level_of_theory="made up", references=known, scale=1.0, elements=dict.fromkeys(known, 9))
    model = ModelConfig(**{"hidden": 16, "layers": 2, "head_hidden": 16, **config})
    return save_gfm(folder, Ensemble(model, [head], [1, 2]))


@pytest.mark.parametrize(
    ("precision", "dtype", "config"),
    [("fp64", torch.float64, {}), ("fp32", torch.float32, {}), ("fp64", torch.float64, {"forces": "direct"})],
)
def test_passes_the_checks_of_torch_sim(tmp_path, precision: str, dtype: torch.dtype, config: dict) -> None:
    model = TorchSimModel(silicon_iron(tmp_path / "gfm", **config), precision=precision, device="cpu")
    validate_model_outputs(model, CPU, dtype)


def test_equals_the_predictor(predictor: Predictor) -> None:
    images = [bulk("Cu", a=3.7), bulk("Cu", cubic=True).repeat((2, 1, 1)), bulk("CuO", "zincblende", a=4.3)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.1, seed=seed)
        atoms.set_cell(atoms.cell @ [[1, 0.03, 0], [0, 1.02, 0.01], [0, 0, 0.98]], scale_atoms=True)
    model = TorchSimModel(predictor, "metal")
    out = model(ts.io.atoms_to_state(images, CPU, torch.float64))
    want = {"energy", "forces", "stress", "spread"}
    expected = predictor(StructureBatch.from_ase(images), want, head="metal")
    for name in ("energy", "forces", "stress", "energy_std", "forces_std", "in_domain"):
        assert np.allclose(out[name].numpy(), getattr(expected, name), rtol=1e-12, atol=1e-12), name
    assert "sigma_energy" not in out, "the head is not calibrated"
    fields = ts.io.atoms_to_state(images, CPU, torch.float64)
    names = ("positions", "cell", "atomic_numbers", "system_idx")
    again = model({name: getattr(fields, name) for name in names})
    assert torch.equal(again["forces"], out["forces"])


def test_batched_relaxation_finds_our_minima(copper_gfm) -> None:
    predictor = Predictor.load(copper_gfm, precision="fp64")
    images = [bulk("Cu", a=a, cubic=a > 3.6) for a in (3.52, 3.66)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.05, seed=seed)
    model = TorchSimModel(predictor)
    state = ts.io.atoms_to_state(images, CPU, torch.float64)
    init, step = ts.optimizers.frechet_cell_fire(model)
    state = init(state)
    for _ in range(150):
        state = step(state)
    ours = relax(predictor, StructureBatch.from_ase(images), fmax=0.01, steps=300, cell=True)
    assert ours.converged.all()
    counts = np.array([len(a) for a in images])
    assert np.allclose(state.energy.numpy() / counts, ours.energy / counts, atol=1e-4)


def test_switches_and_molecules(predictor: Predictor) -> None:
    model = TorchSimModel(predictor, "organic", pbc=False)
    water = molecule("H2O", vacuum=3)
    state = ts.io.atoms_to_state([water], CPU, torch.float64)
    state.pbc = False
    out = model(state)
    assert out["forces"].shape == (3, 3) and (out["stress"] == 0).all()
    model.compute_forces, model.compute_stress = False, False
    assert not {"forces", "stress", "forces_std"} & set(model(state))


def slab() -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat((1, 1, 2))
    atoms.center(vacuum=6, axis=2)
    atoms.pbc = (True, True, False)
    return atoms


def test_a_slab_that_torch_sim_makes_a_cluster_is_warned_about(predictor: Predictor) -> None:
    """torch-sim 0.3 keeps one truth value for all axes."""
    state = ts.io.atoms_to_state([slab()], CPU, torch.float64)
    assert state.pbc is False
    model = TorchSimModel(predictor, "metal")
    with pytest.warns(UserWarning, match=r"computed as clusters\. .* pbc=\(True, True, False\)") as warned:
        wrong = model(state)["energy"].item()
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(state)["energy"].item() == wrong, "one warning is enough"
        told = TorchSimModel(predictor, "metal", pbc=(True, True, False))
        out = told(state)
        cluster = TorchSimModel(predictor, "metal", pbc=False)(state)["energy"].item()
        assert TorchSimModel(predictor, "metal")(ts.io.atoms_to_state([bulk("Cu")], CPU, torch.float64))
        fields = {name: getattr(state, name) for name in ("positions", "cell", "atomic_numbers", "system_idx")}
        own = TorchSimModel(predictor, "metal")(fields | {"pbc": [True, True, False]})
    right = predictor(StructureBatch.from_ase(slab()), head="metal")
    assert np.isclose(out["energy"].item(), right.energy[0], rtol=1e-12) and own["energy"] == out["energy"]
    assert np.allclose(out["forces"].numpy(), right.forces, atol=1e-12)
    assert (out["stress"] == 0).all(), "a slab has none"
    assert cluster == wrong and abs(wrong - out["energy"].item()) > 1e-3


def test_cells_and_axes_that_are_refused(predictor: Predictor) -> None:
    water = ts.io.atoms_to_state([molecule("H2O")], CPU, torch.float64)
    with pytest.raises(DataError, match="system 0 of 1 has no result: it periodic, but its cell vectors are missing"):
        TorchSimModel(predictor, "organic", pbc=(True, False, False))(water)
    for axes in ((True, False), "TTF", (1, 1, 0), None.__class__):
        with pytest.raises(UsageError, match="one or three truth values"):
            TorchSimModel(predictor, "organic", pbc=axes)
    heavy = ts.io.atoms_to_state([bulk("Cu")], CPU, torch.float64)
    heavy.atomic_numbers[:] = 29 + 256
    with pytest.raises(DataError, match="an element that the head was not trained on"):
        TorchSimModel(predictor, "metal")(heavy)


def test_a_shallow_ensemble_gives_what_is_said(tmp_path) -> None:
    plain = tiny_ensemble()
    shallow = Ensemble(plain.config, plain.heads, plain.seeds, "shallow")
    folder = save_gfm(tmp_path / "gfm", shallow, default_head="metal")
    model = TorchSimModel(folder, "metal", device="cpu")
    out = model(ts.io.atoms_to_state([bulk("Cu", a=3.7)], CPU, torch.float64))
    assert {"energy", "forces", "stress", "energy_std"} <= set(out)
    assert not {"forces_std", "sigma_forces"} & set(out)


def test_errors(predictor: Predictor, tmp_path) -> None:
    with pytest.raises(UsageError, match="unknown head 'iron'"):
        TorchSimModel(predictor, "iron")
    state = ts.io.atoms_to_state([bulk("Cu"), bulk("Xe", "fcc", a=6.0)], CPU, torch.float64)
    with pytest.raises(DataError, match="system 1 of 2 has no result: it holds an element"):
        TorchSimModel(predictor, "metal")(state)
    charged = tiny_gfm(tmp_path / "charged", charge_spin=True)
    with pytest.raises(UsageError, match="needs charge and spin, which torch-sim models do not get"):
        TorchSimModel(charged, "metal", device="cpu")
    direct = TorchSimModel(tiny_gfm(tmp_path / "direct", forces="direct"), "metal", device="cpu")
    assert not direct.compute_stress
    with pytest.raises(NotImplementedError, match="gives no stress"):
        direct.compute_stress = True


def test_a_forked_process_that_would_hang_is_refused(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    model, state = TorchSimModel(predictor, "metal"), ts.io.atoms_to_state([bulk("Cu")], CPU, torch.float64)
    monkeypatch.setattr(forks, "_started", forks._Started())
    monkeypatch.setattr(forks._started, "process", os.getpid() + 1)
    monkeypatch.setattr(forks, "_has_gnu_openmp", lambda: True)
    torch.set_num_threads(2)
    try:
        with pytest.raises(UsageError, match="forked from one that had computed on several threads"):
            model(state)
    finally:
        torch.set_num_threads(before)
