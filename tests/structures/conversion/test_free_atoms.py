"""Frames of single free atoms: told, kept out of validation, and taken as element references where asked for."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase import units as ase_units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from atomsieve.cli.main import run
from atomsieve.errors import DataError
from atomsieve.structures import open_structures
from atomsieve.structures.block import build_block
from atomsieve.structures.conversion.references import NOTE, decode_references, find_free_atoms
from atomsieve.structures.item import item_from_atoms


def with_energy(atoms: Atoms, energy: float, **info: object) -> Atoms:
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    atoms.info.update(info)
    return atoms


@pytest.fixture
def bulk_and_atoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rattled = []
    for k in range(240):
        atoms = bulk("CuAu", "rocksalt", a=5.2)
        atoms.rattle(0.05, seed=k)
        rattled.append(with_energy(atoms, -5.0 + 0.001 * k, config_type="bulk"))
    box = Atoms("Au", cell=[6, 6, 6], pbc=True)
    free = [
        with_energy(Atoms("Cu"), -0.24, config_type="IsolatedAtom"),
        with_energy(box, -0.29, config_type="IsolatedAtom"),
    ]
    ase.io.write("x.extxyz", [free[0], *rattled, free[1]])
    return tmp_path / "x.extxyz"


def convert(*args: str) -> int:
    return run("atomsieve", ["data", "convert", "x.extxyz", "o.bp", "--source=s", "--level-of-theory=PBE", *args])


def test_which_atoms_are_free() -> None:
    images = [
        Atoms("H"),
        Atoms("H", cell=[10, 10, 10], pbc=True),
        Atoms("H", cell=[4, 4, 4], pbc=True),
        Atoms("H", cell=[4, 4, 4], pbc=True, info={"config_type": "isolated_atom"}),
        Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]], info={"config_type": "IsolatedAtom"}),
    ]
    block = build_block([item_from_atoms(atoms, "f") for atoms in images])
    assert find_free_atoms(block).tolist() == [True, True, False, True, False]
    assert find_free_atoms(block, ase_units.Bohr).tolist() == [True, False, False, True, False]


def test_without_the_option_they_are_told_and_never_in_validation(
    bulk_and_atoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        assert convert("--split", "train=0.5,val=0.5", "--seed", str(seed), "--overwrite") == 0
        train, val = open_structures("o-train.bp"), open_structures("o-val.bp")
        assert sorted(train.counts())[:2] == [1, 1]
        assert min(val.counts()) == 2
        assert len(train) + len(val) == 242
    shown = capsys.readouterr().out
    assert "2 single free atoms (Cu 1, Au 1) kept as samples, all in one set; --element-references takes" in shown


def test_with_the_option_they_are_references(bulk_and_atoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--element-references", "--unit", "energy=hartree") == 0
    shown = capsys.readouterr().out
    energies = {"Au": -0.29 * ase_units.Hartree, "Cu": -0.24 * ase_units.Hartree}
    words = ", ".join(f"{symbol} {energy:.6g}" for symbol, energy in energies.items())
    assert f"element references of s: {words} eV" in shown
    assert "source s (PBE): 240" in shown
    with open_structures("o.bp") as reader:
        assert len(reader) == 240
        assert min(reader.counts()) == 2
        found = decode_references(reader.notes)
    assert found == {"s": {79: pytest.approx(energies["Au"]), 29: pytest.approx(energies["Cu"])}}
    assert run("atomsieve", ["data", "info", "o.bp"]) == 0
    assert "element references: " in capsys.readouterr().out


def test_e0_fields_and_several_energies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = Atoms("He", info={"E0": -77.0})
    ase.io.write("x.extxyz", [plain, with_energy(Atoms("H"), -12.0), with_energy(Atoms("H"), -13.6), bulk("Cu")])
    assert convert("--element-references", "-q") == 0
    with open_structures("o.bp") as reader:
        assert decode_references(reader.notes) == {"s": {1: -13.6, 2: -77.0}}
        assert reader.read(0, len(reader)).numbers.tolist() == [29]
        assert np.isfinite(reader.read(0, 1).positions).all()


def test_a_damaged_note_is_refused() -> None:
    assert decode_references({}) == {}
    for text in ("{", '{"s": {"Xx9": 1}}', '{"s": [1]}', '{"s": {"H": "x"}}'):
        with pytest.raises(DataError, match="holds no energies by source and element"):
            decode_references({NOTE: text}, "o.bp")
