"""The fast path of HydraGNN's model says what the model itself says, as an ensemble and behind a predictor."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from atomsieve.gfm import save_gfm
from atomsieve.graphs.neighbors import build_graph
from atomsieve.models import Ensemble, ModelConfig
from atomsieve.models.config import HeadSpec
from atomsieve.models.hydragnn.fast.ensemble import FastEnsemble, fast_serves
from atomsieve.models.hydragnn.fast.model import fast_available
from atomsieve.predict import Predictor
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides

pytestmark = pytest.mark.skipif(not fast_available(), reason="the compiled kernels are not built here")
CPU = torch.device("cpu")
HEADS = [
    HeadSpec(name=n, level_of_theory="made up", references={8: -4.0 * k, 29: -3.0}, scale=1.0 + k, elements={})
    for k, n in enumerate(("one", "two", "three"))
]


def hydra(members=2, kind="deep", seed=3, **config):
    given = {"hidden": 21, "layers": 2, "n_basis": 4, "cutoff": 4.0, "charge_spin": True, "max_neighbors": 7}
    given |= {"hydragnn": {"shared": (6, 5), "heads": (8, 7)}, **config}
    model = ModelConfig(encoder="hydragnn_painn", **given)
    ensemble = Ensemble(model, HEADS, range(seed, seed + members), kind).requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for name, p in ensemble.named_parameters():
        if "bias" in name:
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return ensemble


def charged(batch):
    charge = np.resize(np.array([0, 1, -2], np.float32), len(batch))
    return batch.replace(charge=charge, spin=np.resize(np.array([1, 2], np.float32), len(batch)))


WEIGHTS = torch.softmax(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double(), 1)


@pytest.mark.parametrize("heads", [torch.tensor([0, 2, 1, 1, 0, 2]), WEIGHTS], ids=["heads", "mixed"])
@pytest.mark.parametrize("config", [{}, {"max_neighbors": None}], ids=["truncated", "complete"])
def test_energies_forces_and_virials_are_those_of_the_model(heads, config):
    plain, batch = hydra(**config), charged(copper_oxides(6))
    quick = FastEnsemble(plain, "fp64")
    plain = plain.double()
    assert fast_serves(plain, CPU)
    graph = build_graph(batch, 4.0, max_neighbors=plain.config.max_neighbors, dtype=torch.float64)
    state = torch.from_numpy(batch.charge), torch.from_numpy(batch.spin)
    exact = plain(graph, heads, *state, forces=True, stress=True)
    found = quick(graph, heads, *state, forces=True, stress=True)
    pairs = [(found.energy, exact.energy), (found.forces, exact.forces), (found.virial, exact.virial)]
    if heads.is_floating_point():
        pairs.append((found.head_energy, exact.head_energy))
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) < 1e-11 * float(theirs.abs().max())
    assert float((exact.energy[0] - exact.energy[1]).abs().min()) > 1e-6  # the members differ
    light = quick(graph, heads, *state, forces=False, stress=False)
    assert light.forces is None
    assert torch.equal(light.energy, found.energy)


def test_what_it_does_not_know_goes_the_plain_way():
    for other in (hydra(kind="shallow"), hydra(layers=3), hydra(charge_spin=False)):
        assert not fast_serves(other, CPU)
        assert not fast_serves(other, torch.device("cuda"))
    assert fast_serves(hydra(), torch.device("cuda")) == (find_spec("triton") is not None)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_a_predictor_takes_it_and_gives_the_same(tmp_path, precision):
    folder = save_gfm(tmp_path / "gfm", hydra(), default_head="two")
    quick, plain = Predictor.load(folder, precision=precision), Predictor.load(folder, precision=precision)
    assert quick.run.fast is not None
    plain.run.fast = None
    batch = charged(copper_oxides(9))
    want = {"energy", "forces", "stress", "spread", "members", "features"}
    ours, theirs = quick(batch, want), plain(batch, want)
    tolerance = 1e-10 if precision == "fp64" else 1e-4
    for name in ("energy", "energy_std", "forces", "forces_std", "stress", "energy_members", "features"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert np.nanmax(np.abs(a - b)) <= tolerance * np.nanmax(np.abs(b)), name
    alone = quick(batch.take([4]), want)
    np.testing.assert_allclose(alone.energy, ours.energy[4:5], rtol=tolerance)


def test_structures_without_neighbours_or_charge(tmp_path):
    folder = save_gfm(tmp_path / "gfm", hydra(1), default_head="two")
    predictor = Predictor.load(folder, precision="fp64")
    lone = StructureBatch(
        ptr=np.array([0, 1, 2]),
        numbers=np.array([29, 8], np.uint8),
        positions=np.zeros((2, 3)),
        cell=np.zeros((2, 3, 3)),
        pbc=np.zeros((2, 3), bool),
        id=np.arange(2),
        charge=np.array([0, np.nan], np.float32),
        spin=np.ones(2, np.float32),
    )
    found = predictor(lone)
    assert found.status.tolist() == [0, 7]
    assert np.isfinite(found.energy[0])
    assert not found.forces[0].any()
    assert np.isnan(found.energy[1])
