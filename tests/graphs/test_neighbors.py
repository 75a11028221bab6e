from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomsieve.errors import DataError
from atomsieve.graphs import build_graph, count_edges, neighbor_list
from atomsieve.graphs import native as native_module
from atomsieve.structures.batch import StructureBatch
from tests.graphs.awkward_cells import AWKWARD, random_cells, structures, together
from tests.graphs.neighbor_checks import IMPLEMENTATIONS, agree, lengths, near_cutoff, rows

FAST = [name for name in IMPLEMENTATIONS if name != "brute"]
CUTOFF = 5.0
VESIN_CRASHES = ("two clusters far apart",)

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def everything() -> StructureBatch:
    return together()


@pytest.fixture(scope="module")
def oracle(everything):
    return neighbor_list(everything, CUTOFF, implementation="brute")


@pytest.mark.parametrize("implementation", FAST)
def test_awkward_cells_equal_brute_force(implementation, everything, oracle):
    found = neighbor_list(everything, CUTOFF, implementation=implementation)
    agree(everything, found, oracle)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("cutoff", [1.1, 3.0, 9.7])
def test_other_cutoffs(implementation, cutoff):
    batch = together([n for n in AWKWARD if "atoms" not in n or n.startswith(("no", "one", "two"))])
    agree(
        batch,
        neighbor_list(batch, cutoff, implementation=implementation),
        neighbor_list(batch, cutoff, implementation="brute"),
    )


@pytest.mark.parametrize("implementation", FAST)
@relaxed
@given(parts=st.lists(structures(), max_size=4), cutoff=st.floats(0.5, 7))
def test_any_batch_equals_brute_force(implementation, parts, cutoff):
    batch = StructureBatch.concatenate(parts)
    agree(
        batch,
        neighbor_list(batch, cutoff, implementation=implementation),
        neighbor_list(batch, cutoff, implementation="brute"),
    )


@pytest.mark.parametrize(("atoms", "n_structures"), [((1, 30), 300), ((60, 110), 60)])
@pytest.mark.parametrize("cutoff", [2.0, 3.7, 6.0])
def test_many_random_cells(atoms, n_structures, cutoff):
    # Bounds that are a little too tight lose few edges: only many structures of all shapes show it.
    batch = random_cells(np.random.default_rng(len(atoms) + atoms[0]), atoms, n_structures)
    wanted = neighbor_list(batch, cutoff, implementation="torch")
    agree(batch, neighbor_list(batch, cutoff, implementation="native"), wanted)
    few = batch.slice(0, 12)
    oracle = neighbor_list(few, cutoff, implementation="brute")
    agree(few, neighbor_list(few, cutoff, implementation="torch"), oracle)


