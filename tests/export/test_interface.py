"""What exports take: every kind of bad input is refused in one line, and good input passes unchanged."""

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from atomsieve.errors import UsageError
from atomsieve.export.interface import check_inputs, check_symmetric, inputs, outputs
from atomsieve.graphs import build_graph
from atomsieve.graphs.table import gather_sent, table_arrays
from atomsieve.structures import StructureBatch
from tests.export.export_checks import given_arrays
from tests.helpers import copper_oxides, tiny_ensemble

HEADS = 2
COMPLETE = inputs(charge_spin=False, truncated=False)
ALL = inputs(charge_spin=True, truncated=True)


def crystals(n=4):
    """A batch in which the first structure has fewer neighbours than places, and the last is one lone atom."""
    found = StructureBatch.concatenate([copper_oxides(n), StructureBatch.from_ase([Atoms("Cu", [[0, 0, 0]])])])
    return found.replace(charge=np.zeros(n + 1, np.float32), spin=np.ones(n + 1, np.float32))


def good(batch=None, **config):
    batch = crystals() if batch is None else batch
    return given_arrays(tiny_ensemble(1, **{"max_neighbors": 12, "charge_spin": True, **config}), batch)


def place(array, index, value):
    """Return a copy with one value changed."""
    changed = array.copy()
    changed[index] = value
    return changed


def test_the_order_and_shapes_of_inputs_and_outputs_are_stated():
    assert [f"{s.name} {s.symbol} {s.dtype}" for s in ALL] == [
        "numbers [N] uint8",
        "positions [N,3] float64",
        "cell [S,3,3] float64",
        "structure [N] int64",
        "neighbors [N,W] int64",
        "shifts [N,W,3] int32",
        "head [S] int64",
        "charge [S] float32",
        "spin [S] float32",
        "reverse [N,V] int64",
    ]
    assert [s.name for s in COMPLETE] == [s.name for s in ALL[:7]]
    names = ["energy", "energy_std", "energy_members", "forces", "forces_std", "virial", "forces_members"]
    assert [s.name for s in outputs("forces", conservative=True, members=True)] == names
    assert [s.name for s in outputs("forces", conservative=False, members=False)] == names[:5]
    assert [s.name for s in outputs("energy", conservative=True, members=True)] == names[:3]


@pytest.mark.parametrize("config", [{}, {"max_neighbors": None, "charge_spin": False}], ids=["all", "complete"])
def test_good_inputs_pass_as_they_are_in_order(config):
    arrays = good(**config)
    slots = COMPLETE if config else ALL
    found = check_inputs(dict(reversed(arrays.items())), slots, heads=HEADS)
    assert list(found) == [s.name for s in slots]
    assert all(found[name] is array for name, array in arrays.items())
    if config:
        check_symmetric(found["neighbors"], found["shifts"])


@pytest.mark.parametrize("n", [0, 1, 3])
def test_atoms_without_neighbours_and_empty_batches_pass(n):
    batch = StructureBatch.from_ase([Atoms("Cu", [[0, 0, 0]])] * n) if n else StructureBatch.empty()
    arrays = good(batch, max_neighbors=None, charge_spin=False)
    assert arrays["neighbors"].shape == (n, 1) and (arrays["neighbors"] == -1).all()
    assert check_inputs(arrays, COMPLETE, heads=HEADS).keys() == arrays.keys()
    check_symmetric(arrays["neighbors"], arrays["shifts"])


def test_a_structure_without_atoms_passes_between_others():
    arrays = good(copper_oxides(2), max_neighbors=None, charge_spin=False)
    arrays["structure"] = arrays["structure"] * 2
    arrays["cell"] = np.insert(arrays["cell"], 1, 0.0, axis=0)
    arrays["head"] = np.ones(3, np.int64)
    assert check_inputs(arrays, COMPLETE, heads=HEADS)


