"""Labels that files state under many names, in many units: right values, and a word for all that is not taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import write

from atomsieve.cli.main import run
from atomsieve.errors import UsageError
from atomsieve.structures import open_structures
from atomsieve.structures.block import build_block
from atomsieve.structures.item import Item
from atomsieve.structures.labels import FoundLabels, LabelKeys, LabelTally, find_labels
from atomsieve.structures.units import Units

CUBE = np.eye(3) * 3.0


def item(numbers: list[int], cell: np.ndarray = CUBE, stated: Units | None = None, **values: Any) -> Item:
    """Return a structure: arrays in the keyword `arrays`, everything else is info."""
    arrays = values.pop("arrays", {})
    pbc = np.full(3, bool(cell.any()))
    positions = np.arange(3.0 * len(numbers)).reshape(-1, 3)
    where = f"f: {values.get('k', len(numbers))}"
    return Item(np.array(numbers), positions, cell, pbc, where, values, {}, arrays, units=stated or Units())


def find(
    items: list[Item], keys: LabelKeys | None = None, given: Units | None = None
) -> tuple[FoundLabels, LabelTally]:
    tally = LabelTally()
    return find_labels(build_block(items), keys or LabelKeys(), given or Units(), tally), tally


def test_units_that_a_file_states_are_applied() -> None:
    stated = Units(energy="hartree", forces="hartree/bohr", origin="the file")
    one = item([1, 1], energy=-7.8915, stated=stated, arrays={"forces": np.full((2, 3), 0.01)})
    found, tally = find([one])
    assert found.values["energy"][0] == pytest.approx(-214.739, abs=1e-3)
    assert found.values["forces"][0, 0] == pytest.approx(0.514221, abs=1e-6)
    assert list(tally.describe_units()) == ["energy hartree, forces hartree/bohr (stated by the file)"]
    assert tally.manifest_notes()["units in the files"] == next(tally.describe_units())


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("hartree", units.Hartree),
        ("Ha", units.Hartree),
        ("Ry", units.Rydberg),
        ("kcal/mol", units.kcal / units.mol),
        ("kJ/mol", units.kJ / units.mol),
        ("meV", 1e-3),
    ],
)
def test_units_of_energy_are_those_of_ase(unit: str, factor: float) -> None:
    found, _ = find([item([8], energy=2.5)], given=Units.parse(f"energy={unit}"))
    assert found.values["energy"][0] == pytest.approx(2.5 * factor, rel=1e-8)


@pytest.mark.parametrize(
    ("text", "sign", "factor"),
    [
        ("stress=GPa", None, units.GPa),
        ("stress=kbar", -1, -0.1 * units.GPa),
        ("stress=hartree/bohr^3", None, units.Hartree / units.Bohr**3),
        ("stress=bar", None, units.bar),
    ],
)
def test_units_of_stress(text: str, sign: int | None, factor: float) -> None:
    found, _ = find([item([8], stress=np.eye(3) * 2)], given=Units.parse(text, sign))
    assert found.values["stress"][0, 0, 0] == pytest.approx(2 * factor, rel=1e-8)


def test_forces_follow_from_energy_and_length_alone() -> None:
    given = Units.parse("energy=hartree,length=bohr")
    found, tally = find([item([1, 1], energy=-1.17, arrays={"forces": np.full((2, 3), 0.01)})], given=given)
    assert found.values["forces"][0, 0] == pytest.approx(0.01 * units.Hartree / units.Bohr, rel=1e-8)
    assert list(tally.describe_units()) == ["energy hartree, length bohr, forces hartree/bohr (--unit)"]


def test_energies_per_atom() -> None:
    found, tally = find([item([1, 1, 8], energy=-1.0)], given=Units.parse("energy=hartree/atom"))
    assert found.values["energy"][0] == pytest.approx(-3 * units.Hartree, rel=1e-8)
    assert Units.parse("energy=hartree/atom").describe()["forces"] == "hartree/angstrom"
    assert tally.common_units() == Units(energy="hartree/atom")


def test_the_user_goes_before_the_file_and_it_is_said() -> None:
    stated = Units(energy="hartree", origin="the file")
    found, tally = find([item([8], energy=1.0, stated=stated)], given=Units.parse("energy=rydberg"))
    assert found.values["energy"][0] == pytest.approx(units.Rydberg, rel=1e-8)
    (note,) = tally.list_notes()
    assert note == "--unit says energy in rydberg, 1 structure states hartree; --unit was taken"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("energy=hartee", r"unknown unit of energy 'hartee' \(did you mean 'hartree'\?\); allowed: ev, hartree"),
        ("enrgy=eV", r"unknown quantity with a unit 'enrgy' \(did you mean 'energy'\?\); allowed: energy, forces"),
        ("forces=hartree/bor", r"unknown unit of force 'hartree/bor' \(did you mean 'hartree/bohr'\?\)"),
        ("stress=Gpa2", "unknown unit of stress"),
        ("length=", "unknown unit of length"),
        ("energy", "units read like energy=hartree"),
        ("energy=eV,energies=eV", "given twice"),
    ],
)
def test_units_that_do_not_exist_are_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Units.parse(text)
    assert "\n" not in str(caught.value)


def test_a_virial_is_minus_stress_times_volume() -> None:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.08, seed=1)
    atoms.calc = EMT()
    expected = atoms.get_stress(voigt=False)
    virial = -atoms.get_volume() * expected
    given = Item(atoms.numbers, atoms.positions, np.array(atoms.cell), atoms.pbc, "f", {"virial": virial})
    given.arrays["force"] = atoms.get_forces()
    found, tally = find([given, item([29, 29], cell=np.zeros((3, 3)), virial=np.eye(3))])
    np.testing.assert_allclose(found.values["stress"][0], expected, atol=1e-12)
    assert np.array_equal(found.values["forces"][: len(atoms)], atoms.get_forces())
    assert found.has["stress"].tolist() == [True, False]
    assert tally.taken["stress", "-virial/volume"] == 1
    assert list(tally.list_notes()) == ["1 structure has virial, not taken: a virial needs a cell to become a stress"]


def test_a_virial_in_other_units() -> None:
    given = Units.parse("energy=hartree,length=bohr")
    found, tally = find([item([29], virial=np.eye(3))], given=given)
    assert found.values["stress"][0, 0, 0] == pytest.approx(-units.Hartree / 27 / units.Bohr**3, rel=1e-8)
    assert next(tally.describe_units()) == "length bohr, virial hartree (--unit)"


def test_six_numbers_are_the_same_tensor_as_nine() -> None:
    full = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])
    found, _ = find([item([8], stress=[1, 2, 3, 4, 5, 6]), item([8], stress=full), item([8], stress=full.ravel())])
    assert np.array_equal(found.values["stress"], np.stack([full] * 3))


def test_what_looks_like_a_label_is_offered_by_its_option() -> None:
    arrays = {
        "forces": np.zeros((2, 3)),
        "force_dft": np.zeros((2, 3)),
        "grad": np.zeros((2, 3)),
        "vel": np.ones((2, 3)),
    }
    info = {
        "energy": -1.0,
        "E": -2.0,
        "formation_energy": 0.1,
        "max_force": 1.0,
        "my stress": np.eye(3),
        "dipole": [0, 0, 1],
    }
    _, tally = find([item([1, 1], **info, has_forces=True, arrays=arrays)] * 3)
    assert {(key, shape, count, option) for key, shape, count, option in tally.list_offers()} == {
        ("force_dft", "3 per atom", 3, "--forces-key force_dft"),
        ("grad", "3 per atom", 3, "--forces-key grad --unit forces=-eV/angstrom"),
        ("E", "number", 3, "--energy-key E"),
        ("my stress", "3x3", 3, "--stress-key 'my stress'"),
    }
    assert tally.list_others() == ["dipole", "formation_energy", "has_forces", "max_force", "vel"]
    assert "3 structures have an array force_dft (3 per atom), not taken: --forces-key force_dft" in tally.list_notes()
    assert [row[0] for row in tally.list_offers(known=["E"], settled=["forces"])] == ["my stress"]


def test_two_names_of_one_label() -> None:
    both = item([8], energy=-1.0, REF_energy=-2.0)
    same = item([8], energy=-1.0, REF_energy=-1.0)
    found, tally = find([both, same, item([8], REF_energy=-3.0)])
    assert found.values["energy"].tolist() == [-1, -1, -3]
    assert tally.taken == {("energy", "energy"): 2, ("energy", "REF_energy"): 1}
    notes = list(tally.list_notes())
    assert notes[0].startswith("energy comes from several keys, so it may mix quantities: energy (2), REF_energy (1)")
    assert notes[1].startswith("1 structure has energy and REF_energy, with different values: energy was taken")
    found, tally = find([both, same], LabelKeys(energy="REF_energy"))
    assert found.values["energy"].tolist() == [-2, -1]


def test_structures_that_lack_the_key_of_the_user_are_told() -> None:
    _, tally = find([item([8], free_energy=-1.1, energy=-1.0), item([8], energy=-1.0)], LabelKeys(energy="free_energy"))
    assert list(tally.list_notes(settled=["energy"])) == [
        "1 structure has energy, not taken: they lack free_energy, which --energy-key names"
    ]


def test_the_free_energy_is_taken_only_if_asked() -> None:
    one = item([8], energy=-1.0, free_energy=-1.1)
    found, tally = find([one])
    assert found.values["energy"][0] == -1.0
    assert "free_energy (number), not taken; with smearing, forces belong to it: --energy-key" in next(
        tally.list_notes()
    )
    assert tally.manifest_notes() == {
        "label keys": "energy from energy (1)",
        "labels not taken": "free_energy (number, 1)",
    }
    found, tally = find([one], LabelKeys(energy="free_energy"))
    assert found.values["energy"][0] == -1.1
    assert tally.manifest_notes()["label keys"] == "energy from free_energy (1)"


def test_values_of_atoms_are_no_total() -> None:
    items = [
        item([8, 1, 1], arrays={"charge": np.array([-0.8, 0.4, 0.4]), "spin": np.zeros(3)}),
        item([8], arrays={"charge": np.array([-0.8])}),  # a single atom too
        item([8], charge=[-0.8]),  # nobody says whether this is of the atom or of the structure
    ]
    found, tally = find(items)
    assert not found.values
    assert tally.missed["charge", "values of atoms are no total charge"] == 3
    assert tally.missed["spin", "values of atoms are no multiplicity"] == 1
    assert not found.reasons
    found, _ = find([item([8], charge=[-1.0]), item([8, 1], charge=[-1.0])])  # one number for two atoms: the total
    assert found.values["charge"].tolist() == [-1, -1]


def test_what_is_left_of_summing_is_zero_and_two_charges_are_refused() -> None:
    found, _ = find([item([29], charge=-1.776e-15), item([29], charge=2.9999999999)])
    assert found.values["charge"].tolist() == [0, 3]
    assert np.copysign(1, found.values["charge"][0]) == 1
    found, _ = find([item([29], charge=0, total_charge=1), item([29], charge=1, total_charge=1)])
    assert found.reasons == {0: ("two values of charge", "total_charge is np.int64(1)")}


def test_odd_charges_and_multiplicities_are_kept_and_counted() -> None:
    stated = [(0, 0), (0, -1), (0, 1.5), (0, 2), (1, 2), (0, 1), (1, 1), (40, 1), (0.5, 1), (0, 13), (None, 2)]
    items = [item([8, 1, 1], k=k, charge=charge, spin=spin) for k, (charge, spin) in enumerate(stated)]
    found, tally = find(items)
    assert found.values["spin"].tolist() == [spin for _, spin in stated]
    wrong = "a multiplicity of the wrong parity for the number of electrons"
    assert tally.doubts == {
        "multiplicity 0, which is none (fairchem writes 0 where it was not set)": 1,
        "a negative multiplicity": 1,
        "a multiplicity that is no whole number (2S+1 is meant)": 1,
        wrong: 2,
        "a total charge above the sum of the atomic numbers": 1,
        "a total charge that is no whole number": 1,
        "more unpaired electrons than electrons": 1,
        "a multiplicity of the wrong parity for the neutral structure (no charge is stated)": 1,
    }
    assert tally.first[wrong] == "f: 3: 2"
    assert not found.reasons


def test_tallies_of_parts_add_up() -> None:
    first, second = [item([8], energy=-1.0, E=1.0, spin=0)], [item([8], energy=-1.0, E=1.0, spin=0)] * 2
    _, one = find(first)
    _, two = find(second)
    _, both = find(first + second)
    one.merge(two)
    assert one == both


# -- as a user calls it ------------------------------------------------------------------------------------------------


def test_kcal_without_its_unit_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    energies = {"H2O": -76.42, "CH4": -40.52, "CH3CH2OH": -155.03, "C6H6": -232.25, "NH3": -56.56}  # B3LYP, Hartree
    images = []
    for name, energy in energies.items():
        images.append(molecule(name))
        images[-1].info["Energy_kcal"] = energy * units.Hartree / (units.kcal / units.mol)
    write(tmp_path / "x.extxyz", images)
    call = ["data", "convert", str(tmp_path / "x.extxyz"), str(tmp_path / "o.bp"), "--source=x", "--level-of-theory=y"]
    assert run("atomsieve", [*call, "--energy-key=Energy_kcal"]) == 0
    shown = capsys.readouterr().out
    assert "does not fit: x: energies are 23" in shown
    assert "(23.0605) times the total energies in eV of all electrons of their atoms" in shown
    assert "these fit: --unit energy=kcal/mol" in shown
    assert run("atomsieve", [*call, "--energy-key=Energy_kcal", "--unit=energy=kcal/mol", "--overwrite"]) == 0
    assert "does not fit" not in capsys.readouterr().out


def test_kcal_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.xyz").write_text('1\nProperties=species:S:1:pos:R:3 Energy_kcal=-100.0 pbc="F F F"\nHe 0 0 0\n')
    call = ["data", "convert", str(tmp_path / "x.xyz"), str(tmp_path / "o.bp"), "--source=x", "--level-of-theory=y"]
    assert run("atomsieve", call) == 0
    shown = capsys.readouterr().out
    assert "labels: none" in shown
    assert "1 structure has a key Energy_kcal (number), not taken: --energy-key Energy_kcal" in shown
    assert run("atomsieve", [*call, "--overwrite", "--energy-key=Energy_kcal", "--unit", "energy=kcal/mol"]) == 0
    shown = capsys.readouterr().out
    assert "labels: energy on 1 (from Energy_kcal), forces on 0, stress on 0" in shown
    assert "units: energy kcal/mol (--unit)" in shown
    energy = open_structures(tmp_path / "o.bp").read(0, 1).energy
    assert energy is not None
    assert energy[0] == pytest.approx(-100 * units.kcal / units.mol, rel=1e-8)


def test_a_virial_is_not_taken_for_a_stress() -> None:
    with pytest.raises(UsageError, match="--virial-key virial"):
        LabelKeys(stress="virial")
    with pytest.raises(UsageError, match="--stress-key REF_stress"):
        LabelKeys(virial="REF_stress")
