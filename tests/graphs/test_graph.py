from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomsieve.errors import DataError, UsageError
from atomsieve.graphs import build_graph, count_edges, neighbor_list
from atomsieve.graphs.estimate import edge_budget_estimate
from atomsieve.graphs.table import EMPTY, TableGraph, table_arrays
from atomsieve.structures.batch import StructureBatch
from tests.graphs.awkward_cells import AWKWARD, single, structures, together
from tests.graphs.neighbor_checks import IMPLEMENTATIONS, lengths, rows, vectors

CUTOFF = 5.0
BCC = 1.43 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
FCC = 2.0 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
SMALL = [name for name, batch in AWKWARD.items() if batch.n_atoms < 20]


def nearest_by_hand(batch: StructureBatch, keep: int, cutoff: float = CUTOFF) -> np.ndarray:
    full = neighbor_list(batch, cutoff, implementation="brute")
    listed, rounded = rows(full), np.rint(lengths(batch, full) * 1e8)
    chosen = []
    for atom in range(batch.n_atoms):
        own = [e for e in range(len(listed)) if listed[e, 0] == atom]
        own.sort(key=lambda e: (rounded[e], *listed[e]))
        chosen += sorted(own[:keep])
    return listed[chosen]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("keep", [1, 5, 12, 10_000])
def test_max_neighbors_keeps_the_nearest(implementation, keep):
    batch = together(
        [
            "one atom, bcc",
            "one atom, fcc",
            "no atoms",
            "two atoms on one point",
            "skewed",
            "wire",
            "molecule",
            "25 degrees",
        ]
    )
    found = neighbor_list(batch, CUTOFF, keep, implementation=implementation)
    assert np.array_equal(rows(found), nearest_by_hand(batch, keep))
    assert found.complete is (keep == 10_000)
    assert found.symmetric is (keep == 10_000)
    assert int((found.row_ptr[1:] - found.row_ptr[:-1]).max()) <= keep


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_complete_only_if_nothing_was_dropped(implementation):
    most = 8 + 6  # bcc neighbours within the second shell
    batch = single([[0.3, 0.1, 0.2]], BCC, (1, 1, 1))
    cutoff = 2.86 * 1.2
    assert neighbor_list(batch, cutoff, most, implementation=implementation).complete
    assert not neighbor_list(batch, cutoff, most - 1, implementation=implementation).complete


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_do_not_depend_on_where_the_crystal_lies(implementation):
    # The twelve neighbours in fcc are equally far but for rounding; which are kept must not follow the rounding.
    rng = np.random.default_rng(0)
    wanted = rows(neighbor_list(single([[0, 0, 0]], FCC, (1, 1, 1)), 3.0, 7, implementation=implementation))
    for _ in range(20):
        moved = single(rng.normal(size=3) * 30, FCC, (1, 1, 1))
        assert np.array_equal(rows(neighbor_list(moved, 3.0, 7, implementation=implementation)), wanted)


@settings(deadline=None, max_examples=40)
@given(batch=structures(), keep=st.integers(1, 20))
def test_native_and_torch_keep_the_same(batch, keep):
    native, other = (neighbor_list(batch, 4.5, keep, implementation=i) for i in ("native", "torch"))
    assert native.complete == other.complete
    if np.abs(lengths(batch, neighbor_list(batch, 4.6)) - 4.5).min(initial=1.0) > 1e-6:
        assert np.array_equal(rows(native), rows(other))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("keep", [None, 6])
def test_graph_vectors_are_the_definition_rounded_once(implementation, keep):
    batch = together(SMALL)

    def graph(dtype):
        return build_graph(batch, CUTOFF, max_neighbors=keep, implementation=implementation, dtype=dtype)

    exact = graph(torch.float64)
    assert exact.vec.dtype == torch.float64
    np.testing.assert_allclose(exact.vec.numpy(), vectors(batch, exact.neighbors), rtol=0, atol=1e-11)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(graph(dtype).vec, exact.vec.to(dtype))


def test_graph_carries_the_batch():
    batch = together()
    graph = build_graph(batch, CUTOFF)
    assert (graph.n_structures, graph.n_atoms) == (len(batch), batch.n_atoms)
    assert graph.numbers.dtype == torch.int64
    assert torch.equal(graph.numbers, torch.from_numpy(batch.numbers.astype(np.int64)))
    assert torch.equal(graph.ptr, torch.from_numpy(batch.ptr))
    assert torch.equal(graph.structure, torch.from_numpy(batch.structure_of_atom))
    assert graph.to("cpu") is graph
    assert graph.to("meta").vec.device.type == "meta"
    graph.ptr[0] = 7  # the graph does not share memory with the batch
    assert batch.ptr[0] == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_at_all(implementation):
    graph = build_graph(StructureBatch.empty(), CUTOFF, implementation=implementation)
    assert (graph.n_structures, graph.n_atoms, graph.n_edges) == (0, 0, 0)
    assert graph.neighbors.row_ptr.tolist() == [0]
    assert graph.vec.shape == (0, 3)
    assert graph.neighbors.complete
    alone = build_graph(AWKWARD["one atom, no cell"], CUTOFF, implementation=implementation)
    assert alone.neighbors.row_ptr.tolist() == [0, 0]
    assert table_arrays(alone.neighbors, 1)["neighbors"].tolist() == [[EMPTY]]


