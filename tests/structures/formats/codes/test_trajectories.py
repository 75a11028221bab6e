"""Trajectories that hold positions alone, written by MDTraj and read with the elements of another file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import DataError
from atomsieve.structures import StructureBatch
from tests.structures.formats.codes.reading import read_all
from tests.structures.formats.learning.samples import convert_and_read, convert_file

formats = pytest.importorskip("mdtraj.formats", reason="needs the extra trajectories")

PDB = """CRYST1   10.000   11.000   12.000  90.00  90.00  90.00 P 1           1
MODEL        1
ATOM      1  CA  ALA A   1       1.000   2.000   3.000  1.00  0.00           C
HETATM    2 CA    CA A   2       4.000   5.000   6.000  1.00  0.00          CA
ATOM      3  HA  ALA A   1       1.500   2.000   3.000  1.00  0.00           H
ENDMDL
END
"""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    path = tmp_path / "start.pdb"
    path.write_text(PDB)
    return path


def positions(frames: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 1, (frames, 3, 3)).astype(np.float32)


def write_dcd(path: Path, xyz: np.ndarray, lengths: object, angles: object) -> None:
    with formats.DCDTrajectoryFile(str(path), "w") as file:
        file.write(xyz, lengths, angles)


def check(found: StructureBatch, xyz: np.ndarray) -> None:
    assert len(found) == len(xyz) and found.numbers[:3].tolist() == [6, 20, 1]
    np.testing.assert_allclose(found.positions.reshape(-1, 3, 3), xyz, atol=1e-6)


def test_xtc_is_in_nanometres(tmp_path: Path, topology: Path, capfd: pytest.CaptureFixture[str]) -> None:
    xyz, path = np.round(positions(5), 3), tmp_path / "md.xtc"
    box = np.tile(np.array([[1.0, 0, 0], [0.25, 1.1, 0], [0.125, 0.5, 1.2]], np.float32), (5, 1, 1))
    with formats.XTCTrajectoryFile(str(path), "w") as file:
        file.write(xyz, time=np.arange(5), step=np.arange(5), box=box)
    found = convert_and_read(path, topology=topology)
    np.testing.assert_allclose(found.positions.reshape(-1, 3, 3), xyz * 10, atol=1e-5)
    np.testing.assert_allclose(found.cell[4], [[10, 0, 0], [2.5, 11, 0], [1.25, 5, 12]], rtol=1e-6)
    assert found.pbc.all() and found.numbers[:3].tolist() == [6, 20, 1]
    with path.open("r+b") as raw:
        raw.truncate(path.stat().st_size - 20)
    report = convert_file(path, tmp_path / "cut.bp", topology=topology)
    assert report.written == 4 and report.tally.skipped == {"the file ends within a structure": 1}
    assert "plugin" not in capfd.readouterr().out


def test_dcd_is_in_angstrom(tmp_path: Path, topology: Path, capfd: pytest.CaptureFixture[str]) -> None:
    xyz, path = positions(4) * 8, tmp_path / "md.dcd"
    write_dcd(path, xyz, np.tile([10.0, 11.0, 12.0], (4, 1)), np.tile([90.0, 90.0, 60.0], (4, 1)))
    found = convert_and_read(path, topology=topology)
    check(found, xyz)
    np.testing.assert_allclose(found.cell[1], [[10, 0, 0], [5.5, 9.5262794, 0], [0, 0, 12]], atol=1e-5)
    with path.open("r+b") as raw:
        raw.truncate(path.stat().st_size - 20)
    report = convert_file(path, tmp_path / "cut.bp", topology=topology)
    assert report.written == 3 and report.tally.skipped == {"the file ends within a structure": 1}
    assert "plugin" not in capfd.readouterr().out


def test_a_trajectory_without_a_cell_takes_that_of_the_topology(tmp_path: Path, topology: Path) -> None:
    xyz, path = positions(4) * 8, tmp_path / "md.dcd"
    write_dcd(path, xyz, None, None)
    found = convert_and_read(path, topology=topology)
    check(found, xyz)
    assert found.pbc.all() and np.diag(found.cell[3]).tolist() == [10, 11, 12]
    report = convert_file(path, tmp_path / "x.bp", topology=topology)
    assert report.tally.notes == {"the trajectory states no cell: that of the topology is taken": 4}


def test_trajectories_say_what_they_lack(tmp_path: Path, topology: Path) -> None:
    path = tmp_path / "md.dcd"
    write_dcd(path, positions(2)[:, :2], None, None)
    with pytest.raises(DataError, match=r"holds positions alone; name its elements with --topology FILE$"):
        convert_file(path, tmp_path / "x.bp")
    with pytest.raises(DataError, match=r"has 2 atoms a frame, but .*start\.pdb has 3 atoms"):
        convert_file(path, tmp_path / "x.bp", topology=topology)
    other = tmp_path / "x.gro"
    other.write_text("names of atoms alone\n")
    with pytest.raises(DataError, match=r"of a format that can be read, not .*x\.gro"):
        convert_file(path, tmp_path / "x.bp", topology=other)
    with pytest.raises(DataError, match="does not exist"):
        convert_file(path, tmp_path / "x.bp", topology=tmp_path / "none.pdb")
    for name in ("junk.dcd", "junk.xtc"):
        (tmp_path / name).write_bytes(b"hello world" * 100)
        with pytest.raises(DataError, match="is no trajectory that MDTraj can read"):
            convert_file(tmp_path / name, tmp_path / "x.bp", topology=topology)


def test_pdb_states_elements_or_is_refused(tmp_path: Path, topology: Path) -> None:
    (item,), bad = read_all(topology)
    assert not bad and item.numbers.tolist() == [6, 20, 1]
    np.testing.assert_allclose(item.positions[1], [4, 5, 6])
    assert np.diag(item.cell).tolist() == [10, 11, 12] and item.pbc.all()
    path = tmp_path / "x.pdb"
    body = "".join(line[:76] + "\n" if line.startswith("ATOM") else line for line in PDB.splitlines(keepends=True))
    path.write_text(PDB.removesuffix("END\n") + body)
    items, bad = read_all(path)
    assert len(items) == 1 and bad[0].reason == "an atom without an element (columns 77-78)"
    path.write_text(PDB.replace(" CA  ALA", " CA AALA"))
    assert read_all(path)[1][0].reason == "atoms with alternate locations"
    path.write_text(PDB.replace("  10.000   11.000   12.000", "   1.000    1.000    1.000"))
    (item,), _ = read_all(path)
    assert not item.pbc.any() and not item.cell.any()
    path.write_text("HEADER\n")
    with pytest.raises(DataError, match="PDB"):
        read_all(path)
