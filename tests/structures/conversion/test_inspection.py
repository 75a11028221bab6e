"""`data inspect`: what is in a file, what a conversion would take of it, and the command that does."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase import units as ase_units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from atomsieve.cli.main import run
from atomsieve.structures import open_structures
from atomsieve.structures.conversion.inspection import inspect_path

ODD = """2
Lattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3:REF_forces:R:3:force_dft:R:3 energy=-7.5 REF_energy=-7.4 \
virial="1 0 0 0 1 0 0 0 1" dipole="0 0 1" spin=0 total_charge=1 kind=a pbc="T T T"
Cs 0 0 0 0.1 0 0 0.1 0 0
Cl 1.5 1.5 1.5 -0.1 0 0 -0.1 0 0
1
Properties=species:S:1:pos:R:3 REF_energy=-3.4 config_type=IsolatedAtom kind=b pbc="F F F"
Cl 0 0 0
1
Properties=species:S:1:pos:R:3 REF_energy=nan kind=b pbc="F F F"
Cl 0 0 0
"""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    path = tmp_path / "odd.xyz"
    path.write_text(ODD)
    return path


def call(*args: str | Path) -> int:
    return run("atomsieve", ["data", "inspect", *map(str, args)])


def test_counts(odd: Path) -> None:
    found = inspect_path(odd)
    assert found.formats == {"extxyz": 1}
    assert (found.counts.read, found.atoms, found.smallest, found.largest) == (3, 4, 1, 2)
    assert found.elements == {"Cs": 1, "Cl": 3}
    assert found.periodic == {"xyz": 1, "": 2}
    assert found.counts.skipped == {"energy not finite": 1}
    assert found.counts.free_atoms == {"Cl": 2}
    assert found.keys["kind"].texts == {"a": 1, "b": 2}
    assert (found.keys["REF_energy"].low, found.keys["REF_energy"].high) == (-7.4, -3.4)
    assert found.keys["force_dft"].shapes == {"3 per atom": 1}
    assert {name: found.taken_as(name) for name in found.keys} == {
        "energy": "energy, eV",
        "REF_energy": "energy, eV",
        "virial": "stress = -virial/volume",
        "REF_forces": "forces, eV/Å",
        "force_dft": "--forces-key force_dft",
        "total_charge": "charge, e",
        "spin": "spin, 2S+1",
        "dipole": "not kept",
        "kind": "not kept",
        "config_type": "not kept",
    }
    assert found.suggest_command() == f"atomsieve data convert {odd} odd.bp --source NAME --level-of-theory 'TEXT'"


def test_text_is_whole_in_a_pipe_and_narrow(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(odd) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{odd}: extxyz (extended XYZ)"
    assert lines[1] == "3 structures, 4 atoms (1 to 2 each)"
    table = lines[lines.index("") + 1 : len(lines) - lines[::-1].index("") - 1]
    assert max(map(len, table)) <= 80
    assert any(line.split()[:1] == ["force_dft"] and "--forces-key force_dft" in line for line in table)
    text = "\n".join(lines)
    assert "1 of 3 structures state a total charge" in text
    assert "single free atoms: Cl 2; --element-references takes their energies as references" in text
    assert f"would be left out, 1: energy not finite, first {odd}: frame 2" in text
    assert "too few pairs of near structures to compare the forces with energies" in text
    assert inspect_path(odd).compared.keys() == {""}
    assert lines[-1].startswith("to convert: atomsieve data convert ")


def test_json(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(odd, "--json", "--unit", "energy=hartree", "--unit", "stress=GPa") == 3
    (found,) = json.loads(capsys.readouterr().out)
    assert found["structures"] == 3
    assert found["keys"]["virial"]["taken_as"] == "stress = -virial/volume"
    assert found["keys"]["energy"]["taken_as"] == "energy, hartree"
    assert found["units"] == ["energy hartree, forces hartree/angstrom, virial hartree (--unit)"]
    assert found["convert"].endswith("--unit energy=hartree,stress=GPa")


def test_what_separates_sources_is_proposed_and_the_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = []
    for name in ("H2O", "CH4"):
        atoms = molecule(name)
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
        atoms.info = {"source": name.lower(), "level_of_theory": "PBE", "id": len(images)}
        images.append(atoms)
    ase.io.write("my file.extxyz", images)
    assert call("my file.extxyz") == 0
    last = capsys.readouterr().out.splitlines()[-1].removeprefix("to convert: ")
    assert last == (
        "atomsieve data convert 'my file.extxyz' 'my file.bp' --source-key source --level-key level_of_theory"
    )
    assert run("atomsieve", shlex.split(last)[1:]) == 0
    assert [source.name for source in open_structures("my file.bp").sources] == ["h2o", "ch4"]


def test_wrong_units_are_told_with_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = []
    for k in range(30):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        forces = atoms.get_forces() * ase_units.Bohr / ase_units.Hartree
        copy = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        copy.calc = SinglePointCalculator(copy, energy=atoms.get_potential_energy(), forces=forces)
        images.append(copy)
    ase.io.write(tmp_path / "x.extxyz", images)
    assert call(tmp_path / "x.extxyz") == 0
    shown = capsys.readouterr().out
    assert "does not fit: energies and forces do not fit: energy differences between near structures are 5" in shown
    assert "(51.4221) times the work of the forces" in shown
    assert shown.splitlines()[-1].endswith("--unit energy=eV,forces=hartree/bohr")


def test_a_limit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])] * 20
    for name in ("a", "b", "c"):
        ase.io.write(tmp_path / f"{name}.extxyz", images)
    assert call(tmp_path, "--limit", "10") == 0
    shown = capsys.readouterr().out.splitlines()[1]
    assert shown == "20 structures (the first ones; --limit 200 reads more, --limit 0 all), 40 atoms (2 each)"
    assert inspect_path(tmp_path).counts.read == 60


def test_a_folder_and_errors(tmp_path: Path, odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bulk("NaCl", "rocksalt", a=5.6).write(tmp_path / "b.cif")
    found = inspect_path(tmp_path)
    assert found.formats == {"cif": 1, "extxyz": 1}
    assert found.counts.read == 4
    assert call(tmp_path / "none.xyz") == 1
    assert "none.xyz does not exist" in capsys.readouterr().err
    assert call(odd, "--unit", "energy=hartee") == 2
    assert "did you mean 'hartree'" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".bp"], "nothing is written"


def test_real_data(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_data / "ethanol_pbe" / "test.extxyz.gz"
    assert call(path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "346 structures, 2,931 atoms (6 to 9 each)",
        "3 elements (structures with it): H 346, C 346, O 346",
        "periodicity: 346 not periodic",
    ]
    becomes = {line.split()[0]: line.rstrip().split("  ")[-1].strip() for line in lines if " 346 " in line}
    assert becomes["energy"] == "energy, eV"
    assert becomes["forces"] == "forces, eV/Å"
    assert becomes["source"].endswith("--source-key source")
    assert becomes["upstream_id"] == "not kept"
    assert "energies 1 times those of all electrons" in lines[-2]
    assert lines[-2].startswith("  ethanol_pbe, PBE/def2-SVP: distances 1.01 times")
    assert lines[-1].endswith("test.bp --source-key source --level-key level_of_theory")
    found = inspect_path(shared_data / "alexandria" / "test.extxyz.gz")
    assert len(found.elements) > 60
    assert np.isfinite(found.keys["forces"].high)


def test_formats_that_leave_units_or_elements_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = "begin\nlattice 4 0 0\nlattice 0 4 0\nlattice 0 0 4\natom 0 0 0 O 0 0 0 0 0\nenergy -3\ncharge 0\nend\n"
    (tmp_path / "input.data").write_text(frame)
    found = inspect_path(tmp_path / "input.data")
    assert found.counts.read == 1 and found.counts.labels["energy"] == 1
    types = "BEGIN_CFG\n Size\n 1\n AtomData: id type cartes_x cartes_y cartes_z\n 1 1 0 0 0\nEND_CFG\n"
    (tmp_path / "x.cfg").write_text(types)
    assert inspect_path(tmp_path / "x.cfg", elements=("O", "H")).elements == {"H": 1}
