"""Total charge and multiplicity: the same from objects as from files, wherever they are stated."""

from __future__ import annotations

import io

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write
from pymatgen.core import DummySpecies, Lattice, Molecule, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import StructureBatch
from atomsieve.structures.adapters.conditions import charge_and_spin, copy_atoms
from atomsieve.structures.batch import check_batch
from atomsieve.structures.block import build_block
from atomsieve.structures.conversion.validation import BlockValidator
from atomsieve.structures.item import item_from_atoms
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.pyg_adapter import from_pyg

NAN = float("nan")
STATED = {
    "nothing": ({}, NAN, NAN),
    "fairchem": ({"charge": -1, "spin": 2}, -1, 2),
    "QCSchema": ({"total_charge": 1.0, "multiplicity": "3"}, 1, 3),
    "pymatgen": ({"charge": np.array([2]), "spin_multiplicity": np.int64(1)}, 2, 1),
    "twice, and the same": ({"charge": 1, "total_charge": 1.0, "spin": 2, "multiplicity": 2}, 1, 2),
    "a residue of sums": ({"charge": -1.776e-15, "spin": 1.0000000002}, 0, 1),
    "values of atoms": ({"charge": [0.4, -0.4], "spin": np.array([0.1, 0.2])}, NAN, NAN),
    "values of atoms and a total": ({"charge": [0.4, -0.4], "total_charge": 1}, 1, NAN),
    "none": ({"charge": None, "spin": NAN}, NAN, NAN),
    "not of whole electrons": ({"charge": 0.5}, 0.5, NAN),
}
REFUSED = {
    "text": ({"charge": "neutral"}, "'charge' must be a number, got 'neutral'"),
    "two charges": ({"charge": 0, "total_charge": 1}, "two values of the total charge: info 'charge' is 0, info 'tot"),
    "two spins": ({"spin": 0, "spin_multiplicity": 1}, "two values of the multiplicity: .* is 0, .* is 1; keep one"),
}


def read_as_file(atoms: Atoms) -> StructureBatch:
    return BlockValidator(LabelKeys())(build_block([item_from_atoms(atoms, "file")])).batch


def first(values: np.ndarray | None) -> float:
    return NAN if values is None else float(values[0])


@pytest.mark.parametrize("kind", list(STATED))
def test_objects_state_what_files_state(kind: str) -> None:
    info, charge, spin = STATED[kind]
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.4]], info=info)
    for batch in (StructureBatch.from_ase(atoms), read_as_file(atoms)):
        found = first(batch.charge), first(batch.spin)
        assert np.array_equal(found, np.float32([charge, spin]), equal_nan=True)


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_cannot_be_settled_is_refused(kind: str) -> None:
    info, message = REFUSED[kind]
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.4]], info=info)
    with pytest.raises(DataError, match=f"structure 1 of 2: .*{message}"):
        StructureBatch.from_ase([Atoms("H"), atoms])
    assert len(read_as_file(atoms)) == 0


def test_attributes_of_adapters_are_read_and_copied() -> None:
    """ASE's own copy drops attributes; pymatgen's adapter states charge and multiplicity nowhere else."""
    hydroxide = AseAtomsAdaptor.get_atoms(Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]], charge=-1))
    assert charge_and_spin(hydroxide) == (-1, 1)
    assert np.isnan(charge_and_spin(hydroxide.copy())).all()
    assert charge_and_spin(copy_atoms(hydroxide)) == (-1, 1)
    assert hydroxide.info == {}
    batch = StructureBatch.from_ase(hydroxide)
    assert (batch.charge[0], batch.spin[0]) == (-1, 1)
    hydroxide.info["charge"] = 0
    with pytest.raises(DataError, match="info 'charge' is 0, attribute 'charge' is -1"):
        StructureBatch.from_ase(hydroxide)


def test_values_of_atoms_are_no_total() -> None:
    atoms = Atoms("H", magmoms=[1.0], charges=[0.3])
    atoms.arrays["charge"] = np.array([1.0])
    atoms.set_array("spin", np.array([2.0]))
    batch = StructureBatch.from_ase(atoms)
    assert batch.charge is None and batch.spin is None
    with pytest.raises(
        DataError, match=r"info 'charge' is a list of one number, \[1.0\], which may be that of the one"
    ):
        StructureBatch.from_ase(Atoms("H", info={"charge": [1.0]}))
    decorated = Structure(Lattice.cubic(3), ["Na"], [[0, 0, 0]], site_properties={"charge": [0.9], "magmom": [1.0]})
    assert StructureBatch.from_pymatgen(decorated).charge is None
    assert StructureBatch.from_ase(AseAtomsAdaptor.get_atoms(decorated)).charge is None


