"""NumPy archives of MD17, rMD17 and sGDML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import kcal, mol

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.formats.learning import frames
from atomsieve.structures.units import Units
from tests.structures.formats.learning.samples import check_by_emt, convert_and_read, convert_file, distort

IMAGES = [distort(molecule("CH4"), k) for k in range(5)]
KCAL = kcal / mol
POSITIONS = np.stack([atoms.positions for atoms in IMAGES])
ENERGIES = np.array([atoms.get_potential_energy() for atoms in IMAGES]) / KCAL
FORCES = np.stack([atoms.get_forces() for atoms in IMAGES]) / KCAL


def test_rmd17_is_in_kcal_per_mol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_ATOMS", 10)
    arrays = {"nuclear_charges": IMAGES[0].numbers, "coords": POSITIONS, "energies": ENERGIES, "forces": FORCES}
    np.savez(tmp_path / "a.npz", **arrays, old_energies=ENERGIES)
    batch = convert_and_read(tmp_path / "a.npz")
    check_by_emt(batch, 1e-5)  # the factor of CODATA 2014, ASE's kcal
    report = convert_file(tmp_path / "a.npz", tmp_path / "o.bp")
    assert report.tally.notes == {"with arrays that are not taken: old_energies": 5}


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_sgdml_states_its_units_or_they_are_asked_for(tmp_path: Path, pack: object) -> None:
    arrays = {"type": "d", "z": IMAGES[0].numbers, "R": POSITIONS, "E": ENERGIES[:, None], "F": FORCES}
    pack(tmp_path / "a.npz", **arrays, r_unit="Ang", e_unit="kcal/mol")
    check_by_emt(convert_and_read(tmp_path / "a.npz"), 1e-5)
    pack(tmp_path / "b.npz", **arrays)
    with pytest.raises(UsageError, match=r"unit of energy \(kcal/mol in MD17\), length \(angstrom in MD17\)"):
        convert_file(tmp_path / "b.npz", tmp_path / "o.bp")
    check_by_emt(convert_and_read(tmp_path / "b.npz", units=Units.parse("energy=kcal/mol,length=angstrom")), 1e-5)


def test_lattice_vectors_are_columns(tmp_path: Path) -> None:
    atoms = distort(bulk("Cu", cubic=True), 1)
    np.savez(
        tmp_path / "a.npz",
        z=atoms.numbers,
        R=atoms.positions[None],
        E=[atoms.get_potential_energy()],
        F=atoms.get_forces()[None],
        lattice=atoms.cell.array.T,
        r_unit="Ang",
        e_unit="eV",
    )
    batch = convert_and_read(tmp_path / "a.npz")
    assert batch.pbc.all()
    np.testing.assert_array_equal(batch.cell[0], atoms.cell.array)
    check_by_emt(batch)


def test_damage(tmp_path: Path) -> None:
    good = {"z": IMAGES[0].numbers, "R": POSITIONS, "E": ENERGIES, "F": FORCES, "r_unit": "Ang", "e_unit": "eV"}
    np.savez(tmp_path / "a.npz", **{**good, "F": FORCES[:4]})
    with pytest.raises(DataError, match=r"F has shape \(4, 5, 3\) of float64; 5 rows of 15 numbers were expected"):
        convert_and_read(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{**good, "E": np.array([None] * 5)}, allow_pickle=True)
    with pytest.raises(DataError, match="E holds pickled objects"):
        convert_and_read(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", weights=np.zeros(3))
    with pytest.raises(DataError, match="no structure is left of 1 read: 1 no data set of MD17"):
        convert_and_read(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", **good)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[:200])
    with pytest.raises(DataError, match="no readable npz file"):
        convert_and_read(tmp_path / "d.npz")
    at = whole.index(b"R.npy") + 400
    (tmp_path / "d.npz").write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    with pytest.raises(DataError, match=r"R is no readable array: Bad CRC-32"):
        convert_and_read(tmp_path / "d.npz")
