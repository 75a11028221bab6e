"""Dumps and data files that LAMMPS wrote."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from atomsieve.cli.main import run
from atomsieve.errors import DataError, UsageError
from atomsieve.structures.formats import find_format
from atomsieve.structures.formats.codes.lammps import element_of_mass
from atomsieve.structures.units import Units
from tests.structures.formats.codes.reading import FILES, labels_of, read_all
from tests.structures.formats.learning.samples import convert_and_read

KCAL = 0.0433641  # eV
AL_NI = ("Al", "Ni")


def test_three_dumps_of_one_run_are_the_same_structures() -> None:
    """Wrapped, scaled with counts of images, and unwrapped; by types, by symbols; in a sheared box that was left."""
    wrapped, _ = read_all(FILES / "lammps_metal.dump", elements=AL_NI)
    scaled, _ = read_all(FILES / "lammps_scaled.dump")
    unwrapped, bad = read_all(FILES / "lammps_unwrapped.lammpstrj")
    assert len(wrapped) == len(scaled) == len(unwrapped) == 2 and not bad
    for a, b, c in zip(wrapped, scaled, unwrapped, strict=True):
        np.testing.assert_allclose(a.cell, [[8.1, 0, 0], [1.0125, 4.05, 0], [0, 0, 4.05]], atol=1e-12)
        np.testing.assert_array_equal(a.numbers, b.numbers)
        np.testing.assert_array_equal(a.numbers, c.numbers)
        np.testing.assert_allclose(b.positions, c.positions, atol=2e-4)  # six digits
        images = (c.positions - a.positions) @ np.linalg.inv(a.cell)
        np.testing.assert_allclose(images, np.round(images), atol=1e-4)
        assert np.abs(np.round(images)).max() >= 8 and a.pbc.all()
    assert [item.info["timestep"] for item in wrapped] == [0, 5]


def test_data_file_is_the_end_of_the_run(tmp_path: Path) -> None:
    (item,), bad = read_all(FILES / "lammps_alloy.data")
    unwrapped, _ = read_all(FILES / "lammps_unwrapped.lammpstrj")
    np.testing.assert_allclose(item.positions, unwrapped[-1].positions, atol=1e-4)
    np.testing.assert_array_equal(item.numbers, unwrapped[-1].numbers)
    np.testing.assert_allclose(item.cell, unwrapped[-1].cell, atol=1e-12)
    assert not bad and item.units.length == "angstrom" and "metal" in item.units.origin
    (water,), _ = read_all(FILES / "lammps_water.data")
    assert water.numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(water.arrays["charges"], [-0.8, 0.4, 0.4])
    text = (FILES / "lammps_water.data").read_text()
    other = tmp_path / "data.other"
    other.write_text(text.replace("1 15.9994\n", "1 15.035\n"))  # a united atom
    assert find_format(other) is None
    with pytest.raises(DataError, match=r"which element type 1 is; name the elements .* --elements Al,Ni"):
        read_all(other, "lammps-data")
    (named,), _ = read_all(other, "lammps-data", elements=("C", "H"))
    assert named.numbers.tolist() == [6, 1, 1]
    other.write_text(text.replace("1 15.9994\n", "1 15.9994 # S\n"))
    with pytest.raises(DataError, match=r"type 1 has the mass 15\.9994, but the comment 'S'"):
        read_all(other, "lammps-data")


def test_units_of_a_dump_are_applied(tmp_path: Path) -> None:
    (item,), bad = read_all(FILES / "lammps_water.dump")
    assert not bad and item.numbers.tolist() == [8, 1, 1]  # by their masses
    assert item.pbc.tolist() == [True, False, False]
    forces = labels_of([item]).values["forces"]
    np.testing.assert_allclose(forces[0], [82.7813406551438 * KCAL, 106.763705409178 * KCAL, 0], rtol=1e-6)
    item, *_ = read_all(FILES / "lammps_metal.dump", elements=AL_NI)[0]
    line = next(row for row in (FILES / "lammps_metal.dump").read_text().splitlines() if row.startswith("2 "))
    np.testing.assert_allclose(labels_of([item]).values["forces"][1], [float(word) for word in line.split()[5:]])
    path = tmp_path / "x.dump"
    path.write_text((FILES / "lammps_water.dump").read_text().replace("\nreal\n", "\nlj\n"))
    with pytest.raises(DataError, match=r"units 'lj' of LAMMPS; read are metal, real, electron, si"):
        read_all(path, elements=("O",))


def test_a_dump_without_units_needs_them_stated(tmp_path: Path) -> None:
    path = tmp_path / "x.dump"
    text = (FILES / "lammps_metal.dump").read_text().removeprefix("ITEM: UNITS\nmetal\n")
    path.write_text(text)
    with pytest.raises(UsageError, match=r"states the unit of length .*--unit length=UNIT,forces=UNIT"):
        convert_and_read(path, elements=AL_NI)
    metal = convert_and_read(path, elements=AL_NI, units=Units.parse("metal"))
    real = convert_and_read(path, elements=AL_NI, units=Units.parse("real"))
    assert metal.forces is not None and real.forces is not None
    np.testing.assert_allclose(real.forces, metal.forces * KCAL, rtol=1e-6)
    np.testing.assert_array_equal(real.positions, metal.positions)


def test_boxes_of_any_orientation() -> None:
    (general,), _ = read_all(FILES / "lammps_general.dump", elements=("Ga", "As"))
    (restricted,), _ = read_all(FILES / "lammps_restricted.dump", elements=("Ga", "As"))
    np.testing.assert_allclose(general.cell, 4.0 * (1 - np.eye(3)), atol=1e-12)
    np.testing.assert_allclose(general.positions, [[0, 0, 0], [2, 2, 2]])
    assert general.numbers.tolist() == restricted.numbers.tolist() == [31, 33]
    np.testing.assert_allclose(restricted.cell @ restricted.cell.T, general.cell @ general.cell.T, atol=1e-9)
    np.testing.assert_allclose(restricted.positions @ np.linalg.inv(restricted.cell), [[0] * 3, [0.25] * 3], atol=1e-9)


def test_elements_that_are_not_certain_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it numbers its elements; name the elements .* --elements Al,Ni"):
        read_all(FILES / "lammps_metal.dump")
    with pytest.raises(DataError, match="has atoms of type 2, but --elements names 1: Al"):
        read_all(FILES / "lammps_metal.dump", elements=("Al",))
    path = tmp_path / "x.lammpstrj"
    scaled = (FILES / "lammps_scaled.dump").read_text()
    path.write_text(scaled.replace(" Al ", " C ").replace(" Ni ", " C "))
    with pytest.raises(DataError, match="every one of its 2 types is element C, LAMMPS's default"):
        read_all(path)
    assert (
        read_all(path, elements=AL_NI)[0][0].numbers.tolist()
        == read_all(FILES / "lammps_scaled.dump")[0][0].numbers.tolist()
    )
    path.write_text(scaled.replace(" Al ", " Al1 "))
    with pytest.raises(DataError, match="'Al1' in the column element is no element"):
        read_all(path)


def test_masses_name_elements_only_where_they_are_certain() -> None:
    known = {26.98: 13, 27.0: 13, 58.6934: 28, 58.9332: 27, 1.0: 1, 2.014: 1, 55.85: 26, 12.0: 6}
    assert {mass: element_of_mass(mass) for mass in known} == known
    assert [element_of_mass(mass) for mass in (15.035, 72.0, 28.0, 0.0)] == [0, 0, 0, 0]


def test_broken_frames_are_counted_and_the_others_read(tmp_path: Path) -> None:
    text = (FILES / "lammps_metal.dump").read_text()
    frames = text.split("ITEM: UNITS\nmetal\n")[-1].split("ITEM: TIME\n")[1:]
    first, second = (f"ITEM: TIME\n{frame}" for frame in frames)
    lines = first.splitlines(keepends=True)
    short = "".join(lines[:-2])
    twice = "".join([*lines[:-1], lines[-2]])
    stars = first.replace(lines[-1], " ".join([*lines[-1].split()[:-1], "****"]) + "\n")
    unbounded = first.replace(" pp pp pp", "")
    path = tmp_path / "x.dump.gz"
    whole = "ITEM: UNITS\nmetal\n" + short + second + twice + stars + unbounded + first + second[:-200]
    path.write_bytes(gzip.compress(whole.encode()))
    items, bad = read_all(path, elements=AL_NI)
    assert [item.where for item in items] == [f"{path}: frame 1", f"{path}: frame 5"]
    assert [one.where.split()[-1] + " " + one.reason for one in bad] == [
        "0 a frame with too few atoms",
        "2 an id of two atoms",
        "3 not readable",
        "4 the box or its boundaries are not stated",
        "6 the file ends within a structure",
    ]
    assert "****" in bad[2].detail
    damaged = tmp_path / "y.dump.gz"
    packed = gzip.compress("".join([first.replace("0.005", str(k)) for k in range(500)]).encode(), 0)
    damaged.write_bytes(packed[:-300])
    items, bad = read_all(damaged, elements=AL_NI)
    assert len(items) == 499 and [one.reason for one in bad] == ["the file ends within a structure"]
    (tmp_path / "z.dump").write_text("nothing of the kind\n")
    with pytest.raises(DataError, match="no ionic step of a LAMMPS dump in it; is it another kind of file"):
        read_all(tmp_path / "z.dump")


def test_files_of_lammps_are_told_by_their_content(tmp_path: Path) -> None:
    for source, name, kind in (
        ("lammps_metal.dump", "md.out", "lammps-dump"),
        ("lammps_alloy.data", "relaxed.data", "lammps-data"),
        ("lammps_metal.dump", "dump.md", "lammps-dump"),
    ):
        shutil.copy(FILES / source, tmp_path / name)
        assert find_format(tmp_path / name) == kind


def test_commands_name_the_elements_and_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.dump"
    path.write_text((FILES / "lammps_metal.dump").read_text().removeprefix("ITEM: UNITS\nmetal\n"))
    options = ["--elements", "Al,Ni", "--unit", "real"]
    assert run("atomsieve", ["data", "inspect", str(path), *options]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "forces kcal/mol/angstrom" in shown and "--elements Al,Ni" in shown
    out = ["data", "convert", str(path), str(tmp_path / "x.bp"), "--source", "s", "--level-of-theory", "t"]
    assert run("atomsieve", [*out, *options]) == 0
    assert "(--unit)" in capsys.readouterr().out
    assert run("atomsieve", [*out, "--elements", "Al,Nix"]) != 0
    assert "unknown element 'Nix'" in capsys.readouterr().err
