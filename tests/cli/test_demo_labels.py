"""Labels made on the spot: gradients of their energies, where they are sampled, and independence of the workers."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.cli.demo.labels import LABEL_SOURCES, METALS, alloy_group, label_groups, molecule_group, prototype
from atomsieve.errors import UsageError


def test_alloy_labels_are_gradients_of_the_energy():
    from ase.calculators.emt import EMT

    atoms = max(alloy_group(3, 5), key=lambda a: abs(a.get_forces()).max())
    step, forces, stress = 1e-4, atoms.get_forces(), atoms.get_stress(voigt=False)

    def energy(moved) -> float:
        return EMT().get_potential_energy(moved)

    for axis in range(3):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[0, axis] += sign * step
            ends.append(energy(moved))
        assert forces[0, axis] == pytest.approx(-(ends[0] - ends[1]) / (2 * step), abs=1e-5)
    ends = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell @ (np.eye(3) * (1 + sign * step)), scale_atoms=True)
        ends.append(energy(strained))
    slope = (ends[0] - ends[1]) / (2 * step) / atoms.get_volume()
    assert np.trace(stress) == pytest.approx(slope, abs=1e-6)


def test_molecule_labels_are_gradients_of_the_energy():
    tblite = pytest.importorskip("tblite.ase", reason="tblite is not installed (extra: demo)")
    atoms = molecule_group(0, 1, thermal=1, rattled=1)[0]
    forces, step, ends = atoms.get_forces(), 1e-3, []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * step
        ends.append(tblite.TBLite(method="GFN2-xTB", verbosity=0).get_potential_energy(moved))
    assert forces[1, 2] == pytest.approx(-(ends[0] - ends[1]) / (2 * step), abs=2e-3)


@pytest.mark.parametrize("name", sorted(LABEL_SOURCES))
def test_groups_do_not_depend_on_the_workers(name):
    if name == "gfn2_xtb":
        pytest.importorskip("tblite.ase", reason="tblite is not installed (extra: demo)")
    by_two = list(label_groups(name, 3, seed=4, workers=2))
    assert [len(g) for g in by_two] == [LABEL_SOURCES[name].group_size] * 3
    own = LABEL_SOURCES[name].make(4, 2)
    for one, other in zip(by_two[2], own, strict=True):
        assert one.symbols.get_chemical_formula() == other.symbols.get_chemical_formula()
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-6)
        assert one.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-6)
    assert not np.allclose(by_two[0][0].positions[0], LABEL_SOURCES[name].make(5, 0)[0].positions[0])


def test_alloys_stay_in_their_element_set_and_sizes():
    frames = [a for k in range(60) for a in alloy_group(0, k, variants=1)]
    assert {s for a in frames for s in a.get_chemical_symbols()} == set(METALS)
    assert max(map(len, frames)) <= 32
    assert len({a.info["group"] for a in frames}) == 60
    nearest = [a.get_all_distances(mic=True)[np.triu_indices(len(a), 1)].min() for a in frames if len(a) > 1]
    assert min(nearest) > 1.8


@pytest.mark.parametrize(
    ("kind", "atoms", "symbols", "neighbours"),
    [
        ("fcc", 1, {"Cu"}, 12),
        ("L1_2", 4, {"Cu", "Au"}, 12),
        ("L1_0", 2, {"Cu", "Au"}, 12),
        ("D0_22", 8, {"Cu", "Au"}, 12),
        ("bcc", 1, {"Cu"}, 8),
        ("B2", 2, {"Cu", "Au"}, 8),
    ],
)
def test_prototypes_have_their_coordination_and_volume(kind, atoms, symbols, neighbours):
    from ase.neighborlist import neighbor_list

    crystal = prototype(kind, ["Cu", "Au"], 4.0)
    assert len(crystal) == atoms
    assert set(crystal.get_chemical_symbols()) == symbols
    assert crystal.get_volume() / len(crystal) == pytest.approx(16.0)
    shortest = neighbor_list("d", crystal, 4.0).min()
    assert len(neighbor_list("d", crystal, 1.01 * shortest)) == neighbours * atoms


def test_an_unknown_source_or_prototype_is_named():
    with pytest.raises(UsageError, match="did you mean 'emt'"):
        next(label_groups("emd", 1))
    with pytest.raises(UsageError, match="did you mean 'L1_2'"):
        prototype("L12", ["Cu", "Au"], 4.0)