def test_objects_of_pyg_state_the_total_under_the_same_names() -> None:
    pytest.importorskip("torch_geometric")
    from torch import tensor
    from torch_geometric.data import Data

    def data(**stated) -> Data:
        return Data(z=tensor([1, 9]), pos=tensor([[0.0, 0, 0], [0, 0, 0.9]]), **stated)

    batch = from_pyg([data(total_charge=tensor([1]), multiplicity=2), data(charge=tensor([0.4, -0.4])), data()])
    assert np.array_equal(batch.charge, np.float32([1, NAN, NAN]), equal_nan=True)
    assert np.array_equal(batch.spin, np.float32([2, NAN, NAN]), equal_nan=True)
    with pytest.raises(DataError, match="two values of the total charge: object 1: 'charge' is 0"):
        from_pyg([data(), data(charge=0, total_charge=1)])


def test_atomic_numbers_that_no_byte_holds_become_no_other_element() -> None:
    batch = StructureBatch.from_ase(Atoms(numbers=[300, 1], positions=np.eye(3)[:2]))
    assert batch.numbers.tolist() == [255, 1]


def test_results_of_other_positions_are_no_labels() -> None:
    """A calculator keeps its results when its atoms move."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    energy = atoms.get_potential_energy()
    atoms.set_initial_magnetic_moments([1.0] * 4)
    atoms.set_constraint(FixAtoms([0]))
    assert StructureBatch.from_ase(atoms).energy.tolist() == [energy]
    atoms.rattle(0.1)
    with pytest.warns(UserWarning, match=r"structure 0 of 1 changed after .* left out \(1 such"):
        batch = StructureBatch.from_ase(atoms)
    assert batch.energy is None


ALLOY = """data_alloy
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 4.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
O1 O 0.5 0.5 0.5 1.0
Cu1 Cu 0 0 0 0.5
Au1 Au 0 0 0 SHARE
"""


def test_partly_occupied_sites_are_no_atoms() -> None:
    """ASE reads half copper and half gold as gold."""
    alloy = read(io.StringIO(ALLOY.replace("SHARE", "0.5")), format="cif")
    assert alloy.get_chemical_symbols() == ["O", "Au"]
    message = r"structure 1 of 2: atom 1 stands for a partly occupied site \(.*Cu 0.5.*\), which has no energy; order"
    with pytest.raises(DataError, match=message):
        StructureBatch.from_ase([Atoms("H"), alloy])
    with pytest.raises(DataError, match="atom 4 stands for"):
        StructureBatch.from_ase(alloy.repeat((2, 2, 1))[[0, 2, 4, 6, 1, 3, 5, 7]])
    del alloy.info["occupancy"]
    assert StructureBatch.from_ase(alloy).numbers.tolist() == [8, 79]
    full = read(io.StringIO(ALLOY.replace("Cu1 Cu 0 0 0 0.5", "").replace("SHARE", "1.0")), format="cif")
    assert "occupancy" in full.info and StructureBatch.from_ase(full).numbers.tolist() == [8, 79]


# -- pymatgen --------------------------------------------------------------------------------------------------------


def test_structures_and_molecules_of_pymatgen() -> None:
    slab = Structure(
        Lattice([[3, 0, 0], [0, 3, 0], [1, 0, 20]], pbc=(True, True, False)), ["Cu"] * 2, [[0] * 3, [0.5] * 3]
    )
    charged = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0] * 3, [0.5] * 3], charge=1)
    radical = Molecule(["C", "H", "H", "D"], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    given = [slab, charged * (2, 2, 2), radical, Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]], charge=-1)]
    batch = StructureBatch.from_pymatgen(given, ids=[4, 3, 2, 1]).validate()
    assert batch.counts.tolist() == [2, 16, 4, 2] and batch.id.tolist() == [4, 3, 2, 1]
    assert batch.pbc.tolist() == [[True, True, False], [True] * 3, [False] * 3, [False] * 3]
    assert np.array_equal(batch.charge, np.float32([NAN, 8, 0, -1]), equal_nan=True)
    assert np.array_equal(batch.spin, np.float32([NAN, NAN, 2, 1]), equal_nan=True)
    assert batch.numbers[-6:].tolist() == [6, 1, 1, 1, 8, 1]
    for k, atoms in enumerate(AseAtomsAdaptor.get_atoms(one) for one in given):
        own = StructureBatch.from_ase(atoms)
        for name in ("numbers", "positions", "cell", "pbc"):
            assert np.array_equal(getattr(own, name), getattr(batch.slice(k, k + 1), name)), name
    assert len(StructureBatch.from_pymatgen([])) == 0
    assert len(StructureBatch.from_pymatgen(slab)) == 1


def test_a_sum_of_oxidation_states_is_no_total_charge() -> None:
    """doors: Cu6Au8 sums to -1.8e-15; LiFePO4 without one Li to -1, which JSON states as if it had been given."""
    alloy = Structure(Lattice.cubic(9), ["Cu"] * 6 + ["Au"] * 8, np.arange(42).reshape(14, 3) / 43)
    alloy.add_oxidation_state_by_element({"Cu": 8 / 3, "Au": -2})
    assert alloy.charge not in (0, None) and abs(alloy.charge) < 1e-14
    lithium = Structure(Lattice.cubic(9), ["Li", "Fe", "P", *"OOOO"], np.arange(21).reshape(7, 3) / 22)
    lithium.add_oxidation_state_by_element({"Li": 1, "Fe": 2, "P": 5, "O": -2})
    lithium.remove_sites([0])
    assert lithium.charge == -1
    assert StructureBatch.from_pymatgen([alloy, lithium]).charge is None
    again = Structure.from_dict(lithium.as_dict())
    assert again._charge == -1, "so that it looks as if it had been given"
    with pytest.warns(UserWarning, match="structure 0 of 1: its charge -1 is the sum of its oxidation states"):
        assert StructureBatch.from_pymatgen(again).charge is None
    again.properties["charge"] = -1
    with pytest.warns(UserWarning, match="sum of its oxidation states"):
        assert StructureBatch.from_pymatgen(again).charge.tolist() == [-1]
    lithium.set_charge(1)
    assert StructureBatch.from_pymatgen(lithium).charge.tolist() == [1], "which is not the sum"


def test_sites_without_one_element_are_refused_by_name() -> None:
    cube = Lattice.cubic(4)
    fine = Structure(cube, ["Cu"], [[0] * 3])
    shared = Structure(cube, [{"Cu": 0.5, "Au": 0.5}, "Cu"], [[0] * 3, [0.5] * 3])
    partly = Structure(cube, ["Cu", {"Li": 0.7}], [[0] * 3, [0.5] * 3])
    dummy = Structure(cube, [DummySpecies("X"), "Cu"], [[0] * 3, [0.5] * 3])
    nearly = Structure(cube, [{"Li": 0.9999}], [[0] * 3])
    assert StructureBatch.from_pymatgen(nearly).numbers.tolist() == [3]
    for one, message in (
        (shared, "structure 1 of 2: site 0 is .*Cu.*0.5.*; partly occupied sites"),
        (partly, "structure 1 of 2: site 1 is .*Li.*0.7.*; partly occupied"),
        (dummy, "structure 1 of 2: site 0 is X.*no element"),
        (fine.composition, "structure 1 of 2 is a Composition; give Structure or Molecule"),
        (None, "structure 1 of 2 is a NoneType"),
    ):
        with pytest.raises(DataError, match=message):
            StructureBatch.from_pymatgen([fine, one])
    with pytest.raises(DataError, match="1 ids for 2 structures"):
        StructureBatch.from_pymatgen([fine, fine], ids=[1])
    with pytest.raises(UsageError, match="from_pymatgen"):
        check_batch(fine)


def test_the_written_file_of_a_constrained_slab_reads_the_same(tmp_path) -> None:
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    slab.set_constraint(FixAtoms([0, 1]))
    slab.info |= {"charge": -1, "spin": 2}
    write(tmp_path / "slab.traj", slab)
    found = StructureBatch.from_ase(read(tmp_path / "slab.traj"))
    assert found.pbc.tolist() == [[True, True, False]] and (found.charge[0], found.spin[0]) == (-1, 2)