def test_table_holds_the_list():
    graph = build_graph(together(), CUTOFF)
    arrays = table_arrays(graph.neighbors, graph.n_atoms, reverse=True)
    table, shifts, reverse = (arrays[name] for name in ("neighbors", "shifts", "reverse"))
    counts, sent = graph.neighbors.row_ptr.diff(), torch.bincount(graph.neighbors.sender)
    assert table.shape == (graph.n_atoms, int(counts.max()))
    assert reverse.shape == (graph.n_atoms, int(sent.max()))
    receiver, place = np.nonzero(table != EMPTY)
    assert np.array_equal(receiver, graph.neighbors.receiver) and np.array_equal(place, placed(counts))
    assert np.array_equal(table[receiver, place], graph.neighbors.sender)
    assert np.array_equal(shifts[receiver, place], graph.neighbors.shift)
    assert not shifts[table == EMPTY].any()
    sender, _ = np.nonzero(reverse != EMPTY)
    assert np.array_equal(table.ravel()[reverse[reverse != EMPTY]], sender)
    assert len(sender) == graph.n_edges


def placed(counts: torch.Tensor) -> np.ndarray:
    """Return the places 0, 1, ... of each atom's edges in its row."""
    return np.concatenate([np.arange(n) for n in counts.tolist()])


@pytest.mark.parametrize("keep", [None, 7])
def test_the_two_forms_of_a_graph_gather_and_sum_alike(keep):
    edges = build_graph(together(SMALL), CUTOFF, max_neighbors=keep, dtype=torch.float64)
    given = {n: torch.from_numpy(a) for n, a in table_arrays(edges.neighbors, edges.n_atoms, reverse=True).items()}
    full = given["neighbors"] != EMPTY
    own = torch.arange(edges.n_atoms).unsqueeze(1)
    senders = torch.where(full, given["neighbors"], own)
    table = TableGraph(edges.numbers, edges.structure, senders, given["reverse"], full)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, edges.n_atoms, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(2, edges.n_atoms, 3, 4, dtype=torch.float64, generator=generator)

    def gradient(graph):
        total = graph.sum_edges(graph.senders(x).square() * torch.sin(graph.receivers(x)), x)
        (first,) = torch.autograd.grad((total * weight).sum(), x, create_graph=graph is edges)
        return total, first

    (found, by_table), (wanted, by_edges) = gradient(table), gradient(edges)
    assert torch.allclose(found, wanted, atol=1e-12) and torch.allclose(by_table, by_edges, atol=1e-12)
    (second,) = torch.autograd.grad(by_edges.square().sum(), x)
    assert torch.isfinite(second).all() and float(second.abs().max()) > 0
    ones = torch.ones(1, edges.n_atoms, dtype=torch.float64)
    assert torch.equal(table.sum_edges(table.senders(ones))[0], edges.neighbors.row_ptr.diff().double())


def test_a_table_with_paired_gradients_gives_no_edges_to_others():
    numbers = torch.ones(2, dtype=torch.int64)
    table = TableGraph(numbers, numbers - 1, numbers.unsqueeze(1), None, numbers.unsqueeze(1) > 0)
    with pytest.raises(ValueError, match="edges_in_messages_only"):
        table.senders(torch.zeros(1, 2, 3))


