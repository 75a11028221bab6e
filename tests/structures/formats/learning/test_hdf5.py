"""HDF5 data sets: layouts of ANI, COMP6, SPICE, QM7-X, DeePMD-kit, and of files that state their units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.units import Bohr, Hartree

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.formats import ReadRequest, read_blocks
from atomsieve.structures.formats.learning.hdf5 import count_groups
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.units import Units
from tests.structures.formats.learning.samples import (
    SOURCE,
    check_by_emt,
    convert_and_read,
    convert_file,
    distort,
    read_dataset,
    read_with,
)

METHANE = [distort(molecule("CH4"), k) for k in range(5)]
ETHANE = [distort(molecule("C2H6"), k) for k in range(3)]


def stack(images: list[Atoms], energy: float, length: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, positions, energies and forces of conformers, in units of so many eV and Angstrom."""
    return (
        images[0].numbers,
        np.stack([a.positions for a in images]) / length,
        np.array([a.get_potential_energy() for a in images]) / energy,
        np.stack([a.get_forces() for a in images]) / energy * length,
    )


def write_ani1x(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for images, name in ((METHANE, "C1H4"), (ETHANE, "C2H6")):
            numbers, positions, energies, forces = stack(images, Hartree, 1.0)
            group = file.create_group(name)
            group["atomic_numbers"] = numbers.astype(np.uint8)
            group["coordinates"] = positions
            group["wb97x_dz.energy"] = energies
            group["wb97x_dz.forces"] = forces
            group["wb97x_tz.energy"] = energies - 1
            group["ccsd(t)_cbs.energy"] = np.where(np.arange(len(images)) == 0, energies - 2, np.nan)
            group["wb97x_dz.dipole"] = np.zeros((len(images), 3))
    return path


def test_ani1x(tmp_path: Path) -> None:
    file = write_ani1x(tmp_path / "ani1x.h5")
    report = convert_file(file, tmp_path / "o.bp")
    batch = read_dataset(tmp_path / "o.bp")
    assert batch.counts.tolist() == [5] * 5 + [8] * 3
    assert not batch.pbc.any()
    check_by_emt(batch)
    found = report.tally.found
    assert found.taken["energy", "wb97x_dz.energy"] == 8 and found.taken["forces", "wb97x_dz.forces"] == 8
    assert found.units["energy", "hartree", "data set ANI-1x"] == 8
    (note,) = report.tally.notes
    assert "ccsd(t)_cbs.energy, wb97x_dz.dipole, wb97x_tz.energy" in note


def test_another_level_of_theory_takes_no_forces_of_the_first(tmp_path: Path) -> None:
    file = write_ani1x(tmp_path / "ani1x.h5")
    batch = convert_and_read(file, keys=LabelKeys(energy="ccsd(t)_cbs.energy"))
    assert batch.has_energy.tolist() == [True] + [False] * 4 + [True] + [False] * 2, "NaN stands for none"
    np.testing.assert_allclose(batch.energy[0], METHANE[0].get_potential_energy() - 2 * Hartree, rtol=1e-12)
    assert batch.forces is None
    batch = convert_and_read(file, keys=LabelKeys(energy="wb97x_dz.energy"))
    assert batch.has_forces.all(), "the same level as the data set's own"
    with pytest.raises(UsageError, match=r"no structure has 'wb97x_dz.enrgy' \(did you mean 'wb97x_dz.energy'"):
        convert_file(file, tmp_path / "o.bp", keys=LabelKeys(energy="wb97x_dz.enrgy"))


def test_ani2x_has_numbers_for_each_conformer(tmp_path: Path) -> None:
    numbers, positions, energies, forces = stack(METHANE, Hartree, 1.0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("005")
        group["species"], group["coordinates"] = np.tile(numbers, (5, 1)), positions
        group["energies"], group["forces"] = energies, forces
    batch = convert_and_read(tmp_path / "x.h5")
    check_by_emt(batch)


def write_comp6(path: Path, *, forces: bool) -> Path:
    _, positions, energies, gradient = stack(METHANE, Hartree, 1.0)
    with h5py.File(path, "w") as file:
        group = file.create_group("set/molecule-0")
        group["species"] = np.array(["C"] + ["H"] * 4, "S1")
        group["coordinates"], group["energies"] = positions, energies
        if forces:
            group["forces"] = -gradient
    return path


def test_gradients_of_comp6_need_their_sign(tmp_path: Path) -> None:
    check_by_emt(convert_and_read(write_comp6(tmp_path / "a.h5", forces=True), units=COMP6))
    with pytest.raises(UsageError, match=r"unit of forces \(-hartree/angstrom for the gradients of COMP6"):
        convert_file(tmp_path / "a.h5", tmp_path / "o.bp")
    batch = convert_and_read(write_comp6(tmp_path / "b.h5", forces=False))
    np.testing.assert_allclose(batch.energy, [a.get_potential_energy() for a in METHANE], rtol=1e-12)


COMP6 = Units.parse("forces=-hartree/angstrom")


def test_spice_has_gradients_in_atomic_units(tmp_path: Path) -> None:
    numbers, positions, energies, forces = stack(METHANE, Hartree, Bohr)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        group = file.create_group("methane")
        group["atomic_numbers"] = numbers
        for key, values, unit in (
            ("conformations", positions, "bohr"),
            ("dft_total_energy", energies, "hartree"),
            ("dft_total_gradient", -forces, "hartree/bohr"),
            ("formation_energy", energies + 1, "hartree"),
        ):
            group[key] = values
            group[key].attrs["units"] = unit
        group.create_dataset("subset", data=["SPICE PubChem"], dtype=h5py.string_dtype())
        group.create_dataset("smiles", data=["C"], dtype=h5py.string_dtype())
    batch = convert_and_read(tmp_path / "x.hdf5")
    check_by_emt(batch)
    np.testing.assert_allclose(batch.positions[:5], METHANE[0].positions, atol=1e-12)
    report = convert_file(tmp_path / "x.hdf5", tmp_path / "o.bp", source_key="subset")
    assert {source.name for source in report.sources} == {"SPICE PubChem"}


def test_qm7x_has_a_group_for_each_conformer(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1000.hdf5", "w") as file:
        for name, images in (("1", METHANE), ("2", ETHANE)):
            for k, atoms in enumerate(images):
                group = file.create_group(f"{name}/Geom-m{name}-i1-c{k}")
                group["atNUM"], group["atXYZ"] = atoms.numbers, atoms.positions
                group["ePBE0+MBD"] = np.array([atoms.get_potential_energy()])
                group["totFOR"] = atoms.get_forces()
                group["ePBE0"], group["hCHG"] = np.array([-1.0]), np.zeros(len(atoms))
    assert count_groups(tmp_path / "1000.hdf5") == 2
    blocks = list(read_blocks(ReadRequest(tmp_path / "1000.hdf5"), "hdf5"))
    assert [(len(b), b.start, b.stop) for b in blocks] == [(5, 0, 1), (3, 1, 2)]
    (second,) = read_blocks(ReadRequest(tmp_path / "1000.hdf5", start=1, stop=2), "hdf5")
    np.testing.assert_array_equal(second.positions, blocks[1].positions)
    check_by_emt(convert_and_read(tmp_path / "1000.hdf5"))
    batch = convert_and_read(tmp_path / "1000.hdf5", keys=LabelKeys(energy="ePBE0"))
    assert batch.energy.tolist() == [-1.0] * 8 and batch.forces is None


def write_general(path: Path, **units: str | None) -> Path:
    salt = [distort(bulk("Cu", cubic=True), k) for k in range(3)]
    arrays = {
        "positions": np.stack([a.positions for a in salt]),
        "cell": np.stack([a.cell.array for a in salt]),
        "energy": np.array([a.get_potential_energy() for a in salt]),
        "forces": np.stack([a.get_forces() for a in salt]),
        "stress": np.stack([a.get_stress(voigt=False) for a in salt]),
    }
    with h5py.File(path, "w") as file:
        file["atomic_numbers"], file["pbc"] = salt[0].numbers, np.ones(3, bool)
        file["charge"] = np.array([0, 1, 2])
        for key, values in arrays.items():
            file[key] = values
            if units.get(key) is not None:
                file[key].attrs["units"] = units[key]
    return path


STATED = {"positions": "Angstrom", "energy": "eV", "forces": "eV/Ang", "stress": "eV/Ang/Ang/Ang"}


def test_a_file_that_states_its_units(tmp_path: Path) -> None:
    batch = convert_and_read(write_general(tmp_path / "x.h5", **STATED))
    assert batch.pbc.all() and batch.charge.tolist() == [0, 1, 2]
    check_by_emt(batch)


@pytest.mark.parametrize("key", ["positions", "energy", "forces", "stress"])
def test_a_unit_that_is_not_stated_is_asked_for(tmp_path: Path, key: str) -> None:
    file = write_general(tmp_path / "x.h5", **{**STATED, key: None})
    quantity = {"positions": "length"}.get(key, key)
    with pytest.raises(UsageError, match=rf"unit of {quantity} .*--unit {quantity}=UNIT"):
        convert_file(file, tmp_path / "o.bp")
    unit = {"length": "angstrom", "energy": "eV", "forces": "eV/angstrom", "stress": "eV/angstrom^3"}[quantity]
    check_by_emt(convert_and_read(file, units=Units.parse(f"{quantity}={unit}")))


def test_systems_of_deepmd_in_one_file(tmp_path: Path) -> None:
    """Groups as dpdata 1.1.0 writes them (`deepmd/hdf5`)."""
    numbers, positions, energies, forces = stack(METHANE, 1.0, 1.0)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        group = file.create_group("C1H4")
        group["type.raw"], group["nopbc"] = (numbers == 1).astype(int), True
        group["type_map.raw"] = np.array(["C", "H"], "S1")
        for k, rows in enumerate((slice(0, 3), slice(3, 5))):
            one = group.create_group(f"set.{k:03d}")
            one["coord.npy"], one["force.npy"] = positions[rows].reshape(-1, 15), forces[rows].reshape(-1, 15)
            one["energy.npy"], one["box.npy"] = (
                energies[rows],
                np.tile(np.eye(3).reshape(-1) * 100, (len(energies[rows]), 1)),
            )
    batch = convert_and_read(tmp_path / "x.hdf5")
    assert len(batch) == 5 and not batch.cell.any()
    check_by_emt(batch)


# -- damage ------------------------------------------------------------------------------------------------------------


def soft(file: h5py.File, path: Path) -> None:
    file["C1H4/charge"] = h5py.SoftLink("/C2H6/coordinates")


def external(file: h5py.File, path: Path) -> None:
    file["C1H4/other"] = h5py.ExternalLink(str(path.with_name("secret.h5")), "/x")


def raw(file: h5py.File, path: Path) -> None:
    path.with_name("secret").write_bytes(bytes(8 * 15))
    shape = (5,)
    file["C1H4"].create_dataset("charge", shape, "f8", external=[(str(path.with_name("secret")), 0, 40)])


def virtual(file: h5py.File, path: Path) -> None:
    layout = h5py.VirtualLayout((5,), "f8")
    layout[:] = h5py.VirtualSource(str(path.with_name("secret.h5")), "x", (5,))
    file["C1H4"].create_virtual_dataset("charge", layout)


def huge(file: h5py.File, path: Path) -> None:
    del file["C1H4/coordinates"]
    file["C1H4"].create_dataset("coordinates", (10**12, 5, 3), "f8", chunks=(1000, 5, 3))


def cycle(file: h5py.File, path: Path) -> None:
    file["C1H4/inner"] = file["C1H4"]


def shape(file: h5py.File, path: Path) -> None:
    del file["C1H4/atomic_numbers"]
    file["C1H4/atomic_numbers"] = np.ones(4, int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (soft, "/C1H4/charge is a link to another place"),
        (external, "/C1H4/other is a link to another place"),
        (raw, "charge keeps its data in another file"),
        (virtual, "charge keeps its data in another file"),
        (huge, r"coordinates claims 120,000,000,000,000 bytes, but the file holds 0 of it"),
        (cycle, "the group lies in more than one place of the file"),
        (shape, r"atomic_numbers has shape \(4,\), which does not fit coordinates of 5 conformers with 5 atoms"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: Callable[[h5py.File, Path], None], message: str) -> None:
    path = write_ani1x(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        change(file, path)
    with pytest.raises(DataError, match=message):
        convert_file(path, tmp_path / "o.bp")


def test_files_that_are_no_data_set(tmp_path: Path) -> None:
    path = write_ani1x(tmp_path / "x.h5")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cut.h5 is not a readable HDF5 file: .*truncated"):
        convert_file(tmp_path / "cut.h5", tmp_path / "o.bp")
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    with pytest.raises(DataError, match=r"text.h5 is not a readable HDF5 file"):
        convert_file(tmp_path / "text.h5", tmp_path / "o.bp")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a/weights"] = np.zeros(3)
    with pytest.raises(DataError, match=r"holds no structures that are understood: .*; its keys: weights"):
        convert_file(tmp_path / "other.h5", tmp_path / "o.bp")


def test_elements_that_are_none(tmp_path: Path) -> None:
    with h5py.File(write_comp6(tmp_path / "x.h5", forces=False), "a") as file:
        file["set/molecule-0/species"][0] = b"X"
    with pytest.raises(DataError, match="species holds 'X', which is no element"):
        read_with(ReadRequest(tmp_path / "x.h5"), "hdf5")


def test_calculator_of_the_tests_is_one() -> None:
    """Forces of ASE's EMT, by which the files of these tests are checked, are minus the gradient of its energy."""
    atoms = METHANE[0].copy()
    atoms.calc = EMT()
    force, step = atoms.get_forces()[1, 2], 1e-5
    ends = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.calc = EMT()
        moved.positions[1, 2] += sign * step
        ends.append(moved.get_potential_energy())
    assert abs((ends[1] - ends[0]) / (2 * step) - force) < 1e-5
    assert SOURCE.name == "a"