BAD_SHAPES = {
    "positions in single precision": (
        "positions",
        lambda a: a.astype(np.float32),
        "positions is float32; it must be float64 (use .astype)",
    ),
    "numbers as int64": ("numbers", lambda a: a.astype(np.int64), "numbers is int64; it must be uint8 (use .astype)"),
    "shifts as int64": ("shifts", lambda a: a.astype(np.int64), "shifts is int64; it must be int32 (use .astype)"),
    "head in float": ("head", lambda a: a.astype(np.float64), "head is float64; it must be int64 (use .astype)"),
    "spin as int": ("spin", lambda a: a.astype(np.int32), "spin is int32; it must be float32 (use .astype)"),
    "foreign byte order": ("cell", lambda a: a.astype(">f8"), "cell is >f8; it must be float64 (use .astype)"),
    "a list": ("numbers", lambda a: a.tolist(), "numbers is a list; give a numpy array [N] uint8"),
    "a tensor": ("cell", torch.from_numpy, "cell is a Tensor; give a numpy array [S,3,3] float64"),
    "nothing": ("reverse", lambda a: None, "reverse is a NoneType; give a numpy array [N,V] int64"),
    "flat positions": ("positions", np.ravel, "positions has shape [{3N}]; it must be [N,3]"),
    "flat neighbours": ("neighbors", lambda a: a[:, 0].copy(), "neighbors has shape [{N}]; it must be [N,W]"),
    "one head": ("head", lambda a: np.array(1), "head has shape []; it must be [S]"),
    "a rank too many": ("structure", lambda a: a[:, None], "structure has shape [{N}, 1]; it must be [N]"),
    "positions of two axes": ("positions", lambda a: a[:, :2].copy(), "positions has shape [{N}, 2]; it must be [N,3]"),
    "cell lengths": ("cell", lambda a: a[:, :1].copy(), "cell has shape [5, 1, 3]; it must be [S,3,3]"),
    "too few positions": (
        "positions",
        lambda a: a[1:].copy(),
        "positions has N = {N-1}, but numbers has N = {N}; they must agree",
    ),
    "too many heads": ("head", lambda a: np.append(a, 1), "head has S = 6, but cell has S = 5; they must agree"),
    "too few charges": ("charge", lambda a: a[1:], "charge has S = 4, but cell has S = 5; they must agree"),
    "shifts of another width": (
        "shifts",
        lambda a: a[:, 1:].copy(),
        "shifts has W = 11, but neighbors has W = 12; they must agree",
    ),
    "columns first": (
        "positions",
        np.asfortranarray,
        "positions is not contiguous in memory; use numpy.ascontiguousarray",
    ),
    "a view": (
        "neighbors",
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        "neighbors is not contiguous in memory; use numpy.",
    ),
}


