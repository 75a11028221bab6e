"""Systems of DeePMD-kit: files that dpdata made, files that we write, and damaged ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import open_structures
from atomsieve.structures.export import Subset, export
from atomsieve.structures.formats import ReadRequest, find_files, read_blocks
from tests.structures.formats.learning.samples import SOURCE, check_by_emt, convert_and_read, convert_file, read_dataset

FILES = Path(__file__).parents[2] / "files" / "deepmd"


def test_a_folder_of_systems_of_dpdata(tmp_path: Path) -> None:
    shutil.copytree(FILES, tmp_path / "in")
    names = ["alloy", "ethane", "mixed/4", "padded/8"]
    assert find_files(tmp_path / "in") == [(tmp_path / "in" / name, "deepmd") for name in names]
    batch = convert_and_read(tmp_path / "in")
    assert batch.counts.tolist() == [4] * 3 + [8] * 2 + [4] * 5 + [8] * 2 + [5] * 2
    assert sorted(batch.numbers[:4].tolist()) == [13, 13, 29, 29]
    assert batch.pbc.all(axis=1).tolist() == [True] * 3 + [False] * 2 + [True] * 5 + [False] * 4
    assert not batch.cell[3:5].any(), "the box of a system without periodicity is a placeholder"
    assert batch.has_energy.all() and batch.has_forces.all()
    assert batch.has_stress.tolist() == batch.pbc.all(axis=1).tolist()
    check_by_emt(batch)


def test_labels_and_units_are_said(tmp_path: Path) -> None:
    report = convert_file(FILES / "alloy", tmp_path / "o.bp")
    assert report.tally.found.taken["forces", "force"] == 3
    assert report.tally.found.units["energy", "eV", "format deepmd"] == 3


def test_spans_of_frames() -> None:
    folder = FILES / "alloy"
    whole = next(iter(read_blocks(ReadRequest(folder), "deepmd")))
    blocks = list(read_blocks(ReadRequest(folder, start=1, stop=3), "deepmd"))
    assert [(b.start, b.stop) for b in blocks] == [(1, 2), (2, 3)]
    np.testing.assert_array_equal(blocks[0].positions, whole.positions[4:8])
    assert list(read_blocks(ReadRequest(folder, start=3, stop=9), "deepmd")) == []


@pytest.mark.parametrize("name", ["x.deepmd", "x.deepmd-mixed"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    convert_file(FILES, tmp_path / "a.bp")
    first = read_dataset(tmp_path / "a.bp")
    with open_structures(tmp_path / "a.bp") as reader:
        assert export(reader, tmp_path / name, Subset()) == (14, 0)
    folders = sorted(p.name for p in (tmp_path / name).iterdir())
    if name.endswith("mixed"):
        assert folders == ["4", "5", "8"], "one system for each number of atoms and choice of labels"
    again = convert_and_read(tmp_path / name)
    check_by_emt(again)
    assert sorted(again.energy.tolist()) == sorted(first.energy.tolist())
    order_a, order_b = np.argsort(first.energy), np.argsort(again.energy)
    for field, tolerance in (("positions", 0), ("forces", 0), ("cell", 0), ("stress", 1e-12)):
        for a, b in zip(order_a, order_b, strict=True):
            one, two = first.slice(int(a), int(a) + 1), again.slice(int(b), int(b) + 1)
            np.testing.assert_allclose(getattr(two, field), getattr(one, field), rtol=0, atol=tolerance)


def test_programs_of_deepmd_read_what_is_written(tmp_path: Path) -> None:
    dpdata = pytest.importorskip("dpdata")
    convert_file(FILES / "alloy", tmp_path / "a.bp")
    with open_structures(tmp_path / "a.bp") as reader:
        export(reader, tmp_path / "x.deepmd", Subset())
    (folder,) = (tmp_path / "x.deepmd").iterdir()
    system = dpdata.LabeledSystem(folder, fmt="deepmd/npy")
    expected = read_dataset(tmp_path / "a.bp")
    np.testing.assert_array_equal(system["energies"], expected.energy)
    np.testing.assert_array_equal(system["forces"].reshape(-1, 3), expected.forces)


def test_slabs_and_foreign_folders_are_not_written(tmp_path: Path) -> None:
    convert_file(FILES / "alloy", tmp_path / "a.bp")
    batch = read_dataset(tmp_path / "a.bp")
    from atomsieve.structures import write_structures

    write_structures(tmp_path / "b.bp", batch.replace(pbc=np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)), [SOURCE])
    with open_structures(tmp_path / "b.bp") as reader:
        assert export(reader, tmp_path / "x.deepmd", Subset()) == (2, 1)
        with pytest.raises(UsageError, match=r"exists"):
            export(reader, tmp_path / "x.deepmd", Subset())
        (tmp_path / "y.deepmd").mkdir()
        (tmp_path / "y.deepmd" / "precious").touch()
        with pytest.raises(UsageError, match=r"something else than systems"):
            export(reader, tmp_path / "y.deepmd", Subset(), overwrite=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path) -> Path:
    shutil.copytree(FILES / "alloy", tmp_path / "alloy")
    return tmp_path / "alloy"


def test_elements_of_types_without_names(system: Path) -> None:
    (system / "type_map.raw").unlink()
    with pytest.raises(DataError, match=r"type_map.raw is missing.*types 0 to 1.*--elements O,H"):
        convert_and_read(system)
    (block, *_) = read_blocks(ReadRequest(system, elements=("Al", "Cu")), "deepmd")
    assert set(block.numbers.tolist()) == {13, 29}
    (system / "type_map.raw").write_text("Al Type_1")
    with pytest.raises(DataError, match=r"the type 'Type_1' is no element.*--elements"):
        convert_and_read(system)
    (system / "type_map.raw").write_text("Al")
    with pytest.raises(DataError, match=r"types 0 to 1, but there are names of 1 types"):
        convert_and_read(system)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("force", np.zeros((2, 9)), r"force.npy has shape \(2, 9\); \[2,12\] was expected for 2 frames of 4 atoms"),
        ("energy", np.zeros(3), r"energy.npy has shape \(3,\); \[2,1\]"),
        ("box", np.zeros((2, 6)), r"box.npy has shape \(2, 6\)"),
        ("virial", np.array(["a", "b"]), r"virial.npy holds <U1, no numbers"),
        ("coord", np.array([None, None]), r"coord.npy is no readable npy file, or is cut off: .*objects"),
    ],
)
def test_arrays_that_do_not_fit(system: Path, name: str, array: np.ndarray, message: str) -> None:
    np.save(system / "set.000" / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        convert_and_read(system)


def test_files_that_are_cut_off_or_missing(system: Path) -> None:
    file = system / "set.000" / "force.npy"
    whole = file.read_bytes()
    for size in (0, 60, len(whole) - 8):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut off"):
            convert_and_read(system)
    file.write_bytes(whole)
    (system / "set.001" / "box.npy").unlink()
    with pytest.raises(DataError, match=r"has no box.npy, and the system no file nopbc"):
        convert_and_read(system)
    (system / "type.raw").write_text("0 1 x")
    with pytest.raises(DataError, match=r"something else than whole numbers"):
        convert_and_read(system)


def test_types_of_frames_beyond_the_map(tmp_path: Path) -> None:
    shutil.copytree(FILES / "mixed" / "4", tmp_path / "m")
    np.save(tmp_path / "m" / "set.000" / "real_atom_types.npy", np.full((5, 4), 7))
    with pytest.raises(DataError, match=r"real_atom_types.npy holds 7 to 7, but there are names of 2 types"):
        convert_and_read(tmp_path / "m")


def test_raw_text_is_refused_with_the_way_around(tmp_path: Path) -> None:
    for name in ("type.raw", "type_map.raw", "coord.raw", "box.raw"):
        (tmp_path / "raw" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "raw" / name).write_text("0\n")
    with pytest.raises(DataError, match=r"no system of npy files.*by dpdata \(from deepmd/raw to deepmd/npy\)"):
        convert_and_read(tmp_path / "raw")