@pytest.mark.parametrize("name", AWKWARD)
def test_brute_force_equals_vesin(name):
    vesin = pytest.importorskip("vesin")
    batch = AWKWARD[name]
    if batch.n_atoms == 0:
        pytest.skip("vesin refuses a structure without atoms")
    if name in VESIN_CRASHES:
        pytest.skip("vesin 0.6.2 divides by zero there and ends the process")
    pbc = batch.pbc[0]
    cell = np.where(pbc[:, None], batch.cell[0], 0.0)
    i, j, shift, d = vesin.NeighborList(cutoff=CUTOFF, full_list=True).compute(
        points=batch.positions, box=cell, periodic=[bool(p) for p in pbc], quantities="ijSd"
    )
    ours = neighbor_list(batch, CUTOFF, implementation="brute")
    theirs = np.column_stack([i, j, shift]).astype(np.int64)[np.abs(d - CUTOFF) > 1e-6]
    assert sorted(map(tuple, theirs.tolist())) == sorted(map(tuple, rows(ours)[~near_cutoff(batch, ours)].tolist()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_edges_stay_in_their_structure(implementation, everything):
    found = neighbor_list(everything, CUTOFF, implementation=implementation)
    structure = torch.from_numpy(everything.structure_of_atom)
    assert torch.equal(structure[found.sender], structure[found.receiver])
    assert found.row_ptr[-1] == found.n_edges
    counts = torch.bincount(found.receiver, minlength=everything.n_atoms)
    assert torch.equal(found.row_ptr[1:] - found.row_ptr[:-1], counts)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_order_is_receiver_sender_shift_without_repeats(implementation, everything):
    found = neighbor_list(everything, CUTOFF, implementation=implementation)
    listed = rows(found)
    assert np.array_equal(np.lexsort(listed.T[::-1]), np.arange(len(listed)))
    assert len(np.unique(listed, axis=0)) == len(listed)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_edge_has_its_reverse_even_at_the_cutoff(implementation, everything):
    # 4.2 Angstrom is a distance between lattice points of a cell of 1.4: equality is decided by rounding.
    exact = StructureBatch.concatenate([everything, AWKWARD["exact cutoff"].replace(cell=1.4 * np.eye(3)[None])])
    for batch, cutoff in ((everything, CUTOFF), (exact, 4.2)):
        found = neighbor_list(batch, cutoff, implementation=implementation)
        assert found.complete
        listed = rows(found)
        reverse = np.column_stack([listed[:, 1], listed[:, 0], -listed[:, 2:]])
        order = np.lexsort(reverse.T[::-1])
        assert np.array_equal(reverse[order], listed)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_exact_cutoff_is_excluded(implementation):
    batch = AWKWARD["exact cutoff"]  # simple cubic, 2.5 Angstrom: the second neighbour along an axis lies at 5
    listed = rows(neighbor_list(batch, 5.0, implementation=implementation))
    assert [2, 0, 0] not in listed[:, 2:].tolist()
    assert [1, 1, 1] in listed[:, 2:].tolist()
    assert len(listed) == 6 + 12 + 8


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_atoms_on_one_point_have_edges_of_length_zero(implementation):
    for name in ("two atoms on one point", "two atoms one cell apart"):
        batch = AWKWARD[name]
        d = lengths(batch, neighbor_list(batch, 3.0, implementation=implementation))
        assert d.tolist() == [0.0, 0.0], name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_batch_is_the_concatenation_of_its_structures(implementation):
    names = list(AWKWARD)[:30]
    batch = together(names)
    whole = rows(neighbor_list(batch, CUTOFF, implementation=implementation))
    parts = []
    for k, name in enumerate(names):
        part = rows(neighbor_list(AWKWARD[name], CUTOFF, implementation=implementation))
        part[:, :2] += batch.ptr[k]
        parts.append(part)
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("implementation", FAST)
@relaxed
@given(batch=structures(), seed=st.integers(0, 1000))
def test_lattice_translations_of_atoms_change_no_length(implementation, batch, seed):
    moves = np.random.default_rng(seed).integers(-3, 4, (batch.n_atoms, 3)) * batch.pbc[0]
    cell = np.where(batch.pbc[0][:, None], batch.cell[0], 0.0)
    moved = batch.replace(positions=batch.positions + moves @ cell)
    before = neighbor_list(batch, 4.321, implementation=implementation)
    after = neighbor_list(moved, 4.321, implementation=implementation)
    first, second = (np.sort(lengths(b, g)) for b, g in ((batch, before), (moved, after)))
    first, second = (d[np.abs(d - 4.321) > 1e-6] for d in (first, second))
    np.testing.assert_allclose(first, second, atol=1e-9)


def test_permutation_of_atoms_changes_only_names():
    batch = AWKWARD["140 atoms"]
    order = np.random.default_rng(0).permutation(batch.n_atoms)
    found = rows(neighbor_list(batch.replace(positions=batch.positions[order]), CUTOFF))
    found[:, :2] = order[found[:, :2]]
    listed = rows(neighbor_list(batch, CUTOFF))
    assert np.array_equal(found[np.lexsort(found.T[::-1])], listed)


def test_result_does_not_depend_on_the_number_of_threads(everything):
    before = torch.get_num_threads()
    many = StructureBatch.concatenate([everything] * 4)
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(build_graph(many, CUTOFF, max_neighbors=40, implementation="native"))
            assert np.array_equal(count_edges(many, CUTOFF), np.tile(count_edges(everything, CUTOFF), 4))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert np.array_equal(rows(other.neighbors), rows(results[0].neighbors))
        assert torch.equal(other.vec, results[0].vec)
        assert torch.equal(other.neighbors.row_ptr, results[0].neighbors.row_ptr)


def test_torch_chunks_do_not_show():
    from atomsieve.graphs.torch_list import torch_edges

    batch = together([name for name, one in AWKWARD.items() if one.n_atoms < 20])
    whole = torch_edges(batch, CUTOFF, torch.device("cpu"))
    small = torch_edges(batch, CUTOFF, torch.device("cpu"), chunk=1000)
    assert all(torch.equal(a, b) for a, b in zip(whole, small, strict=True))


@pytest.mark.parametrize("implementation", ["native", "torch"])
def test_count_edges(implementation, everything, oracle):
    counts = count_edges(everything, CUTOFF, implementation=implementation)
    assert np.array_equal(counts, np.diff(oracle.row_ptr.numpy()[everything.ptr]))


@pytest.mark.parametrize("implementation", FAST)
def test_float32_positions_and_views(implementation, everything):
    batch = everything.replace(positions=everything.positions.astype(np.float32)).slice(3, 20)
    copied = batch.replace(positions=batch.positions.astype(np.float64))
    assert np.array_equal(
        rows(neighbor_list(batch, CUTOFF, implementation=implementation)),
        rows(neighbor_list(copied, CUTOFF, implementation=implementation)),
    )


def test_native_is_compiled_here():
    assert native_module.library() is not None, "no C++ neighbour list: the other tests would prove less"


@pytest.mark.parametrize("implementation", ["native", "torch", "brute"])
def test_absurdly_long_cell_vectors_are_refused_before_anything_is_listed(implementation):
    """One atom in a cell whose second vector leaves the others by 1e10 Angstrom once took all memory."""
    if implementation == "native" and native_module.library() is None:
        pytest.skip("no compiled kernels")
    cells = [[[0, 1.85, 1.85], [1.85, 0, long], [1.85, 1.85, 0]] for long in (1e7, 1e10)]
    batch = StructureBatch(
        ptr=np.array([0, 1, 2]),
        numbers=np.full(2, 29, np.uint8),
        positions=np.zeros((2, 3)),
        cell=np.array(cells),
        pbc=np.ones((2, 3), bool),
        id=np.arange(2),
    )
    with pytest.raises(DataError, match=r"structure 1 .*longer than 1e\+08 Angstrom"):
        neighbor_list(batch, 5.0, implementation=implementation)
    free = batch.replace(pbc=np.array([[1, 1, 1], [1, 0, 1]], bool))
    found = neighbor_list(free, 5.0, implementation=implementation)
    assert np.bincount(found.receiver.numpy()).tolist() == [12, 12]
