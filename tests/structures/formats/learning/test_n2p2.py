"""Data sets of n2p2 and RuNNer: numbers are taken in the units that the user states, and in no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.units import Bohr, Hartree

from atomsieve.errors import UsageError
from atomsieve.structures.formats import ReadRequest, find_files
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.units import Units
from tests.structures.formats.learning.samples import check_by_emt, convert_and_read, convert_file, distort, read_with

FRAME = """begin
comment one
lattice 4 0 0
lattice 0 4 0
lattice 0 0 4
atom 0 0 0 O 0.1 0.0 1 2 3
atom 1 1 1 H -0.1 0.0 -1 -2 -3
energy -3
charge 1.0
end
"""


def write_input_data(path: Path, images: list[Atoms], energy: float, length: float) -> Path:
    """Write structures as n2p2's own converters do, in units of so many eV and Angstrom."""
    lines = []
    for atoms in images:
        lines += ["begin", "comment made by a test"]
        lines += [f"lattice {x!r} {y!r} {z!r}" for x, y, z in (atoms.cell.array / length).tolist() if atoms.pbc.all()]
        forces = atoms.get_forces() / energy * length
        for symbol, place, force in zip(atoms.symbols, atoms.positions / length, forces, strict=True):
            words = [*place.tolist(), symbol, 0.0, 0.0, *force.tolist()]
            lines.append("atom " + " ".join(map(str, words)))
        lines += [f"energy {atoms.get_potential_energy() / energy!r}", "charge 0.0", "end"]
    path.write_text("\n".join(lines).replace("np.float64(", "").replace(")", "") + "\n")
    return path


@pytest.mark.parametrize(
    ("option", "energy", "length"),
    [("energy=hartree,length=bohr", Hartree, Bohr), ("energy=eV,length=angstrom", 1.0, 1.0)],
)
def test_labels_in_the_units_that_are_stated(tmp_path: Path, option: str, energy: float, length: float) -> None:
    images = [distort(bulk("Cu", cubic=True), 1), distort(molecule("C2H6"), 2)]
    file = write_input_data(tmp_path / "input.data", images, energy, length)
    assert find_files(file) == [(file, "n2p2")]
    batch = convert_and_read(file, units=Units.parse(option))
    assert batch.pbc.all(axis=1).tolist() == [True, False]
    assert batch.charge.tolist() == [0, 0]
    check_by_emt(batch, 1e-9)
    np.testing.assert_allclose(batch.positions[:4], images[0].positions, rtol=1e-12, atol=1e-12)


def test_without_units_nothing_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "input.data").write_text(FRAME)
    with pytest.raises(
        UsageError,
        match=r"line 1: .* unit of energy \(hartree or eV\), length \(bohr or angstrom\): "
        "--unit energy=UNIT,length=UNIT",
    ):
        convert_file(tmp_path / "input.data", tmp_path / "o.bp")
    with pytest.raises(UsageError, match=r"unit of length \(bohr or angstrom\): --unit length=UNIT"):
        convert_file(tmp_path / "input.data", tmp_path / "o.bp", keys=LabelKeys(none=True))
    batch = convert_and_read(tmp_path / "input.data", keys=LabelKeys(none=True), units=Units.parse("length=angstrom"))
    assert batch.energy is None and batch.charge.tolist() == [1]


@pytest.mark.parametrize(
    ("old", "new", "detail"),
    [
        ("atom 1 1 1 H", "atom 1 1 H", "an atom with 8 words, 9 were expected"),
        (" H ", " Xx ", "'Xx' is no element"),
        ("lattice 0 0 4\n", "", "2 lattice vectors; three or none"),
        ("energy -3", "energy -3\nenergy -4", "given twice"),
        ("energy -3", "energy 1.0D-3", "could not convert"),
        ("charge", "chrage", "a line 'chrage'"),
    ],
)
def test_a_structure_that_cannot_be_read_is_counted(tmp_path: Path, old: str, new: str, detail: str) -> None:
    file = tmp_path / "input.data"
    file.write_text(FRAME + FRAME.replace(old, new) + FRAME)
    batch, tally = read_with(ReadRequest(file), "n2p2", Units.parse("energy=eV,length=angstrom"))
    assert len(batch) == 2
    ((place, reason, found),) = tally.places
    assert (place, reason) == (f"{file}: line 11", "a structure that cannot be read")
    assert detail in found


def test_a_file_that_ends_within_a_structure(tmp_path: Path) -> None:
    file = tmp_path / "input.data"
    file.write_text(FRAME + FRAME[:60])
    batch, tally = read_with(ReadRequest(file), "n2p2", Units.parse("energy=eV,length=angstrom"))
    assert len(batch) == 1 and tally.places == [
        (f"{file}: line 11", "a structure without end", "no end before the end of the file")
    ]
