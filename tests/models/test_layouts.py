"""Messages of every layout: formulas, symmetries, derivatives, and the form of exports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomsieve.graphs.neighbors import build_graph
from atomsieve.graphs.table import TableGraph, table_arrays
from atomsieve.models.basis import Geometry
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import Wanted
from atomsieve.models.messages import layout as layouts
from atomsieve.models.messages import message as messages
from atomsieve.models.messages.buffers import layout_compiled
from atomsieve.models.messages.layout import PAINN, PAINN_TENSORS, Layout
from atomsieve.models.messages.message import message, receive
from atomsieve.models.messages.table import make_paired_edges
from atomsieve.models.messages.tensors import make_matrices, pull_second_order, second_order, split_matrices
from atomsieve.native import kernels
from tests.helpers import copper_oxides

CUTOFF, MEMBERS, WIDTH, RADIAL = 3.2, 2, 16, 5
NAMED = [v for v in vars(layouts).values() if isinstance(v, Layout)]
EVERY = [*NAMED, Layout(carried=(1,)), Layout(carried=(2,)), Layout(carried=(0,), pushed=(2,)), Layout(pushed=(1,))]
each_layout = pytest.mark.parametrize("layout", EVERY, ids=str)


def make_inputs(layout, *, members=MEMBERS, width=WIDTH, seed=0, structures=2, most=None):
    graph = build_graph(copper_oxides(structures), CUTOFF, max_neighbors=most, dtype=torch.float64)
    gen = torch.Generator().manual_seed(seed)
    d = graph.vec.norm(dim=1)
    basis = torch.sin(d[:, None] * torch.arange(1, RADIAL + 1)) / (1 + d[:, None])
    basis = basis.expand(members, -1, -1).detach().requires_grad_()
    unit = (graph.vec / d[:, None]).expand(members, -1, -1).detach().requires_grad_()
    x = torch.randn(members, graph.n_atoms, layout.inputs, width, generator=gen, dtype=torch.float64)
    weights = torch.randn(members, RADIAL, layout.filters * width, generator=gen, dtype=torch.float64)
    return graph, [x.requires_grad_(), basis, unit, weights.requires_grad_()]


def apart(a, b):
    return float(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).detach())


def make_rotation(seed=3):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return torch.from_numpy(q * np.sign(np.linalg.det(q)))


# -- tensors ------------------------------------------------------------------------------------------------------


def test_matrices_are_split_into_what_they_were_made_of():
    m = torch.randn(4, 3, 3, 7, dtype=torch.float64)
    s, v, t = split_matrices(m)
    assert apart(make_matrices(s, v, t), m) < 1e-14
    squares = 3 * s**2 + 2 * (v**2).sum(-2) + (t**2).sum(-2)
    assert apart(squares, (m**2).sum((-3, -2))) < 1e-14
    w = torch.randn(4, 3, 7, dtype=torch.float64)
    turned = torch.einsum("nabf,nbf->naf", make_matrices(None, v, None), w)
    assert apart(turned, torch.linalg.cross(v, w, dim=1)) < 1e-14


def test_the_second_order_of_a_direction_is_its_traceless_product():
    u = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    y = second_order(u)
    product = u[:, :, None] * u[:, None, :] - torch.eye(3) * (u * u).sum(1)[:, None, None] / 3
    assert apart(make_matrices(None, None, y.unsqueeze(-1))[..., 0], product) < 1e-14
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad((y * g).sum(), u)
    assert apart(pull_second_order(u.detach(), g), expected) < 1e-14


# -- layouts ------------------------------------------------------------------------------------------------------


def test_the_order_of_components_is_the_documented_one():
    found = [(g.order, g.pushed, g.filter, g.start, g.into) for g in PAINN_TENSORS.groups]
    assert found == [
        (0, False, 0, 0, 0),
        (1, False, 1, 3, 1),
        (1, True, 2, 1, 1),
        (2, False, 3, 6, 4),
        (2, True, 4, 2, 4),
    ]
    assert (PAINN.inputs, PAINN.filters, PAINN.outputs) == (5, 3, 4)
    assert (PAINN_TENSORS.inputs, PAINN_TENSORS.filters, PAINN_TENSORS.outputs) == (11, 5, 9)
    assert len({layout.code for layout in EVERY}) == len(EVERY)


@pytest.mark.parametrize("wrong", [{"carried": (3,)}, {"pushed": (0,)}, {"carried": (1, 0)}, {"pushed": (1, 1)}])
def test_orders_that_are_not_allowed_are_named(wrong):
    with pytest.raises(ValueError, match=r"allowed: \(.*\), rising"):
        Layout(**wrong)
    with pytest.raises(ValueError, match="at least one group"):
        Layout()


def test_payload_and_weights_of_another_layout_are_refused():
    graph, (x, basis, unit, weights) = make_inputs(PAINN)
    with pytest.raises(ValueError, match=r"payload of 5 components; .* takes 11"):
        message(x, basis, unit, weights, graph, layout=PAINN_TENSORS)
    with pytest.raises(ValueError, match=r"32 columns; .* 3 filters of 16 channels: 48"):
        message(x, basis, unit, weights[..., :32], graph)


@each_layout
def test_values_are_those_of_the_formulas(layout):
    graph, given = make_inputs(layout)
    found = message(*given, graph, "edges", layout=layout).detach()
    x, basis, unit, weights = (t.detach() for t in given)
    place, parts = 0, {}
    for order, pushed in ((0, False), (1, True), (2, True), (1, False), (2, False)):  # order of the payload
        if order in (layout.pushed if pushed else layout.carried):
            size = 1 if pushed else 2 * order + 1
            parts[order, pushed] = x[:, :, place : place + size]
            place += size
    assert place == x.shape[2]
    filters = iter(torch.einsum("ker,krf->kef", basis, weights).split(WIDTH, -1))
    expected = {}
    for kind in ((0, False), (1, False), (1, True), (2, False), (2, True)):  # order of the filters
        if kind not in parts:
            continue
        sent = next(filters)[:, :, None] * parts[kind][:, graph.neighbors.sender]
        if kind[1]:
            matrices = unit[..., :, None] * unit[..., None, :] - torch.eye(3) / 3
            y = unit if kind[0] == 1 else split_matrices(matrices[..., None])[2][..., 0]
            sent = sent * y[..., None]
        total = torch.zeros(MEMBERS, graph.n_atoms, *sent.shape[2:], dtype=sent.dtype)
        total.index_add_(1, graph.neighbors.receiver, sent)
        expected[kind[0]] = expected.get(kind[0], 0) + total
    assert apart(found, torch.cat([expected[order] for order in sorted(expected)], 2)) < 1e-14


def rotate(t, layout, rotation, payload):
    """Rotate the components of a payload or of a result."""

    def turn(part, order):
        if order == 1:
            return torch.einsum("ab,knbf->knaf", rotation, part)
        matrices = make_matrices(None, None, part)
        return split_matrices(torch.einsum("ab,knbcf,dc->knadf", rotation, matrices, rotation))[2]

    t = t.clone()
    for group in layout.groups:
        if group.order and not (payload and group.pushed):
            first = group.start if payload else group.into
            if payload or group == next(g for g in layout.groups if g.order == group.order):
                t[:, :, first : first + group.size] = turn(t[:, :, first : first + group.size], group.order)
    return t


@each_layout
def test_messages_turn_with_the_structure(layout):
    graph, (x, basis, unit, weights) = make_inputs(layout)
    rotation = make_rotation()
    turned = message(
        rotate(x.detach(), layout, rotation, True), basis, unit @ rotation.T, weights, graph, layout=layout
    )
    plain = message(x, basis, unit, weights, graph, layout=layout)
    assert apart(turned, rotate(plain.detach(), layout, rotation, False)) < 1e-13


# -- compiled kernels ---------------------------------------------------------------------------------------------


needs_kernels = pytest.mark.skipif(kernels() is None, reason="compiled kernels are not installed")
COMPILED = [layout for layout in EVERY if layout_compiled(layout)]
each_compiled = pytest.mark.parametrize("layout", COMPILED, ids=str)


@needs_kernels
def test_the_compiled_layouts_are_those_that_have_names():
    assert set(COMPILED) == set(NAMED)
    graph, given = make_inputs(Layout(carried=(1,)))
    with pytest.raises(ValueError, match="no compiled kernels"):
        message(*given, graph, "native", layout=Layout(carried=(1,)))


@each_compiled
@pytest.mark.parametrize(("members", "width"), [(1, 16), (3, 48)])
def test_compiled_values_and_first_derivatives_equal_the_plain_ones(layout, members, width):
    graph, given = make_inputs(layout, members=members, width=width, structures=3)
    results = []
    for name in ("native", "edges"):
        y = message(*given, graph, name, layout=layout)
        loss = (torch.tanh(y) * torch.arange(1, layout.outputs + 1, dtype=y.dtype)[:, None]).sum()
        found = torch.autograd.grad(loss, given, allow_unused=True)
        assert (found[2] is None) == (not layout.pushed)
        results.append([y.detach(), *(t for t in found if t is not None)])
    for ours, plain in zip(*results, strict=True):
        assert apart(ours, plain) < 1e-13


@each_compiled
def test_compiled_gradients_of_a_force_loss_equal_the_plain_ones(layout):
    graph, given = make_inputs(layout)
    x, basis, unit, weights = given
    d = graph.vec.norm(dim=1)
    even = torch.cos(d)[:, None] * torch.arange(1, RADIAL + 1)  # equal on an edge and its reverse
    odd = graph.vec * d[:, None]
    results = []
    for name in ("native", "edges"):
        wanted = Wanted(geometry=True, parameters=False)
        y = message(*given, graph, name, wanted, layout)
        energy = (torch.tanh(0.1 * y) * torch.arange(1, layout.outputs + 1, dtype=y.dtype)[:, None]).sum()
        by_basis, by_unit = torch.autograd.grad(energy, [basis, unit], create_graph=True, allow_unused=True)
        wanted.geometry, wanted.parameters = False, True
        loss = (by_basis * even).sum() ** 2 + energy
        if by_unit is not None:
            loss = loss + (by_unit * odd).sum()
        results.append(torch.autograd.grad(loss, [x, weights]))
    for ours, plain in zip(*results, strict=True):
        assert apart(ours, plain) < 1e-12


@each_compiled
def test_gradients_by_distance_are_those_through_the_basis(layout):
    config = ModelConfig(hidden=WIDTH, layers=1, cutoff=CUTOFF, n_basis=RADIAL - 1)
    graph, (x, _, _, weights) = make_inputs(layout)
    results = []
    for wanted in (Wanted(parameters=False, twice=False), Wanted()):
        geometry = Geometry.build(graph.vec, config, MEMBERS, differentiable=True)
        y = receive(x, geometry, weights, graph, layout, wanted)
        leaves = [*geometry.leaves, x]
        *found, by_x = torch.autograd.grad(torch.tanh(y).pow(2).sum(), leaves, allow_unused=True)
        assert (found[0] is None) == (not wanted.twice)
        results.append([y.detach(), by_x, geometry.pull_back(*found)])
    for ours, plain in zip(*results, strict=True):
        assert apart(ours, plain) < 1e-12


@each_compiled
def test_forces_of_a_layout_are_differences_of_its_energy(layout):
    config = ModelConfig(hidden=WIDTH, layers=1, cutoff=CUTOFF, n_basis=RADIAL - 1)
    graph, (x, _, _, weights) = make_inputs(layout, members=1)

    def energy_of(vec, differentiable=False):
        geometry = Geometry.build(vec, config, 1, differentiable=differentiable)
        y = receive(x.detach(), geometry, weights.detach(), graph, layout, Wanted(parameters=False, twice=False))
        return geometry, torch.tanh(0.1 * y).sum()

    geometry, energy = energy_of(graph.vec, True)
    by_vec = geometry.pull_back(*torch.autograd.grad(energy, geometry.leaves, allow_unused=True))[0]
    i, j = graph.neighbors.receiver, graph.neighbors.sender
    for atom, axis in ((0, 0), (3, 1), (5, 2)):
        moved = ((j == atom).double() - (i == atom).double())[:, None] * torch.eye(3)[axis]
        step = 1e-4
        up, down = (float(energy_of(graph.vec + s * step * moved)[1].detach()) for s in (1, -1))
        assert (up - down) / (2 * step) == pytest.approx(float((by_vec * moved).sum()), rel=1e-5, abs=1e-6)


@each_compiled
def test_compiled_single_precision_agrees_with_double(layout):
    graph, given = make_inputs(layout)
    exact = message(*given, graph, "native", layout=layout)
    rounded = message(*(t.detach().float() for t in given), graph, "native", layout=layout)
    assert 0 < apart(rounded.double(), exact) < 1e-5


@needs_kernels
def test_what_the_kernels_lack_is_said_once(caplog):
    caplog.set_level("INFO", "atomsieve")
    messages.say_once.cache_clear()
    for _ in range(2):
        for layout, width, words in (
            (Layout(carried=(0, 2)), 16, "no compiled kernels for messages with carried [0, 2]"),
            (PAINN, 12, "12 channels"),
        ):
            graph, given = make_inputs(layout, width=width)
            plain = message(*given, graph, "edges", layout=layout)
            assert torch.equal(message(*given, graph, layout=layout), plain)
            assert sum(words in text for text in caplog.messages) == 1


# -- exports ------------------------------------------------------------------------------------------------------


def lay_out(graph, values, places):
    """Put values of edges `[E,...]` at the places of a table `[N,W,...]`, zero elsewhere."""
    out = torch.zeros(graph.n_atoms * places, *values.shape[1:], dtype=values.dtype)
    row_ptr, receiver = graph.neighbors.row_ptr, graph.neighbors.receiver
    where = receiver * places + torch.arange(graph.n_edges) - row_ptr[receiver]
    out[where] = values
    return out.view(graph.n_atoms, places, *values.shape[1:])


def find_reverses(graph):
    list_ = graph.neighbors
    keys = {
        (int(j), int(i), *s.tolist()): e
        for e, (j, i, s) in enumerate(zip(list_.sender, list_.receiver, list_.shift, strict=True))
    }
    return torch.tensor([keys[i, j, -a, -b, -c] for j, i, a, b, c in keys])


@each_layout
@pytest.mark.parametrize("form", [{}, {"inline": True}, {"moments": True}], ids=["products", "inline", "moments"])
def test_symmetric_tables_give_the_gradients_of_pairs(layout, form):
    graph, (x, basis, unit, weights) = make_inputs(layout)
    slope = torch.cos(graph.vec.norm(dim=1)[:, None] * torch.arange(RADIAL))  # any function of the distance
    upstream = torch.arange(1, layout.outputs + 1, dtype=torch.float64)[:, None]
    plain = message(x, basis, unit, weights, graph, "edges", layout=layout)
    loss = (torch.tanh(plain) * upstream).sum()
    by_x, by_basis, by_unit = torch.autograd.grad(loss, [x, basis, unit], allow_unused=True)
    by_distance, reverse = (by_basis * slope).sum(2), find_reverses(graph)
    by_distance = by_distance + by_distance[:, reverse]

    table = torch.from_numpy(table_arrays(graph.neighbors, graph.n_atoms)["neighbors"])
    places = table.shape[1]
    senders = torch.where(table >= 0, table, torch.arange(graph.n_atoms)[:, None])
    distance = lay_out(graph, graph.vec.norm(dim=1), places)
    of_places = (lay_out(graph, t.detach(), places) for t in (unit[0], basis[0], slope))
    paired = make_paired_edges(distance, *of_places, MEMBERS)
    rows = TableGraph(graph.numbers, graph.structure, senders, None, table >= 0, paired=paired, **form)
    found = message(x, basis, unit, weights, rows, layout=layout)
    assert apart(found, plain) < 1e-13
    ours = torch.autograd.grad((torch.tanh(found) * upstream).sum(), [x, *paired_leaves(paired)], allow_unused=True)
    assert apart(ours[0], by_x) < 1e-13
    assert apart(ours[1], torch.stack([lay_out(graph, t, places) for t in by_distance])) < 1e-12
    if layout.pushed:
        of_pairs = by_unit - by_unit[:, reverse]
        full = (table >= 0)[None, :, :, None]  # an empty place has no direction to differentiate by
        assert apart(ours[2] * full, torch.stack([lay_out(graph, t, places) for t in of_pairs])) < 1e-12
    else:
        assert ours[2] is None and by_unit is None


def paired_leaves(paired):
    return paired.distance, paired.unit


@each_layout
def test_tables_of_truncated_lists_give_the_same_messages(layout):
    graph, (x, basis, unit, weights) = make_inputs(layout, most=4)
    arrays = {k: torch.from_numpy(v) for k, v in table_arrays(graph.neighbors, graph.n_atoms, reverse=True).items()}
    table = arrays["neighbors"]
    places = table.shape[1]
    senders = torch.where(table >= 0, table, torch.arange(graph.n_atoms)[:, None])
    rows = TableGraph(graph.numbers, graph.structure, senders, arrays["reverse"], table >= 0)
    of_places = [
        lay_out(graph, t[0], places).flatten(0, 1).expand(MEMBERS, -1, -1).detach().requires_grad_()
        for t in (basis, unit)
    ]
    results = []
    for given, form in (((x, basis, unit, weights), graph), ((x, *of_places, weights), rows)):
        y = message(*given, form, layout=layout)
        results.append([y, *torch.autograd.grad(torch.tanh(y).pow(2).sum(), [x, weights])])
    for ours, plain in zip(*reversed(results), strict=True):
        assert apart(ours, plain) < 1e-13
