"""PaiNN's compiled layers in training against plain autograd over edges: gradients of losses on all outputs."""

from __future__ import annotations

import functools
import gc
import weakref
from unittest import mock

import pytest
import torch

from atomsieve.graphs.neighbors import build_graph
from atomsieve.models import Ensemble, set_precision
from atomsieve.models.ensemble import _warn_once
from atomsieve.models.messages.message import message
from atomsieve.models.painn import encoder as painn
from atomsieve.models.painn import train_cpu
from atomsieve.native import kernels
from tests.helpers import copper_oxides, tiny_ensemble

pytestmark = pytest.mark.skipif(kernels() is None, reason="the compiled kernels are not built here")
HEADS = [0, 1, 1, 0, 1, 0, 1]


@pytest.fixture
def served(monkeypatch):
    """Whether the compiled layers served, each time that the encoder asked."""
    asked: list[bool] = []
    serves = painn.training_serves
    monkeypatch.setattr(painn, "training_serves", lambda *given: asked.append(serves(*given)) or asked[-1])
    return asked


def plain():
    """Return a context in which PaiNN is one row per edge, and autograd does the rest."""
    edges = functools.partial(message, implementation="edges")
    never = {"training_serves": lambda *given: False, "layer_serves": lambda *given: False}
    return mock.patch.multiple(painn, message=edges, **never)


def shallow(members=3):
    deep = tiny_ensemble(members)
    return Ensemble(deep.config, deep.heads, list(range(members)), kind="shallow")


def graph_of(structures, model, **options):
    return build_graph(structures, model.config.cutoff, dtype=torch.float64, **options)


