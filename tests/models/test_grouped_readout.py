"""Heads read in groups, with derivatives written out, are the heads read one by one and differentiated by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomsieve.graphs import build_graph
from atomsieve.models import Ensemble
from atomsieve.models.config import HeadSpec, ModelConfig
from atomsieve.models.encoder import Wanted
from atomsieve.models.grouped_readout import _serves
from atomsieve.native import kernels
from atomsieve.structures import StructureBatch
from tests.train.train_samples import crystals

HEADS = [HeadSpec(name=n, level_of_theory="x", references={}, scale=0.3 + k, elements={}) for k, n in enumerate("abcd")]


def small_ensemble(kind: str, hidden: int = 16, head_hidden: int = 8) -> Ensemble:
    config = ModelConfig(hidden=hidden, layers=1, cutoff=3.5, head_hidden=head_hidden)
    ensemble = Ensemble(config, HEADS, [0, 1, 2], kind).double()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in ensemble.readout.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return ensemble


@pytest.fixture(scope="module")
def graph():
    return build_graph(StructureBatch.from_ase(crystals(5, 3)), 3.5, dtype=torch.float64)


@pytest.mark.parametrize("heads", [(0, 0, 1, 1, 3), (3, 0, 1, 3, 0), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize("compiled", [True, False])
def test_features_and_weights_get_the_gradients_of_autograd(graph, kind, heads, compiled):
    hidden, head_hidden = (64, 32) if compiled else (32, 8)  # widths that the compiled products take, or do not
    ensemble = small_ensemble(kind, hidden, head_hidden)
    if kernels() is not None:
        assert _serves(torch.zeros(1, 1, hidden), (hidden, head_hidden)) == compiled
    readout, scales = ensemble.readout, [h.scale for h in HEADS]
    rng = torch.Generator().manual_seed(1)
    shape = (ensemble.encoders, graph.n_atoms, hidden)
    features = torch.randn(shape, generator=rng, dtype=torch.float64)
    by_slope = torch.randn(shape, generator=rng, dtype=torch.float64)
    by_energy = torch.randn(3, len(heads), generator=rng, dtype=torch.float64)
    of_atoms = torch.randn(3, graph.n_atoms, generator=rng, dtype=torch.float64)
    found = []
    for wanted in (None, Wanted(geometry=True, parameters=False, twice=True)):
        s, given = features.clone().requires_grad_(), of_atoms.clone().requires_grad_()
        reading = readout.read(s, None, graph, torch.tensor(heads), scales, wanted)
        (slope,) = torch.autograd.grad(reading.local, s, given, create_graph=True)
        if wanted is not None:
            assert slope.grad_fn.name() in ("_HiddenBackBackward", "IndexAddBackward0")  # or nothing of this is tested
            wanted.geometry, wanted.parameters = False, True
        loss = (slope * by_slope).sum() + (reading.energy * by_energy).sum()
        grads = torch.autograd.grad(loss, [s, given, *readout.parameters()])
        found.append([reading.local, reading.energy, slope, *grads])
    for plain, grouped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_a_training_step_has_the_gradient_of_plain_autograd(graph, kind, monkeypatch):
    heads = torch.tensor([0, 2, 0, 1, 2])
    targets = np.random.default_rng(2)
    forces = torch.from_numpy(targets.normal(size=(graph.n_atoms, 3)))
    found = []
    for plain in (True, False):
        ensemble = small_ensemble(kind)
        with monkeypatch.context() as patch:
            if plain:
                read = ensemble.readout.read
                patch.setattr(ensemble.readout, "read", lambda *given, read=read: read(*given[:-1]))
            out = ensemble(graph, heads, forces=True, stress=True, create_graph=True)
        loss = (out.forces - forces).pow(2).sum() + out.energy.pow(2).sum() + out.virial.pow(2).sum()
        found.append([out.energy, out.forces, *torch.autograd.grad(loss, list(ensemble.parameters()))])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
