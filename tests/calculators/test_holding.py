"""What is held fast: symmetry beside ASE's FixSymmetry, atoms beside FixAtoms, axes of the cell beside its mask."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111
from ase.constraints import FixAtoms, FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.spacegroup import crystal
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from atomsieve.calculators import GFMCalculator, relax
from atomsieve.calculators.holding import (
    find_lowest,
    hold_atoms,
    hold_axes,
    hold_symmetry,
    join_holdings,
)
from atomsieve.errors import UsageError
from atomsieve.screen.selection.groups import find_space_group
from atomsieve.structures import StructureBatch


def cuprite() -> Atoms:
    return crystal(["Cu", "O"], [(0.25, 0.25, 0.25), (0, 0, 0)], spacegroup=224, cellpar=[4.3, 4.3, 4.3, 90, 90, 90])


def tenorite() -> Atoms:
    return crystal(
        ["Cu", "O"], [(0.25, 0.25, 0), (0, 0.42, 0.25)], spacegroup=15, cellpar=[4.7, 3.4, 5.1, 90, 99.5, 90]
    )


def images() -> list[Atoms]:
    rough = bulk("Cu", cubic=True)
    rough.rattle(0.1, seed=0)
    return [cuprite(), tenorite(), bulk("Cu"), rough]


def test_projections_are_those_of_ase() -> None:
    given, rng = images(), np.random.default_rng(0)
    batch = StructureBatch.from_ase(given)
    whole = hold_symmetry(batch)
    for s, atoms in enumerate(given):
        peer = FixSymmetry(atoms.copy(), symprec=0.01)
        forces, stress = rng.normal(size=(len(atoms), 3)), rng.normal(size=(3, 3))
        stress += stress.T
        wanted, voigt = forces.copy(), full_3x3_to_voigt_6_stress(stress)
        peer.adjust_forces(atoms, wanted)
        peer.adjust_stress(atoms, voigt)
        own = whole.take(np.array([s]), np.arange(*batch.ptr[s : s + 2]))
        assert own.hold_forces(forces) == pytest.approx(wanted, abs=1e-10)
        assert own.hold_cells(stress[None])[0] == pytest.approx(voigt_6_to_full_3x3_stress(voigt), abs=1e-8)
        again = own.hold_forces(own.hold_forces(forces))
        assert again == pytest.approx(own.hold_forces(forces), abs=1e-12), "a projection"


def test_symmetry_is_kept_step_by_step_as_ase_keeps_it(predictor) -> None:
    batch = StructureBatch.from_ase(images()[:2])
    found = relax(predictor, batch, fmax=1e-9, steps=5, cell=True, holding=hold_symmetry(batch), limits=None)
    for s, atoms in enumerate(images()[:2]):
        atoms.set_constraint(FixSymmetry(atoms))
        atoms.calc = GFMCalculator(predictor)
        FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-9, steps=5)
        assert found.batch.cell[s] == pytest.approx(np.array(atoms.cell), abs=1e-6)
        own = slice(*batch.ptr[s : s + 2])
        assert found.batch.positions[own] == pytest.approx(atoms.positions, abs=1e-6)
    far = relax(predictor, batch, 1e-9, 25, cell=True, holding=hold_symmetry(batch), limits=None, optimizer="lbfgs")
    for s in range(2):
        assert find_space_group(far.batch.slice(s, s + 1))[0] == find_space_group(batch.slice(s, s + 1))[0]
    assert np.abs(far.batch.positions - batch.positions).max() > 0.01


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), a=3.7, vacuum=6.0, periodic=True)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    return atoms


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_fixed_atoms_and_axes_stay(predictor, optimizer) -> None:
    atoms = slab()
    batch = StructureBatch.from_ase([atoms, bulk("Cu", cubic=True)])
    low = find_lowest(batch, 2.5)
    assert np.array_equal(np.flatnonzero(low[:13]), np.arange(8))
    shifted = atoms.copy()
    shifted.positions += 0.4 * shifted.cell[2]  # the slab crosses the boundary
    shifted.wrap()
    assert np.array_equal(find_lowest(StructureBatch.from_ase([shifted]), 2.5), low[:13])
    holding = join_holdings([hold_atoms(low), hold_axes(2, "xy")])
    found = relax(predictor, batch, 1e-9, 5, cell=True, holding=holding, limits=None, optimizer=optimizer)
    strain = np.linalg.solve(batch.cell[0], found.batch.cell[0])
    assert strain[2] == pytest.approx([0, 0, 1]) and np.abs(strain[:2, :2] - np.eye(2)).max() > 1e-5
    place = [b.positions[:13] @ np.linalg.inv(b.cell[0]) for b in (batch, found.batch)]
    assert place[1][:8] == pytest.approx(place[0][:8], abs=1e-12), "with the cell, and no further"
    assert np.abs(place[1] - place[0])[8:].max() > 1e-4
    if optimizer == "fire":
        peer = atoms.copy()
        peer.set_constraint(FixAtoms(np.flatnonzero(low[:13])))
        peer.calc = GFMCalculator(predictor)
        FIRE(peer, logfile=None).run(fmax=1e-9, steps=5)
        own = relax(predictor, batch.slice(0, 1), 1e-9, 5, holding=hold_atoms(low[:13]), limits=None)
        assert own.batch.positions == pytest.approx(peer.positions, abs=1e-7)


def test_what_has_no_symmetry_is_free_and_axes_are_checked() -> None:
    broken = bulk("Cu")
    broken.positions[0] = np.nan
    batch = StructureBatch.from_ase([Atoms("H2", [[0, 0, 0], [0.7, 0, 0]]), Atoms(), broken])
    held = hold_symmetry(batch)
    forces = np.arange(9.0).reshape(3, 3)
    assert np.array_equal(held.hold_forces(forces), forces)
    assert join_holdings([]) is None
    for axes in ("xw", "xx", ""):
        with pytest.raises(UsageError, match="cell axes must be of x, y and z"):
            hold_axes(1, axes)
