"""The compiled message against the plain one over edges."""

import numpy as np
import pytest
import torch
from ase import Atoms

from atomsieve.graphs.neighbors import build_graph
from atomsieve.models.encoder import Wanted
from atomsieve.models.messages.message import message
from atomsieve.native import kernels
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides

CUTOFF = 4.0

needs_kernels = pytest.mark.skipif(kernels() is None, reason="compiled kernels are not installed")


def lone_atom() -> StructureBatch:
    return StructureBatch.from_ase(Atoms("H"))


def inputs(batch: StructureBatch, members: int, width: int, radial: int, dtype=torch.float64, seed: int = 0):
    graph = build_graph(batch, CUTOFF, dtype=dtype)
    gen = torch.Generator().manual_seed(seed)
    d = graph.vec.norm(dim=1)
    k = torch.arange(1, radial + 1, dtype=dtype)
    basis = (torch.sin(d[:, None] * k) / (1 + d[:, None])).expand(members, -1, -1).detach().requires_grad_()
    unit = (graph.vec / d[:, None]).expand(members, -1, -1).detach().requires_grad_()
    x = torch.randn(members, graph.n_atoms, 5, width, generator=gen, dtype=dtype, requires_grad=True)
    weights = torch.randn(members, radial, 3 * width, generator=gen, dtype=dtype, requires_grad=True)
    return graph, x, basis, unit, weights


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).detach()) if a.numel() else 0.0


@pytest.mark.parametrize(("members", "width", "radial"), [(1, 16, 1), (2, 32, 8), (3, 48, 13)])
@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_kernels)])
def test_value_and_first_derivatives_equal_the_plain_message(implementation, members, width, radial):
    results = {}
    for name in (implementation, "edges"):
        graph, x, basis, unit, weights = inputs(copper_oxides(6), members, width, radial)
        y = message(x, basis, unit, weights, graph, name)
        loss = (torch.tanh(y) * torch.arange(1, 5, dtype=y.dtype)[:, None]).sum()
        # every implementation must be asked with symmetric upstream data only: the loss is per atom, so it is
        results[name] = [y.detach(), *torch.autograd.grad(loss, [x, basis, unit, weights])]
    for ours, plain in zip(results[implementation], results["edges"], strict=True):
        assert relative(ours, plain) < 1e-13


@needs_kernels
@pytest.mark.parametrize(("members", "width", "radial"), [(1, 16, 3), (2, 32, 8), (4, 64, 17)])
def test_parameter_gradients_of_a_force_loss_equal_the_plain_ones(members, width, radial):
    results = {}
    for name in ("native", "edges"):
        graph, x, basis, unit, weights = inputs(copper_oxides(5, seed=3), members, width, radial)
        wanted = Wanted(geometry=True, parameters=False)
        y = message(x, basis, unit, weights, graph, name, wanted)
        energy = (torch.tanh(0.1 * y) * torch.arange(1, 5, dtype=y.dtype)[:, None]).sum()
        g_basis, g_unit = torch.autograd.grad(energy, [basis, unit], create_graph=True)
        wanted.geometry, wanted.parameters = False, True
        d = graph.vec.norm(dim=1)
        even = torch.cos(d)[:, None] * torch.arange(1, radial + 1, dtype=d.dtype)  # equal on an edge and its reverse
        loss = (g_basis * even).sum() ** 2 + (g_unit * graph.vec).sum() + energy
        torch.autograd.backward(loss, inputs=[x, weights])
        results[name] = [x.grad, weights.grad]
    for ours, plain in zip(results["native"], results["edges"], strict=True):
        assert relative(ours, plain) < 1e-12


@needs_kernels
def test_single_precision_kernels_agree_with_double():
    graph, x, basis, unit, weights = inputs(copper_oxides(6), 2, 32, 8)
    exact = message(x, basis, unit, weights, graph, "native")
    graph32, *single = inputs(copper_oxides(6), 2, 32, 8, dtype=torch.float32)
    rounded = message(*(t.detach().float() for t in (x, basis, unit, weights)), graph32, "native")
    assert relative(rounded.double(), exact) < 1e-5
    assert single[0].dtype == torch.float32


@needs_kernels
def test_result_does_not_depend_on_the_number_of_threads():
    graph, x, basis, unit, weights = inputs(copper_oxides(40), 2, 32, 8, dtype=torch.float32)
    before = torch.get_num_threads()
    outcomes = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = message(x, basis, unit, weights, graph, "native")
        outcomes.append((y.detach(), torch.autograd.grad(y.pow(2).sum(), x)[0]))
    torch.set_num_threads(before)
    for y, g in outcomes[1:]:
        assert torch.equal(y, outcomes[0][0])
        assert torch.equal(g, outcomes[0][1])


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=needs_kernels), "edges"])
def test_a_lone_atom_receives_nothing(implementation):
    graph, x, basis, unit, weights = inputs(lone_atom(), 2, 16, 4)
    y = message(x, basis, unit, weights, graph, implementation)
    assert y.shape == (2, 1, 4, 16)
    assert not y.detach().any()


@pytest.mark.parametrize("implementation", ["native"])
def test_a_truncated_list_is_refused_where_symmetry_is_needed(implementation):
    batch = copper_oxides(3)
    graph = build_graph(batch, CUTOFF, max_neighbors=2, dtype=torch.float64)
    assert not graph.neighbors.symmetric
    _, x, _, _, weights = inputs(batch, 1, 16, 4)
    basis, unit = torch.zeros(1, graph.n_edges, 4).double(), torch.zeros(1, graph.n_edges, 3).double()
    with pytest.raises(ValueError, match="complete neighbour list"):
        message(x, basis, unit, weights, graph, implementation)


@needs_kernels
def test_a_hessian_through_the_kernels_is_refused_not_wrong():
    graph, x, basis, unit, weights = inputs(copper_oxides(2), 1, 16, 4)
    y = message(x, basis, unit, weights, graph, "native", Wanted(geometry=True, parameters=False))
    (g_basis,) = torch.autograd.grad(y.pow(2).sum(), [basis], create_graph=True)
    with pytest.raises(RuntimeError, match="edges"):
        g_basis.pow(2).sum().backward()


def test_an_unknown_implementation_is_named():
    graph, x, basis, unit, weights = inputs(lone_atom(), 1, 16, 4)
    with pytest.raises(ValueError, match="gpu"):
        message(x, basis, unit, weights, graph, "gpu")
    assert np.isfinite(x.detach().numpy()).all()
