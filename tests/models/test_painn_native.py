"""PaiNN's compiled layers against the general path of the same model."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from atomsieve.graphs.neighbors import build_graph
from atomsieve.models import Ensemble, set_precision
from atomsieve.models.painn import encoder as painn
from atomsieve.native import kernels
from tests.helpers import copper_oxides, tiny_ensemble

pytestmark = pytest.mark.skipif(kernels() is None, reason="the compiled kernels are not built here")
FOUND = ("energy", "forces", "virial", "features")


@pytest.fixture
def served(monkeypatch):
    """How often a layer asked whether the compiled path serves it, and what it was told."""
    asked: list[bool] = []
    serves = painn.layer_serves
    monkeypatch.setattr(painn, "layer_serves", lambda *given: asked.append(serves(*given)) or asked[-1])
    return asked


def both(monkeypatch, model, *, max_neighbors=None, precision="fp64", **options):
    """Return what a model says by the compiled layers and by the general path."""
    model = set_precision(model, precision)
    dtype = next(model.parameters()).dtype
    graph = build_graph(copper_oxides(7), model.config.cutoff, max_neighbors=max_neighbors, dtype=torch.float64)
    head = torch.tensor([0, 1, 1, 0, 1, 0, 1])
    state = ()
    if model.config.charge_spin:
        state = tuple(torch.linspace(0, 2, 7, dtype=dtype) for _ in range(2))
    ours = model(graph, head, *state, **options)
    monkeypatch.setattr(painn, "layer_serves", lambda *given: False)
    return ours, model(graph, head, *state, **options)


def apart(ours, plain):
    pairs = [(getattr(ours, name), getattr(plain, name)) for name in FOUND]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if b is not None)


@pytest.mark.parametrize("config", [{}, {"layers": 1}, {"layers": 3, "hidden": 48}, {"charge_spin": True}])
@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-12), ("fp32", 2e-4)])
def test_energies_forces_and_virials_are_those_of_the_general_path(monkeypatch, served, config, precision, bound):
    ours, plain = both(monkeypatch, tiny_ensemble(3, **config), precision=precision, forces=True, stress=True)
    assert served and all(served)
    assert apart(ours, plain) < bound
    assert all(float((a - b).abs().max()) > 1e-9 for a, b in pairwise(ours.forces))  # members differ


def test_bf16_rounds_the_factors_of_products_alone(monkeypatch, served):
    ours, plain = both(monkeypatch, tiny_ensemble(2), precision="bf16", forces=True)
    assert all(served)
    assert apart(ours, plain) < 2e-2


@pytest.mark.parametrize("members", [None, [0, 2]])
def test_shallow_ensembles_go_back_through_a_layer_more_than_once(monkeypatch, served, members):
    deep = tiny_ensemble(3)
    model = Ensemble(deep.config, deep.heads, [1, 2, 3], kind="shallow")
    ours, plain = both(monkeypatch, model, forces=True, stress=True, force_members=members)
    assert all(served) and apart(ours, plain) < 1e-12


def test_direct_forces_read_the_vectors(monkeypatch, served):
    with torch.no_grad():
        ours, plain = both(monkeypatch, tiny_ensemble(2, forces="direct"), forces=True)
    assert all(served) and apart(ours, plain) < 1e-12


def test_energies_alone(monkeypatch, served):
    with torch.no_grad():
        ours, plain = both(monkeypatch, tiny_ensemble(2), forces=False)
    assert all(served) and ours.forces is None and apart(ours, plain) < 1e-12


@pytest.mark.parametrize("options", [{"create_graph": True}, {"forces": False}])
def test_layers_of_inference_do_not_train(monkeypatch, served, options):
    monkeypatch.setattr(painn, "training_serves", lambda *given: False)
    ours, _ = both(monkeypatch, tiny_ensemble(2), **{"forces": True, **options})
    assert served and not any(served)
    loss = ours.energy.sum() if ours.forces is None else ours.forces.square().sum()
    loss.backward()


def test_a_truncated_list_takes_the_general_path(monkeypatch, served):
    both(monkeypatch, tiny_ensemble(2), max_neighbors=3, forces=True)
    assert served and not any(served)
