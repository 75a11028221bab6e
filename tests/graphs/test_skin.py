"""A neighbour list that is reused gives the graph that a new one gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from atomsieve.errors import DataError, UsageError
from atomsieve.graphs import SkinList, build_graph
from atomsieve.structures import StructureBatch

CUTOFF = 4.0


def same(batch: StructureBatch, skin: SkinList, dtype: torch.dtype = torch.float64) -> int:
    """Compare with a new list; return the number of edges."""
    new = build_graph(batch, CUTOFF, dtype=dtype)
    old = skin(batch, CUTOFF, dtype=dtype)
    for name in ("sender", "receiver", "shift", "row_ptr"):
        assert torch.equal(getattr(old.neighbors, name), getattr(new.neighbors, name)), name
        assert getattr(old.neighbors, name).dtype == getattr(new.neighbors, name).dtype
    assert old.neighbors.complete and old.neighbors.cutoff == CUTOFF
    assert old.vec.dtype == dtype
    assert torch.allclose(old.vec, new.vec, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)
    for name in ("numbers", "ptr", "structure"):
        assert torch.equal(getattr(old, name), getattr(new, name))
    return new.n_edges


def structures(kind: str) -> list[Atoms]:
    tiny = bulk("Cu", a=3.6)
    skewed = Atoms("Cu3", positions=np.eye(3), cell=[[3, 0, 0], [2.5, 3.1, 0], [-1, 2, 3.3]], pbc=True)
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    slab.cell[2] = 0
    crystal = bulk("Cu", cubic=True).repeat(2)
    return {
        "tiny": [tiny],
        "skewed": [skewed],
        "slab": [slab],
        "molecule": [molecule("CH3CH2OH")],
        "crystal": [crystal],
        "several": [tiny, molecule("H2O"), slab, crystal, skewed],
        "no edge": [Atoms("H", cell=[9, 9, 9], pbc=True)],
    }[kind]


@pytest.mark.parametrize("kind", ["tiny", "skewed", "slab", "molecule", "crystal", "several", "no edge"])
def test_same_edges_along_a_trajectory(kind: str) -> None:
    """Atoms walk far, out of the cell and past each other; positions are not wrapped."""
    rng = np.random.default_rng(1)
    batch = StructureBatch.from_ase(structures(kind))
    skin = SkinList(0.8)
    positions = batch.positions.copy()
    velocity = rng.normal(scale=0.03, size=positions.shape)
    for _ in range(120):
        velocity += rng.normal(scale=0.01, size=positions.shape)
        positions = positions + velocity
        same(batch.replace(positions=positions), skin)
    assert np.abs(positions - batch.positions).max() > 2.0
    assert 0 < skin.builds < 0.75 * skin.calls, "lists were never, or always, reused"


def test_jump_over_a_boundary_and_common_drift() -> None:
    batch = StructureBatch.from_ase(structures("crystal"))
    skin = SkinList(0.6)
    same(batch, skin)
    drifting = batch.replace(positions=batch.positions + 17.3)
    same(drifting, skin)
    assert skin.builds == 1, "a uniform shift needs no new list"
    wrapped = drifting.positions.copy()
    wrapped[3] -= batch.cell[0, 0]
    same(batch.replace(positions=wrapped), skin)
    assert skin.builds == 2, "an atom that is wrapped has other shifts"


def test_two_atoms_approaching_each_other_are_not_missed() -> None:
    """Each moves just less, then just more, than half the skin; the pair comes from beyond the reach of the list."""
    for part, builds in ((0.98, 1), (1.02, 2)):
        skin = SkinList(1.0)
        pair = StructureBatch.from_ase(Atoms("Cu2", [[0, 0, 0], [CUTOFF + 1.0 + 1e-6, 0, 0]]))
        assert same(pair, skin) == 0
        moved = pair.positions.copy()
        moved[0, 0] += 0.5 * part
        moved[1, 0] -= 0.5 * part
        assert same(pair.replace(positions=moved), skin) == (2 if part > 1 else 0)
        assert skin.builds == builds


@pytest.mark.parametrize("strain", [0.01, 0.05, 0.2])
def test_changing_cells(strain: float) -> None:
    rng = np.random.default_rng(2)
    batch = StructureBatch.from_ase([bulk("Cu", a=3.6), bulk("Cu", cubic=True), structures("skewed")[0]])
    skin = SkinList(1.0)
    same(batch, skin)
    for _ in range(30):
        deform = np.eye(3) + rng.normal(scale=strain, size=(3, 3))
        cell = batch.cell @ deform
        positions = batch.positions @ deform + rng.normal(scale=0.02, size=batch.positions.shape)
        same(batch.replace(cell=cell, positions=positions), skin)
    if strain == 0.01:
        assert skin.builds < 5
    slab = StructureBatch.from_ase(structures("slab"))
    same(slab, skin)
    same(slab.replace(cell=slab.cell * 1.01), skin)


def test_another_structure_is_never_taken_for_the_old_one() -> None:
    skin = SkinList(1.0)
    first = StructureBatch.from_ase(bulk("Cu", cubic=True))
    same(first, skin)
    same(first.replace(numbers=np.full(4, 47, np.uint8)), skin)
    same(first.replace(pbc=np.array([[True, True, False]])), skin)
    same(first.take([0, 0]), skin)
    same(StructureBatch.from_ase(bulk("Cu", cubic=True, a=4.2)), skin)
    assert skin.builds == 4, "a larger cell of the same crystal holds no new neighbours"
    same(StructureBatch.from_ase(bulk("Cu", cubic=True, a=2.6)), skin)
    same(first, skin)
    assert skin.builds == 5, "the first list is still there"


def test_images_of_a_band_keep_their_lists() -> None:
    skin = SkinList(0.5)
    rng = np.random.default_rng(0)
    images = []
    for shift in (0.0, 0.8, 1.6):
        atoms = structures("crystal")[0]
        atoms.positions[0, 0] += shift
        images.append(StructureBatch.from_ase(atoms))
    for _ in range(5):
        for image in images:
            same(image.replace(positions=image.positions + rng.normal(scale=0.01, size=(32, 3))), skin)
    assert skin.builds == 3


def test_truncated_lists_and_no_skin_are_built_anew() -> None:
    batch = StructureBatch.from_ase(structures("crystal"))
    skin = SkinList(1.0)
    for _ in range(2):
        got = skin(batch, CUTOFF, max_neighbors=5, dtype=torch.float64)
        assert torch.equal(got.neighbors.sender, build_graph(batch, CUTOFF, max_neighbors=5).neighbors.sender)
        assert not got.neighbors.complete
    assert skin.builds == skin.calls == 2
    none = SkinList(0.0)
    same(batch, none), same(batch, none, torch.float32)
    assert none.builds == 2


def test_single_precision_vectors() -> None:
    skin = SkinList(1.0)
    batch = StructureBatch.from_ase(structures("several"))
    same(batch, skin, torch.float32)
    same(batch.replace(positions=batch.positions + 0.01), skin, torch.float32)


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"skin must be .* got -1"):
        SkinList(-1)
    broken = StructureBatch.from_ase(Atoms("H2", [[0, 0, 0], [np.nan, 0, 0]]))
    skin = SkinList(1.0)
    good = StructureBatch.from_ase(Atoms("H2", [[0, 0, 0], [1.0, 0, 0]]))
    same(good, skin)
    with pytest.raises(DataError, match="not finite"):
        skin(broken, CUTOFF)


@pytest.mark.parametrize(
    "device",
    ["cpu:0", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_a_device_goes_by_the_name_it_is_asked_by(device: str) -> None:
    """Tensors on `cpu:0` say `cpu`, those on `cuda` say `cuda:0`; a list is reused all the same."""
    skin = SkinList(1.0)
    batch = StructureBatch.from_ase(structures("crystal"))
    for _ in range(3):
        graph = skin(batch, CUTOFF, device=device)
        assert graph.vec.device.type == torch.device(device).type
    assert skin.builds == 1
    skin(batch, CUTOFF, device="cpu")
    assert skin.builds == 2, "a list is held for one device"