BAD = {
    "NaN position": (single([[0, 0, 0], [np.nan, 0, 0]], 4 * np.eye(3), (1, 1, 1)), "positions are not finite"),
    "infinite position": (single([[np.inf, 0, 0]], np.zeros((3, 3)), (0, 0, 0)), "positions are not finite"),
    "NaN cell": (single([[0, 0, 0]], np.full((3, 3), np.nan), (1, 1, 1)), "cell"),
    "zero cell": (single([[0, 0, 0]], np.zeros((3, 3)), (1, 1, 1)), "cell"),
    "one zero vector": (single([[0, 0, 0]], np.diag([3, 3, 0]), (1, 1, 1)), "cell"),
    "parallel vectors": (single([[0, 0, 0]], [[3, 0, 0], [6, 0, 0], [0, 0, 3]], (1, 1, 0)), "cell"),
    "flat cell": (single([[0, 0, 0]], [[3, 0, 0], [0, 3, 0], [2, 1, 0]], (1, 1, 1)), "cell"),
    "incommensurable parallel vectors": (
        single([[0, 0, 0]], [[3, 0, 0], [3 * 2**0.5, 0, 0], [0, 0, 3]], (1, 1, 1)),
        "cell",
    ),
    "tiny cell": (single([[0, 0, 0]], 0.05 * np.eye(3), (1, 1, 1)), "20000 neighbours"),
    "short vector": (single([[0, 0, 0]], np.diag([3, 3, 2e-4]), (1, 1, 1)), "20000 neighbours"),
    "far apart": (single([[0, 0, 0], [1e13, 0, 0]], 3 * np.eye(3), (1, 1, 1)), "1e9 cells"),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", BAD)
def test_bad_structures_are_named(implementation, name):
    bad, message = BAD[name]
    good = AWKWARD["skewed"]
    batch = StructureBatch.concatenate([good, AWKWARD["no atoms"], bad.replace(id=np.array([77])), good])
    start = time.perf_counter()
    with pytest.raises(DataError, match=message) as caught:
        build_graph(batch, CUTOFF, implementation=implementation)
    assert str(caught.value).startswith("structure 2 (id 77): ")
    assert "\n" not in str(caught.value)
    if implementation == "native":
        with pytest.raises(DataError, match="structure 2"):
            count_edges(batch, CUTOFF)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("implementation", ["native", "torch"])
def test_many_atoms_on_one_point(implementation):
    batch = single(np.zeros((20_002, 3)), np.zeros((3, 3)), (0, 0, 0))
    with pytest.raises(DataError, match="structure 0"):
        neighbor_list(batch, CUTOFF, implementation=implementation)


def test_too_many_edges(monkeypatch):
    from atomsieve.graphs import native, torch_list

    for module, name in ((native, "native"), (torch_list, "torch")):
        monkeypatch.setattr(module, "MAX_EDGES", 1000)
        with pytest.raises(DataError, match="edges in a batch"):
            neighbor_list(AWKWARD["140 atoms"], CUTOFF, implementation=name)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), float("inf")])
def test_cutoff_must_be_positive(cutoff):
    for call in (neighbor_list, build_graph, count_edges, edge_budget_estimate):
        with pytest.raises(UsageError, match="cutoff"):
            call(AWKWARD["skewed"], cutoff)


def test_bad_options():
    with pytest.raises(UsageError, match="max_neighbors must be at least 1"):
        neighbor_list(AWKWARD["skewed"], CUTOFF, 0)
    with pytest.raises(UsageError, match="did you mean 'native'"):
        neighbor_list(AWKWARD["skewed"], CUTOFF, implementation="natve")


def test_missing_kernels_are_said(monkeypatch):
    from atomsieve.errors import AtomSieveError
    from atomsieve.graphs import native
    from atomsieve.graphs.neighbors import choose_implementation

    monkeypatch.setattr(native, "library", lambda: None)
    assert choose_implementation("auto", torch.device("cpu")) == "torch"
    with pytest.raises(AtomSieveError, match="compiler"):
        neighbor_list(AWKWARD["skewed"], CUTOFF, implementation="native")
    assert neighbor_list(AWKWARD["skewed"], CUTOFF).n_edges > 0


def test_estimate_is_near_the_count_for_crystals():
    rng = np.random.default_rng(0)
    parts = []
    for n in (1, 2, 4, 10, 30, 80):
        cell = np.diag(rng.uniform(0.8, 1.3, 3)) * (n * 15.0) ** (1 / 3) + rng.uniform(-0.3, 0.3, (3, 3))
        parts.append(single(rng.random((n, 3)) @ cell, cell, (1, 1, 1)))
    batch = StructureBatch.concatenate(parts)
    estimate, exact = edge_budget_estimate(batch, CUTOFF), count_edges(batch, CUTOFF)
    assert estimate.shape == exact.shape
    np.testing.assert_allclose(estimate, exact, rtol=0.25)


def test_estimate_never_exceeds_all_pairs_without_periodicity_and_takes_bad_cells():
    bad = [BAD["zero cell"][0], BAD["NaN cell"][0]]
    batch = StructureBatch.concatenate([AWKWARD["molecule"], AWKWARD["no atoms"], *bad])
    estimate = edge_budget_estimate(batch, CUTOFF)
    assert 0 < estimate[0] <= 12 * 11
    assert estimate[1] == 0
    assert np.isfinite(estimate).all()