def gradients(model, graph, heads, *, backward=torch.Tensor.backward, **options):
    """Return an output, and gradients by all parameters of a random loss on what it holds."""
    draw = torch.Generator().manual_seed(0)
    dtype = next(model.parameters()).dtype
    state = tuple(torch.linspace(0, 2, len(heads), dtype=dtype) for _ in range(2)) if model.config.charge_spin else ()
    options = {"forces": True, "stress": model.config.forces == "conservative", "create_graph": True, **options}
    out = model(graph, torch.tensor(heads, dtype=torch.int64), *state, **options)
    loss = torch.zeros((), dtype=torch.float64)
    for found in (out.energy, out.forces, out.virial):
        if found is not None and found.requires_grad:
            weight = torch.randn(found.shape, generator=draw, dtype=torch.float64)
            loss = loss + (found.double() * weight).sum() + found.double().square().sum()
    model.zero_grad()
    backward(loss)
    return out, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def apart(ours, theirs):
    """Return the largest difference of tensors, each relative to its largest number."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def outputs(out):
    return [t for t in (out.energy, out.forces, out.virial, out.features) if t is not None]


def check(model, served, bound, *, structures=None, heads=None, **options):
    graph = graph_of(copper_oxides(7) if structures is None else structures, model)
    heads = HEADS if heads is None else heads
    out, ours = gradients(model, graph, heads, **options)
    assert served == [True]
    with plain():
        expected, theirs = gradients(model, graph, heads, **options)
    assert apart(outputs(out), outputs(expected)) < bound
    assert apart(ours.values(), theirs.values()) < bound
    assert any(float(g.abs().max()) > 1e-9 for g in theirs.values())


@pytest.mark.parametrize("config", [{}, {"layers": 1}, {"layers": 3, "hidden": 48}, {"charge_spin": True}])
@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-11), ("fp32", 3e-4)])
def test_gradients_of_losses_on_energies_forces_and_virials(served, config, precision, bound):
    check(set_precision(tiny_ensemble(3, **config), precision), served, bound)


@pytest.mark.parametrize("options", [{"forces": False}, {"stress": False}, {"forces": False, "stress": False}])
def test_losses_without_forces_or_virials(served, options):
    check(tiny_ensemble(2).double(), served, 1e-11, **{"stress": False, **options})


def test_direct_forces_read_the_vectors(served):
    check(tiny_ensemble(2, forces="direct").double(), served, 1e-11)


@pytest.mark.parametrize("members", [None, [1], [0, 2], [0, 1, 2]])
def test_shallow_ensembles_go_back_to_the_geometry_once_for_each_decoder(served, members):
    check(shallow().double(), served, 1e-11, force_members=members)


def test_small_cells_have_edges_between_images_of_one_atom(served):
    model = tiny_ensemble(2, cutoff=6.0).double()
    neighbors = graph_of(copper_oxides(2), model).neighbors
    assert bool((neighbors.sender == neighbors.receiver).any())
    check(model, served, 1e-11, structures=copper_oxides(2), heads=[0, 1])


def test_atoms_without_neighbours_and_batches_without_edges(served):
    model = tiny_ensemble(2, cutoff=0.5).double()
    assert graph_of(copper_oxides(3), model).n_edges == 0
    out, ours = gradients(model, graph_of(copper_oxides(3), model), [0, 1, 0])
    with plain():
        expected, theirs = gradients(model, graph_of(copper_oxides(3), model), [0, 1, 0])
    assert served == [True] and apart([out.energy], [expected.energy]) < 1e-12
    assert not bool(out.forces.any()) and apart(ours.values(), theirs.values()) < 1e-11


def test_an_empty_batch(served):
    model = tiny_ensemble(2).double()
    out, ours = gradients(model, graph_of(copper_oxides(0), model), [])
    assert out.energy.shape == (2, 0) and out.forces.shape == (2, 0, 3)
    assert all(float(g.abs().max()) == 0 for g in ours.values())


def test_members_in_a_stack_learn_as_they_do_alone(served):
    model = tiny_ensemble(3).double()
    graph = graph_of(copper_oxides(7), model)

    def learn(net):
        out = net(graph, torch.tensor(HEADS), create_graph=True)
        net.zero_grad()
        (out.energy.square().sum() + out.forces.square().sum()).backward()
        return out

    together = learn(model)
    for member in range(3):
        net = model.take([member])
        alone = learn(net)
        assert apart([alone.energy[0], alone.forces[0]], [together.energy[member], together.forces[member]]) < 1e-13
        own, whole = ([p.grad for p in m.parameters()] for m in (net, model))
        assert apart([g[0] for g in own], [g[member] for g in whole]) < 1e-11
    assert all(served)


def test_losses_may_be_differentiated_again_and_one_by_one(served):
    model = tiny_ensemble(2).double()
    graph, parameters = graph_of(copper_oxides(7), model), list(model.parameters())
    out = model(graph, torch.tensor(HEADS), create_graph=True)
    energy, force = out.energy.square().sum(), out.forces.square().sum()
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    of_energy = torch.autograd.grad(energy, parameters, **options)
    of_force = torch.autograd.grad(force, parameters, **options)
    both = torch.autograd.grad(energy + force, parameters, **options)
    again = torch.autograd.grad(energy, parameters, **options)
    assert served == [True]
    assert apart(again, of_energy) == 0
    assert apart(both, [a + b for a, b in zip(of_energy, of_force, strict=True)]) < 1e-12


@pytest.mark.parametrize("config", [{}, {"forces": "direct"}])
def test_memory_is_free_as_soon_as_a_step_is_done(served, monkeypatch, config):
    kept = []
    record = train_cpu._Record
    monkeypatch.setattr(train_cpu, "_Record", lambda *given: kept.append(record(*given)) or kept[-1])
    model = tiny_ensemble(2, **config).double()
    gc.disable()
    try:
        gradients(model, graph_of(copper_oxides(7), model), HEADS)
        (held,) = [weakref.ref(each) for each in kept]
        kept.clear()
        assert held() is None
    finally:
        gc.enable()


def test_derivatives_of_forces_by_positions_are_refused(served):
    model = tiny_ensemble(1).double()
    graph = graph_of(copper_oxides(2), model)
    geometry = model.encoder.geometry(graph.vec.double(), 1, differentiable=True)
    wanted = painn.Wanted(parameters=False)
    s, _ = model.encoder(graph, geometry, None, wanted)
    (by_unit,) = torch.autograd.grad(s.square().sum(), [geometry.unit], create_graph=True)
    assert served == [True]
    with pytest.raises(RuntimeError, match=r"wanted\.geometry = False"):
        by_unit.sum().backward()


@pytest.mark.parametrize(
    ("config", "limit", "precision"), [({"hidden": 24}, None, "fp64"), ({}, 3, "fp64"), ({}, None, "bf16")]
)
def test_what_the_compiled_layers_do_not_serve_takes_the_general_path(served, config, limit, precision):
    model = set_precision(tiny_ensemble(2, **config), precision)
    graph = graph_of(copper_oxides(7), model, max_neighbors=limit)
    _, ours = gradients(model, graph, HEADS)
    with plain():
        _, theirs = gradients(model, graph, HEADS)
    assert served == [False]
    assert apart(ours.values(), theirs.values()) < (2e-2 if precision == "bf16" else 1e-11)


@pytest.mark.parametrize(("hidden", "nearest"), [(24, 32), (20, 16), (8, 16), (72, 64)])
def test_a_width_that_kernels_do_not_serve_is_told_once(caplog, hidden, nearest):
    _warn_once.cache_clear()  # other tests have such widths too
    for _ in range(2):
        tiny_ensemble(1, hidden=hidden).tell_slowdown(torch.device("cpu"))
    assert [r.getMessage() for r in caplog.records] == [
        f"model.hidden: {hidden} channels take the slower general path on a CPU, since compiled kernels need a "
        f"multiple of 16; the nearest is {nearest}"
    ]


def test_a_width_that_is_served_is_not_told(caplog):
    tiny_ensemble(1, hidden=32).tell_slowdown(torch.device("cpu"))
    tiny_ensemble(1, hidden=24).tell_slowdown(torch.device("meta"))
    assert not caplog.records
