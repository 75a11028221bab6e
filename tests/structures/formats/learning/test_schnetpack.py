"""SchNetPack's databases: the units that the metadata of SchNetPack states are applied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.formats.learning.schnetpack import read_schnetpack_units
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.units import Units
from tests.structures.formats.learning.samples import convert_and_read, convert_file

H2 = Atoms("H2", positions=[[0, 0, 0], [0, 0, 1.4]])


def write_database(path: Path, metadata: dict[str, object], **data: object) -> Path:
    """Write a database as SchNetPack 2.1.1 does: properties are arrays in `data`, their units are in the metadata."""
    with connect(str(path)) as database:
        database.metadata = metadata
        database.write(H2, data=data)
    return path


def test_units_of_the_metadata_are_applied(tmp_path: Path) -> None:
    metadata = {
        "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Bohr", "stress": "Hartree/Bohr/Bohr/Bohr"},
        "_distance_unit": "Bohr",
        "atomrefs": {"energy": [0.0, -0.5]},
    }
    forces = np.array([[0, 0, 0.01], [0, 0, -0.01]])
    file = write_database(tmp_path / "x.db", metadata, energy=np.array([-1.17]), forces=forces)
    report = convert_file(file, tmp_path / "o.bp")
    assert report.tally.found.units["energy", "Hartree", "the metadata of SchNetPack"] == 1
    batch = convert_and_read(file)
    np.testing.assert_allclose(batch.energy, [-31.8373], atol=1e-4)
    np.testing.assert_allclose(batch.positions[1, 2], 0.740848, atol=1e-6)
    np.testing.assert_allclose(batch.forces[0, 2], 0.514221, atol=1e-6)


def test_the_user_precedes_the_metadata(tmp_path: Path) -> None:
    metadata = {"_property_unit_dict": {"energy": "Hartree"}, "_distance_unit": "Bohr"}
    file = write_database(tmp_path / "x.db", metadata, energy=np.array([-1.17]))
    batch = convert_and_read(file, units=Units.parse("energy=eV"))
    np.testing.assert_allclose([batch.energy[0], batch.positions[1, 2]], [-1.17, 0.740848], atol=1e-6)


def test_a_property_of_another_name_has_the_unit_that_all_share(tmp_path: Path) -> None:
    metadata = {"_property_unit_dict": {"U0": "Ha", "U": "Ha", "mu": "Debye"}, "_distance_unit": "Ang"}
    file = write_database(tmp_path / "x.db", metadata, U0=np.array([-1.0]), U=np.array([-2.0]), mu=np.array([0.0]))
    batch = convert_and_read(file, keys=LabelKeys(energy="U0"))
    np.testing.assert_allclose(batch.energy, [-27.211386], atol=1e-6)
    assert batch.positions[1, 2] == 1.4


@pytest.mark.parametrize("unit", [None, "arb. unit"])
def test_an_energy_without_unit_is_not_taken_as_anything(tmp_path: Path, unit: str | None) -> None:
    metadata = {"_property_unit_dict": {"energy": unit}, "_distance_unit": "Ang"}
    file = write_database(tmp_path / "x.db", metadata, energy=np.array([-1.0]))
    with pytest.raises(
        UsageError,
        match=r"unit of energy \(the metadata of SchNetPack states energy without a unit\): --unit energy=UNIT",
    ):
        convert_file(file, tmp_path / "o.bp")
    assert convert_and_read(file, keys=LabelKeys(none=True)).energy is None
    np.testing.assert_allclose(convert_and_read(file, units=Units.parse("energy=hartree")).energy, [-27.211386])


def test_two_units_of_one_kind_leave_it_open(tmp_path: Path) -> None:
    metadata = {"_property_unit_dict": {"low": "eV", "high": "Hartree"}, "_distance_unit": "Ang"}
    file = write_database(tmp_path / "x.db", metadata, low=np.array([-1.0]), high=np.array([-2.0]))
    with pytest.raises(
        UsageError, match=r"unit of energy \(the metadata of SchNetPack states high in Hartree, low in eV\)"
    ):
        convert_file(file, tmp_path / "o.bp", keys=LabelKeys(energy="high"))
    assert convert_and_read(file).energy is None, "neither has a name that is certain"


def test_metadata_that_are_not_understood() -> None:
    assert read_schnetpack_units({"other": 1}, "x.db") == Units()
    with pytest.raises(DataError, match=r"x\.db: the metadata state units that are not known \(unknown unit of length"):
        read_schnetpack_units({"_distance_unit": "furlong"}, "x.db")
    with pytest.raises(DataError, match="no table of units"):
        read_schnetpack_units({"_distance_unit": "Ang", "_property_unit_dict": ["eV"]}, "x.db")
    assert read_schnetpack_units({"_property_unit_dict": {"stress": "eV/Ang/Ang/Ang"}}, "x").stress == "eV/Ang^3"
