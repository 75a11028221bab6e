"""Files of PyTorch Geometric: read without running code, whatever they hold."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from atomsieve.errors import DataError
from atomsieve.structures.formats import ReadRequest
from tests.structures.formats.learning.samples import check_by_emt, convert_and_read, convert_file, distort, read_with

pyg = pytest.importorskip("torch_geometric.data")

IMAGES = [distort(bulk("Cu", cubic=True), 1), distort(molecule("C2H6"), 2), distort(bulk("Al"), 3)]


def as_data(atoms: Atoms) -> object:
    number = torch.tensor
    return pyg.Data(
        pos=torch.from_numpy(atoms.positions),
        z=torch.from_numpy(atoms.numbers),
        cell=torch.from_numpy(atoms.cell.array)[None],
        pbc=number([atoms.pbc.tolist()]),
        energy=number([atoms.get_potential_energy()], dtype=torch.float64),
        forces=torch.from_numpy(atoms.get_forces()),
        charge=number([0]),
        edge_index=torch.zeros(2, 7, dtype=torch.long),
        name=atoms.get_chemical_formula(),
    )


def write(path: Path, form: str) -> Path:
    objects = [as_data(atoms) for atoms in IMAGES]
    data, slices = pyg.InMemoryDataset.collate(objects)
    content = {
        "one": objects[0],
        "list": objects,
        "before 2.4": (data, slices),
        "since 2.4": (data.to_dict(), slices, data.__class__),
    }[form]
    torch.save(content, path)
    return path


@pytest.mark.parametrize("form", ["one", "list", "before 2.4", "since 2.4"])
def test_every_form_of_file(tmp_path: Path, form: str) -> None:
    batch = convert_and_read(write(tmp_path / "x.pt", form))
    assert batch.counts.tolist() == ([4] if form == "one" else [4, 8, 1])
    assert batch.pbc.all(axis=1).tolist() == ([True] if form == "one" else [True, False, True])
    assert batch.charge.tolist() == [0] * len(batch)
    assert batch.has_energy.all() and batch.has_forces.all()
    check_by_emt(batch)


def test_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    data = as_data(IMAGES[0])
    data.more = Evil()
    torch.save([data], tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"x.pt holds objects \(\w+.system\) that only run as code.*extxyz"):
        convert_file(tmp_path / "x.pt", tmp_path / "o.bp")
    assert not (tmp_path / "ran").exists()


def test_a_cell_without_periodicity_and_objects_that_are_no_structures(tmp_path: Path) -> None:
    good, bad, none = as_data(IMAGES[0]), as_data(IMAGES[0]), pyg.Data(x=torch.zeros(3, 2))
    del bad.pbc
    torch.save([good, bad, none], tmp_path / "x.pt")
    batch, tally = read_with(ReadRequest(tmp_path / "x.pt"), "pyg")
    assert len(batch) == 1
    assert [(place.rsplit(" ", 1)[1], detail) for place, _, detail in tally.places] == [
        ("1", "a cell, but no pbc that says whether it is periodic"),
        ("2", "no pos, or no atomic_numbers, z, numbers; it has x"),
    ]


def test_files_that_are_no_data_set(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="no structure is left of 1 read: 1 no objects of PyTorch Geometric in it"):
        convert_file(tmp_path / "model.pt", tmp_path / "o.bp")
    whole = write(tmp_path / "x.pt", "list").read_bytes()
    for content in (b"", b"\x80\x02K\x01.", whole[: len(whole) // 2]):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(DataError, match=r"x.pt"):
            convert_file(tmp_path / "x.pt", tmp_path / "o.bp")


def test_positions_that_do_not_fit(tmp_path: Path) -> None:
    data = as_data(IMAGES[0])
    data.pos = torch.zeros(3, 3)
    torch.save([data, as_data(IMAGES[1])], tmp_path / "x.pt")
    batch, tally = read_with(ReadRequest(tmp_path / "x.pt"), "pyg")
    assert len(batch) == 1 and tally.places[0][2] == "pos of shape (3, 3) and z of 4 atoms"
    np.testing.assert_array_equal(batch.numbers, IMAGES[1].numbers)
