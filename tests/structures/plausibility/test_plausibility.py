"""Wrong units of energies, forces, stress and lengths are found, with the option that fits; right ones are let be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import units as ase_units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from atomsieve.structures import SourceInfo, StructureBatch
from atomsieve.structures.conversion.validation import BlockValidator
from atomsieve.structures.dataset.writer import StructureWriter
from atomsieve.structures.formats import ReadRequest, find_files, read_blocks
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.plausibility import SourceSample, check_datasets, check_source
from atomsieve.structures.plausibility.magnitudes import compare_energies, free_atom_energies
from atomsieve.structures.plausibility.near_pairs import compare_forces, compare_stress, fit_slope
from atomsieve.structures.units import Units

HARTREE, BOHR, GPA = ase_units.Hartree, ase_units.Bohr, ase_units.GPa
KCAL = ase_units.kcal / ase_units.mol


def label(atoms):  # type: ignore[no-untyped-def]
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture(scope="module")
def alloys() -> StructureBatch:
    """Alloys of EMT: strained cells, and rattled copies of equal cells."""
    rng = np.random.default_rng(0)
    images = []
    for element in ("Cu", "Al", "Ag"):
        for k in range(16):
            atoms = bulk(element, cubic=True)
            atoms.symbols[0] = "Ni"
            bend = rng.normal(size=(3, 3)) * 0.003
            change = np.eye(3) * (1 + rng.uniform(-0.03, 0.04)) + (bend + bend.T) / 2
            atoms.set_cell(atoms.cell.array @ change if k < 10 else atoms.cell, scale_atoms=True)
            atoms.rattle(0.02 if k < 10 else 0.05, seed=k)
            images.append(label(atoms))
    return StructureBatch.from_ase(images)


def scale(batch: StructureBatch, energy: float = 1, forces: float = 1, stress: float = 1, length: float = 1):  # type: ignore[no-untyped-def]
    changed = {"energy": batch.energy * energy, "positions": batch.positions * length, "cell": batch.cell * length}
    if batch.forces is not None:
        changed["forces"] = batch.forces * forces
    if batch.stress is not None:
        changed["stress"] = batch.stress * stress
    return batch.replace(**changed)


def test_slope_is_the_weighted_median() -> None:
    work = np.array([1.0, 2, 3, 100, 0, np.nan])
    found = fit_slope(np.array([2.0, 4, 6, -700, 5, 1]), work)
    assert (found.value, found.pairs) == (-7.0, 4)
    assert not found.sure
    found = fit_slope(2 * np.arange(1, 30.0), np.arange(1, 30.0))
    assert (found.value, found.agreement, found.sure) == (2, 1, True)


def test_right_units_are_left_alone(alloys: StructureBatch) -> None:
    assert compare_forces(alloys)[0].value == pytest.approx(1, abs=0.1)
    assert compare_stress(alloys)[0].value == pytest.approx(1, abs=0.05)
    assert not check_source("emt", alloys)


@pytest.mark.parametrize(
    ("energy", "forces", "length", "option"),
    [
        (1 / HARTREE, 1, 1, "--unit energy=hartree,forces=eV/angstrom"),
        (1, BOHR / HARTREE, 1, "--unit energy=eV,forces=hartree/bohr"),
        (1, -BOHR / HARTREE, 1, "--unit energy=eV,forces=-hartree/bohr"),
        (1, 1 / HARTREE, 1, "--unit energy=eV,forces=hartree/angstrom"),
        (1, 1 / KCAL, 1, "--unit energy=eV,forces=kcal/mol/angstrom"),
        (1 / KCAL, 1, 1, "--unit energy=kcal/mol,forces=eV/angstrom"),
        (1, -1, 1, "--unit energy=eV,forces=-eV/angstrom"),
        (1, 1, 1 / BOHR, "--unit length=bohr"),
        (1, 1, 0.1, "--unit length=nm"),
    ],
)
def test_units_of_energies_forces_and_lengths_are_found(
    alloys: StructureBatch, energy: float, forces: float, length: float, option: str
) -> None:
    stressless = scale(alloys, energy, forces, 1, length).replace(stress=None, has_stress=None)
    (found, *more) = check_source("emt", stressless)
    assert found.option.split(", or ")[0 if option != "--unit energy=eV,forces=hartree/angstrom" else slice(2)] in (
        option,
        [option, "--unit energy=eV,forces=rydberg/bohr"],  # 5 % apart
    )
    assert not more
    assert found.describe().startswith("emt: ")
    assert found.describe().endswith(f"these fit: {found.option}")


def test_the_factor_is_said_and_units_already_applied_count(alloys: StructureBatch) -> None:
    stressless = alloys.replace(stress=None, has_stress=None)
    (found,) = check_source("", scale(stressless, forces=BOHR / HARTREE))
    assert found.factor == pytest.approx(HARTREE / BOHR, rel=0.1)
    assert "(51.4221)" in found.text
    # the file says kcal/mol, and so it was converted; but the numbers are Hartree
    (found,) = check_source("", scale(stressless, KCAL / HARTREE), Units(energy="kcal/mol", forces="eV/angstrom"))
    assert found.option == "--unit energy=hartree,forces=eV/angstrom"


def test_energies_per_atom_are_found(alloys: StructureBatch) -> None:
    assert alloys.energy is not None
    (found,) = check_source("", alloys.replace(energy=alloys.energy / alloys.counts, stress=None, has_stress=None))
    assert found.option.split(", or ")[0] == "--unit energy=eV/atom,forces=eV/angstrom"


@pytest.mark.parametrize(
    ("factor", "option"),
    [
        (1 / GPA, "--unit stress=GPa"),
        (10 / GPA, "--unit stress=kbar"),
        (-10 / GPA, "--unit stress=kbar --stress-sign -1"),
        (-1, "--stress-sign -1"),
    ],
)
def test_units_and_sign_of_the_stress_are_found(alloys: StructureBatch, factor: float, option: str) -> None:
    (found,) = check_source("emt", scale(alloys, stress=factor))
    assert found.option == option
    assert found.what == "stress"


def test_a_virial_in_place_of_a_stress_is_found(alloys: StructureBatch) -> None:
    volume = np.abs(np.linalg.det(alloys.cell))[:, None, None]
    (found,) = check_source("emt", scale(alloys, stress=-volume))  # type: ignore[arg-type]
    assert "virial" in found.text


def test_free_atoms() -> None:
    energies = free_atom_energies()
    # Hartree-Fock limits, Hartree: C, N, O, Ne, Ar, and Cu with a part of relativity
    for z, expected in {6: -37.69, 7: -54.40, 8: -74.81, 10: -128.55, 18: -526.82}.items():
        assert energies[z] == pytest.approx(expected, rel=0.015)
    assert (energies[1], energies[0]) == (-0.5, 0)


@pytest.mark.parametrize(("size", "unit"), [(1.0, "ev"), (1 / HARTREE, "hartree"), (1 / KCAL, "kcal/mol")])
def test_energies_of_all_electrons_are_recognised(size: float, unit: str) -> None:
    energies = {"H2O": -76.42, "CH4": -40.52, "CH3CH2OH": -155.03, "C6H6": -232.25, "NH3": -56.56}  # B3LYP, Hartree
    images = []
    for name, energy in energies.items():
        atoms = molecule(name)
        atoms.calc = SinglePointCalculator(atoms, energy=energy * HARTREE * size)
        images.append(atoms)
    batch = StructureBatch.from_ase(images)
    assert compare_energies(batch).unit == unit
    found = check_source("", batch)
    assert [one.option for one in found] == ([] if unit == "ev" else [f"--unit energy={unit}"])


def test_units_of_the_user_that_do_not_fit_the_elements() -> None:
    images = []
    for name, energy in {"H2O": -76.42, "CH4": -40.52, "CH3CH2OH": -155.03, "C6H6": -232.25, "NH3": -56.56}.items():
        images.append(molecule(name))
        images[-1].calc = SinglePointCalculator(images[-1], energy=energy * HARTREE * HARTREE)
    batch = StructureBatch.from_ase(images)  # eV, read as Hartree
    (found,) = check_source("", batch, Units(energy="hartree"))
    assert found.option == "--unit energy=eV"


def test_samples_are_taken_from_datasets(tmp_path: Path, alloys: StructureBatch) -> None:
    wrong = scale(alloys, forces=-1).replace(stress=None, has_stress=None)
    both = StructureBatch.concatenate([alloys.replace(stress=None, has_stress=None), wrong])
    heads = np.repeat([0, 1], len(alloys)).astype(np.int32)
    with StructureWriter(tmp_path / "o.bp", sources=[SourceInfo("a", "x"), SourceInfo("b", "y")]) as writer:
        writer.append(both.replace(head=heads))
    (found,) = check_datasets([tmp_path / "o.bp"])
    assert (found.source, found.option) == ("b", "--unit energy=eV,forces=-eV/angstrom")


def test_samples_are_bounded(alloys: StructureBatch) -> None:
    sample = SourceSample(structures=10, atoms=30)
    for _ in range(5):
        sample.add("a", alloys)
    assert sample.held["a"] == (7, 28)


# -- real data ---------------------------------------------------------------------------------------------------------


def frames(folder: Path, limit: int) -> Iterator[StructureBatch]:
    validator = BlockValidator(LabelKeys())
    for file, kind in find_files(folder / "test.extxyz.gz", None):
        for block in read_blocks(ReadRequest(file), kind):
            yield validator(block).batch
            if validator.tally.read >= limit:
                return


SOURCES = (
    "alexandria elements_mlearn ethanol_pbe fad_ccsdt hea_nbmotaw mattersim_tp mptrj organics_wb97x oxides_am05 "
    "oxides_lda oxides_pbe oxides_pbesol qm22_b3lyp slab_co2_ni100 tio2_qe water_pbe0ts"
)


@pytest.mark.parametrize("name", SOURCES.split())
def test_real_sources_are_left_alone(shared_data: Path, name: str) -> None:
    batch = StructureBatch.concatenate(list(frames(shared_data / name, 400)))
    assert not check_source(name, batch)


@pytest.mark.parametrize("name", ["ethanol_pbe", "hea_nbmotaw", "qm22_b3lyp"])
def test_real_sources_in_wrong_units_are_found(shared_data: Path, name: str) -> None:
    batch = StructureBatch.concatenate(list(frames(shared_data / name, 2000)))
    for energy, forces, option in (
        (1 / HARTREE, 1, "--unit energy=hartree,forces=eV/angstrom"),
        (1, BOHR / HARTREE, "--unit energy=eV,forces=hartree/bohr"),
        (1, 1 / KCAL, "--unit energy=eV,forces=kcal/mol/angstrom"),
        (1, -1, "--unit energy=eV,forces=-eV/angstrom"),
    ):
        (found,) = check_source(name, scale(batch, energy, forces))
        assert found.option == option