@pytest.mark.parametrize(("name", "spoil", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_a_wrong_dtype_shape_or_layout_is_refused(name, spoil, message):
    arrays = good()
    atoms = len(arrays["numbers"])
    for symbol, value in (("{3N}", 3 * atoms), ("{N}", atoms), ("{N-1}", atoms - 1)):
        message = message.replace(symbol, str(value))
    with pytest.raises(UsageError) as caught:
        check_inputs({**arrays, name: spoil(arrays[name])}, ALL, heads=HEADS)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


N = len(good()["numbers"])
BAD_VALUES = {
    "element 0": ("numbers", 2, 0, "numbers holds 0; allowed: 1 to 118 (atomic numbers of the table of elements)"),
    "element 119": ("numbers", 2, 119, "numbers holds 119; allowed: 1 to 118"),
    "structure 5": ("structure", -1, 5, "structure holds 5; allowed: 0 to 4 (structures of `cell`)"),
    "structure -1": ("structure", 0, -1, "structure holds -1; allowed: 0 to 4"),
    "structures mixed": ("structure", 0, 1, "structure is not sorted; atoms of one structure must lie together"),
    "neighbour N": ("neighbors", (0, 0), N, f"neighbors holds {N}; allowed: -1 to {N - 1} (atoms of this batch, or"),
    "neighbour -2": ("neighbors", (0, 11), -2, f"neighbors holds -2; allowed: -1 to {N - 1}"),
    "a gap": ("neighbors", (0, 3), -1, "neighbors has an empty place (-1) before a full one; list the neighbours"),
    "neighbour in another structure": ("neighbors", (0, 0), N - 2, "neighbors joins atoms of two structures; indices"),
    "head 2": ("head", 3, 2, "head holds 2; allowed: 0 to 1 (heads of this ensemble)"),
    "head -1": ("head", 3, -1, "head holds -1; allowed: 0 to 1"),
    "reverse beyond": ("reverse", (1, 1), 12 * N, f"reverse holds {12 * N}; allowed: -1 to {12 * N - 1} (places i * W"),
    "reverse -2": ("reverse", (1, 1), -2, f"reverse holds -2; allowed: -1 to {12 * N - 1}"),
}


@pytest.mark.parametrize(("name", "index", "value", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_out_of_range_is_refused(name, index, value, message):
    arrays = good()
    with pytest.raises(UsageError) as caught:
        check_inputs({**arrays, name: place(arrays[name], index, value)}, ALL, heads=HEADS)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_atom_that_is_its_own_neighbour_is_refused():
    arrays = good(max_neighbors=None, charge_spin=False)
    row, k = np.argwhere((arrays["neighbors"] >= 0) & ~arrays["shifts"].any(2))[3]
    with pytest.raises(
        UsageError, match=rf"^neighbors joins atom {row} to itself without a shift; an atom's images have"
    ):
        check_inputs({**arrays, "neighbors": place(arrays["neighbors"], (row, k), row)}, COMPLETE, heads=HEADS)


def test_a_reverse_table_that_does_not_fit_is_refused():
    arrays = good()
    first = arrays["reverse"][0, 0]
    spoilt = {
        "an edge left out": place(arrays["reverse"], (0, 0), -1),
        "an edge twice": place(arrays["reverse"], (0, 1), first),
        "the edges of another atom": np.roll(arrays["reverse"], 1, axis=0),
        "an empty place": place(arrays["reverse"], (0, -1), 12 * N - 1),
    }
    assert arrays["neighbors"][-1, -1] == -1
    for reverse in spoilt.values():
        with pytest.raises(
            UsageError, match=r"^reverse does not list each full place of `neighbors` once, in the row of"
        ):
            check_inputs({**arrays, "reverse": reverse}, ALL, heads=HEADS)


def test_missing_and_unknown_names_are_refused():
    arrays = good()
    allowed = ", ".join(s.name for s in ALL)
    with pytest.raises(UsageError) as caught:
        check_inputs({n: a for n, a in arrays.items() if n not in ("head", "cell")}, ALL, heads=HEADS)
    assert str(caught.value) == f"inputs cell, head: missing; this model takes {allowed}"
    with pytest.raises(UsageError) as caught:
        check_inputs({**arrays, "positon": arrays["positions"]}, ALL, heads=HEADS)
    assert str(caught.value) == f"inputs positon: unknown; this model takes {allowed}"


def test_a_table_without_places_is_refused():
    arrays = good()
    arrays["neighbors"], arrays["shifts"] = arrays["neighbors"][:, :0], arrays["shifts"][:, :0]
    with pytest.raises(
        UsageError, match=r"neighbors has no places \(W = 0\); a table of atoms without .* W = 1, all -1"
    ):
        check_inputs(arrays, ALL, heads=HEADS)


def without_edge(neighbors, shifts, row, k):
    """Return a table without one edge, its row closed up."""
    neighbors, shifts = neighbors.copy(), shifts.copy()
    neighbors[row, k:-1], shifts[row, k:-1] = neighbors[row, k + 1 :], shifts[row, k + 1 :]
    neighbors[row, -1], shifts[row, -1] = -1, 0
    return neighbors, shifts


def test_a_list_that_lacks_any_one_edge_is_refused():
    arrays = good(copper_oxides(2), max_neighbors=None, charge_spin=False)
    neighbors, shifts = arrays["neighbors"], arrays["shifts"]
    check_symmetric(neighbors, shifts)
    for row, k in np.argwhere(neighbors >= 0):
        cut = without_edge(neighbors, shifts, row, k)
        check_inputs({**arrays, "neighbors": cut[0], "shifts": cut[1]}, COMPLETE, heads=HEADS)
        with pytest.raises(UsageError, match="neighbors is truncated: an edge lacks its reverse, and forces would be"):
            check_symmetric(*cut)


def test_a_list_of_the_nearest_is_refused_and_a_shift_with_the_wrong_sign_too():
    batch = copper_oxides(3)
    cut = table_arrays(build_graph(batch, 5.0, max_neighbors=7).neighbors, batch.n_atoms)
    with pytest.raises(UsageError, match="truncated"):
        check_symmetric(cut["neighbors"], cut["shifts"])
    whole = table_arrays(build_graph(batch, 5.0).neighbors, batch.n_atoms)
    row, k = np.argwhere(whole["shifts"].any(2) & (whole["neighbors"] >= 0))[0]
    with pytest.raises(UsageError, match="truncated"):
        check_symmetric(whole["neighbors"], place(whole["shifts"], (row, k), -whole["shifts"][row, k]))


@st.composite
def random_crystals(draw):
    """One or two structures of 1 to 5 atoms in a skewed cell, periodic along some directions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = []
    for _ in range(draw(st.integers(1, 2))):
        atoms = draw(st.integers(1, 5))
        cell = np.diag(rng.uniform(2.5, 6.0, 3)) + np.tril(rng.uniform(-1, 1, (3, 3)), -1)
        pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
        positions = rng.uniform(-1.5, 1.5, (atoms, 3)) @ cell
        images.append(Atoms(numbers=rng.integers(1, 90, atoms), positions=positions, cell=cell, pbc=pbc))
    return StructureBatch.from_ase(images)


@settings(max_examples=60, deadline=None)
@given(batch=random_crystals(), data=st.data())
def test_complete_lists_are_taken_and_refused_without_an_edge(batch, data):
    table = table_arrays(build_graph(batch, 4.0).neighbors, batch.n_atoms)
    neighbors, shifts = table["neighbors"], table["shifts"]
    check_symmetric(neighbors, shifts)
    edges = np.argwhere(neighbors >= 0)
    if len(edges):
        row, k = edges[data.draw(st.integers(0, len(edges) - 1))]
        with pytest.raises(UsageError, match="truncated"):
            check_symmetric(*without_edge(neighbors, shifts, row, k))


@settings(max_examples=40, deadline=None)
@given(batch=random_crystals(), nearest=st.none() | st.integers(1, 12))
def test_the_table_holds_the_edges_of_the_list_and_nothing_else(batch, nearest):
    found = build_graph(batch, 4.0, max_neighbors=nearest).neighbors
    table = table_arrays(found, batch.n_atoms, reverse=True)
    neighbors, shifts, reverse = (table[n] for n in ("neighbors", "shifts", "reverse"))
    row, k = np.nonzero(neighbors >= 0)
    assert np.array_equal(row, found.receiver) and np.array_equal(neighbors[row, k], found.sender)
    assert np.array_equal(shifts[row, k], found.shift)
    assert not shifts[neighbors < 0].any()
    assert ((neighbors[:, 1:] < 0) | (neighbors[:, :-1] >= 0)).all()
    atom, _ = np.nonzero(reverse >= 0)
    assert np.array_equal(np.sort(reverse[reverse >= 0]), row * neighbors.shape[1] + k)
    assert np.array_equal(neighbors.ravel()[reverse[reverse >= 0]], atom)
    values = np.random.default_rng(0).normal(size=neighbors.size)
    sums = np.zeros(batch.n_atoms)
    np.add.at(sums, found.sender.numpy(), values[row * neighbors.shape[1] + k])
    gathered = gather_sent(torch.from_numpy(values)[None, :, None], torch.from_numpy(reverse))[0, :, 0]
    np.testing.assert_allclose(gathered, sums, rtol=0, atol=1e-12)
