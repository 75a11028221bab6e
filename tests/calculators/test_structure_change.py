"""What a relaxation did: bonds and fragments against ASE's neighbour list, strains against SciPy's matrix functions."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, graphene_nanoribbon, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list as ase_neighbors
from scipy.linalg import logm, polar
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from atomsieve.calculators import ChangeLimits, Stop
from atomsieve.calculators.structure_change import (
    LOST,
    list_bonds,
    measure_change,
    measure_displacement,
    measure_gap,
    measure_shape_strain,
    measure_volume_ratio,
)
from atomsieve.errors import UsageError
from atomsieve.predict import Outside
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.radii import BOND


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0, periodic=True)
    add_adsorbate(atoms, "O", 1.2, "fcc")
    return atoms


def images() -> list[Atoms]:
    ribbon = graphene_nanoribbon(2, 2, saturated=True, vacuum=4.0)
    pair = Atoms("H2OH2O", [[0, 0, 0], [0.8, 0, 0], [0.4, 0.5, 0]] * 2)
    pair.positions[3:, 2] += 5
    return [bulk("Cu"), bulk("NaCl", "rocksalt", 5.64), slab(), molecule("CH3CH2OH"), ribbon, pair, Atoms("Xe")]


def ase_bonds(atoms: Atoms, factor: float) -> tuple[np.ndarray, ...]:
    i, j, d = ase_neighbors("ijd", atoms, [factor * covalent_radii[z] for z in atoms.numbers])
    return i, j, d / (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])


def everything(many: int) -> np.ndarray:
    return np.ones(many, bool)


def test_bonds_and_fragments_are_those_of_ase() -> None:
    given = images()
    batch = StructureBatch.from_ase(given)
    found = measure_change(batch, batch, everything(len(batch)))
    bonds = list_bonds(batch)
    for s, atoms in enumerate(given):
        i, j, ratio = ase_bonds(atoms, BOND)
        own = (bonds.receiver >= batch.ptr[s]) & (bonds.receiver < batch.ptr[s + 1])
        assert np.allclose(np.sort(bonds.ratio[own]), np.sort(ratio), atol=1e-12)
        graph = coo_matrix((np.ones(len(i)), (i, j)), shape=(len(atoms),) * 2)
        assert found.fragments[s] == found.fragments_before[s] == connected_components(graph)[0]
        assert found.coordination[s] == pytest.approx(len(i) / len(atoms))
        closest = ase_bonds(atoms, LOST)[2]
        assert found.contact[s] == pytest.approx(closest.min()) if len(closest) else np.isnan(found.contact[s])
    assert (found.bonds_kept == 1).all() and (found.bonds_formed == 0).all()
    assert np.nan_to_num(found.volume_ratio, nan=1.0) == pytest.approx(np.ones(len(batch)))
    assert found.fragments.tolist() == [1, 1, 1, 1, 1, 2, 1]


def test_lost_and_new_bonds_are_counted() -> None:
    start = molecule("H2O")
    gone, swapped = start.copy(), start.copy()
    gone.positions[2] += [0, 4, 0]  # one O-H bond of two is lost
    swapped.positions[[1, 2]] += [0, 0, 8]
    swapped.positions[2] = swapped.positions[1] + [0.75, 0, 0]  # both are lost, and H2 is formed
    before = StructureBatch.from_ase([start, start])
    found = measure_change(before, StructureBatch.from_ase([gone, swapped]), everything(2))
    assert found.bonds_kept.tolist() == [0.5, 0.0] and found.bonds_formed.tolist() == [0.0, 0.5]
    assert found.fragments_before.tolist() == [1, 1] and found.fragments.tolist() == [2, 2]


def test_a_bond_is_not_lost_by_stretching_it_a_little() -> None:
    """Beyond the length at which it would be listed anew, but within `LOST`, it still connects its atoms."""
    start, after = Atoms("H2", [[0, 0, 0], [0.74, 0, 0]]), Atoms("H2", [[0, 0, 0], [0.85, 0, 0]])
    assert BOND < 0.85 / 0.62 and LOST > 0.85 / 0.62
    found = measure_change(*(StructureBatch.from_ase([a]) for a in (start, after)), everything(1))
    assert (found.fragments[0], found.bonds_kept[0], found.coordination[0]) == (1, 1, 0)


def test_strain_and_volume_are_those_of_the_polar_decomposition() -> None:
    rng = np.random.default_rng(0)
    atoms = bulk("NaCl", "rocksalt", 5.64)
    before, after, wanted = [], [], []
    for _ in range(6):
        deformation = np.eye(3) + 0.2 * rng.normal(size=(3, 3))
        moved = atoms.copy()
        moved.set_cell(atoms.cell @ deformation, scale_atoms=True)
        before.append(atoms)
        after.append(moved)
        hencky = logm(polar(deformation, side="left")[1])
        shape = hencky - np.trace(hencky) / 3 * np.eye(3)
        wanted.append((moved.get_volume() / atoms.get_volume(), np.abs(np.linalg.eigvalsh(shape)).max()))
    start, end = StructureBatch.from_ase(before), StructureBatch.from_ase(after)
    found = np.stack([measure_volume_ratio(start, end), measure_shape_strain(start, end)], axis=1)
    assert found == pytest.approx(np.array(wanted), abs=1e-10)
    assert measure_displacement(start, end) == pytest.approx(np.zeros(6), abs=1e-12)
    alone = StructureBatch.from_ase([molecule("H2O")])
    assert np.isnan(measure_volume_ratio(alone, alone)).all() and np.isnan(measure_shape_strain(alone, alone)).all()


def test_moved_leaves_out_shifts_and_the_deformation_of_the_cell() -> None:
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    start = StructureBatch.from_ase([atoms, atoms, bulk("Cu")])
    strained = atoms.copy()
    strained.set_cell(atoms.cell @ (np.eye(3) + 0.05 * np.arange(9).reshape(3, 3) / 9), scale_atoms=True)
    strained.positions += 0.7
    hopped = atoms.copy()
    hopped.positions[2] += [0.0, 0.4, 0.0]
    after = StructureBatch.from_ase([strained, hopped, bulk("Cu")])
    assert measure_displacement(start, after) == pytest.approx([0.0, 0.3, 0.0], abs=1e-12)


def test_the_gap_of_a_slab_is_its_vacuum_wherever_the_slab_lies() -> None:
    atoms = slab()
    height = atoms.cell[2, 2] - (atoms.positions[:, 2].max() - atoms.positions[:, 2].min())
    shifted = atoms.copy()
    shifted.positions += 0.5 * atoms.cell[2] + 0.3 * atoms.cell[0]  # across the boundary
    tilted = atoms.copy()
    tilted.cell[2] += 2 * tilted.cell[0]
    batch = StructureBatch.from_ase([atoms, shifted, tilted, bulk("Cu", cubic=True, a=3.6), molecule("H2O")])
    assert measure_gap(batch)[:4] == pytest.approx([height, height, height, 1.8])
    assert np.isnan(measure_gap(batch)[4])


def test_values_of_one_structure_do_not_depend_on_the_others() -> None:
    given = images()
    start = StructureBatch.from_ase(given)
    rng = np.random.default_rng(1)
    after = start.replace(positions=start.positions + rng.normal(scale=0.2, size=start.positions.shape))
    known = everything(len(start))
    known[3] = False
    whole = measure_change(start, after, known)
    for s in range(len(start)):
        alone = measure_change(start.slice(s, s + 1), after.slice(s, s + 1), known[s : s + 1])
        for name, values in whole.arrays().items():
            assert values[s] == pytest.approx(alone.arrays()[name][0], nan_ok=True), name
            assert s != 3 or np.isnan(values[s])
    empty = StructureBatch.empty()
    assert len(measure_change(empty, empty, everything(0)).moved) == 0


# -- limits --------------------------------------------------------------------------------------------------------


def judge(start: Atoms, after: Atoms, gained: int = 0, **changes: float) -> tuple[Stop, str]:
    found = measure_change(StructureBatch.from_ase([start]), StructureBatch.from_ase([after]), everything(1))
    reason, text = ChangeLimits(**changes).judge_ends(found, np.array([gained], np.uint8))
    return Stop(int(reason[0])), text[0]


def scaled(atoms: Atoms, factor: float) -> Atoms:
    out = atoms.copy()
    out.set_cell(atoms.cell * factor ** (1 / 3), scale_atoms=True)
    return out


def test_each_limit_has_its_reason_and_can_be_changed() -> None:
    copper, water = bulk("Cu", cubic=True), molecule("H2O")
    assert judge(copper, scaled(copper, 1.45)) == (Stop.CONVERGED, "")
    assert judge(copper, scaled(copper, 1.6)) == (Stop.EXPLODED, "volume 1.6 times that before")
    assert judge(copper, scaled(copper, 0.6)) == (Stop.COLLAPSED, "volume 0.6 times that before")
    assert judge(copper, scaled(copper, 1.6), max_volume_change=2)[0] == Stop.CONVERGED
    apart, close = water.copy(), water.copy()
    apart.positions[2] += [0, 4, 0]
    assert judge(water, apart, max_moved=9) == (Stop.EXPLODED, "1 more fragments")
    assert judge(water, apart, max_moved=9, max_new_fragments=1)[0] == Stop.CONVERGED
    close.set_distance(0, 1, 0.5, fix=0)
    assert judge(water, close) == (Stop.COLLAPSED, "a distance is 0.52 of the covalent radii")
    assert judge(close, close)[0] == Stop.CONVERGED, "it was so before"
    assert judge(water, water, int(Outside.SHORT_CONTACT)) == (Stop.LEFT_DOMAIN, "short contact")
    assert judge(water, water, int(Outside.SHORT_CONTACT), stay_in_domain=False)[0] == Stop.CONVERGED
    drifted = bulk("Cu", cubic=True) * (2, 2, 2)
    drifted.positions[0] += [1.8, 1.8, 0]
    assert judge(bulk("Cu", cubic=True) * (2, 2, 2), drifted, min_contact=0)[0] == Stop.DRIFTED
    sheared = copper.copy()
    sheared.set_cell(copper.cell @ np.diag([1.4, 1 / 1.4, 1.0]), scale_atoms=True)
    assert judge(copper, sheared) == (Stop.DRIFTED, "shape of the cell strained by 0.34")
    assert judge(copper, sheared, max_strain=float("inf"))[0] == Stop.CONVERGED
    opened = slab()
    opened.cell[2, 2] += 4
    assert judge(slab(), opened)[1] == "an empty layer grew by 4 A"
    lost = judge(water, apart, max_moved=9, max_new_fragments=1, min_bonds_kept=0.8)
    assert lost == (Stop.DRIFTED, "50% of the bonds kept")


def test_values_that_are_not_there_pass_no_limit() -> None:
    found = measure_change(*[StructureBatch.from_ase([molecule("H2O")])] * 2, np.zeros(1, bool))
    assert ChangeLimits().judge_ends(found, np.zeros(1, np.uint8))[0][0] == Stop.CONVERGED
    assert ChangeLimits().judge_volumes(np.array([np.nan, 0.5, -0.5, 0.1])).tolist() == [0, 5, 6, 0]


def test_limits_out_of_range_are_refused_and_those_switched_off_are_not_recorded() -> None:
    for name, value in (("max_volume_change", 0.5), ("min_contact", 2.0), ("max_moved", float("nan"))):
        with pytest.raises(UsageError, match=f"{name.replace('_', '-')} must be .* got {value:g}; .* switches it off"):
            ChangeLimits(**{name: value})
    assert not ChangeLimits.none().watched and ChangeLimits.none().as_dict() == {}
    assert "max_gap" not in ChangeLimits(max_gap=float("inf")).as_dict()
