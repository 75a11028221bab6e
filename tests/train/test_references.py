"""Element references against planted energies, absent and collinear elements included."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import SourceInfo, StructureBatch, open_structures
from atomsieve.structures.conversion.references import decode_references, encode_references
from atomsieve.structures.dataset.writer import StructureWriter
from atomsieve.train.config import DataItem, LossSection
from atomsieve.train.data.catalog import scan
from atomsieve.train.data.label_scales import ForceSums, describe_heads
from atomsieve.train.data.references import MAX_Z, composition_energy, fit_around, fit_references, fit_together


def compositions(rows: list[dict[int, int]]) -> np.ndarray:
    out = np.zeros((len(rows), MAX_Z), np.int64)
    for k, row in enumerate(rows):
        for z, n in row.items():
            out[k, z] = n
    return out


def labelled_molecule(name: str) -> Atoms:
    atoms = molecule(name)
    atoms.calc = SinglePointCalculator(atoms, energy=-100.0 * len(atoms))
    return atoms


def test_planted_energies_come_back_even_of_all_electron_size():
    rng = np.random.default_rng(0)
    planted = np.zeros(MAX_Z)
    planted[[1, 6, 8, 79]] = [-13.6, -1030.0, -2040.0, -535_000.0]
    counts = np.zeros((60, MAX_Z), np.int64)
    counts[:, [1, 6, 8, 79]] = rng.integers(0, 6, (60, 4))
    counts[:, 1] += 1
    found = fit_references(counts, counts @ planted)
    assert found.inseparable == []
    assert found.rank == 4
    for z in (1, 6, 8, 79):
        assert found.energies[z] == pytest.approx(planted[z], abs=1e-6)
    assert set(found.energies) == {1, 6, 8, 79}
    assert found.counts[6] == counts[:, 6].sum()


def test_one_composition_gives_the_mean_to_every_element_and_says_so():
    counts = compositions([{1: 2, 8: 1}] * 5)
    energy = np.array([-9.0, -9.3, -8.7, -9.1, -8.9])
    found = fit_references(counts, energy)
    assert found.energies[1] == pytest.approx(-3.0)
    assert found.energies[8] == pytest.approx(-3.0)
    assert found.rank == 1
    assert len(found.inseparable) == 1
    assert "H" in found.inseparable[0]
    assert "O" in found.inseparable[0]


def test_only_the_collinear_part_is_left_to_the_prior():
    # Ti and O always come as TiO2; Cu comes in any amount.
    rows = [{22: k, 8: 2 * k, 29: m} for k in (1, 2, 3) for m in (0, 1, 4)]
    counts = compositions(rows)
    energy = counts @ np.bincount([22, 8, 29], weights=[-8.0, -5.0, -3.5], minlength=MAX_Z)
    found = fit_references(counts, energy)
    assert found.energies[29] == pytest.approx(-3.5, abs=1e-9)
    assert found.energies[22] + 2 * found.energies[8] == pytest.approx(-18.0, abs=1e-9)
    np.testing.assert_allclose(composition_energy(counts, found), energy, atol=1e-9)
    assert len(found.inseparable) == 1
    assert "Cu" not in found.inseparable[0]
    assert abs(found.energies[22]) < 50  # minimum norm: no huge opposite numbers


def test_elements_never_seen_have_no_energy_and_empty_structures_do_not_matter():
    counts = compositions([{29: 4}, {}, {29: 2}])
    found = fit_references(counts, np.array([-14.0, 0.0, -7.0]))
    assert found.energies == {29: pytest.approx(-3.5)}


def test_nothing_to_fit_and_bad_energies_are_refused():
    with pytest.raises(DataError, match="at least one structure"):
        fit_references(compositions([]), np.zeros(0))
    with pytest.raises(DataError, match="1 are not"):
        fit_references(compositions([{1: 1}, {1: 2}]), np.array([1.0, np.nan]))


def test_energies_of_free_atoms_stay_and_the_rest_is_fitted_around_them() -> None:
    planted = np.zeros(MAX_Z)
    planted[[1, 6, 8]] = [-13.0, -1030.0, -2040.0]
    counts = compositions([{1: 4, 6: 1}, {1: 2, 8: 1}, {6: 1, 8: 2}, {1: 6, 6: 2, 8: 1}])
    energy = counts @ planted - 3.0 * counts.sum(1)  # bound by 3 eV per atom
    found = fit_around(counts, energy, {1: -13.0, 6: -1030.0, 8: -2040.0, 26: -1.0})
    assert found.energies == {1: -13.0, 6: -1030.0, 8: -2040.0}
    assert found.counts == {1: 12, 6: 4, 8: 4}
    found = fit_around(counts, energy, {1: -13.0, 6: -1030.0})
    assert (found.energies[1], found.energies[6]) == (-13.0, -1030.0)
    assert found.energies[8] < -2040.0
    assert found.rank == 3
    assert fit_around(counts, energy, {}) == fit_references(counts, energy)


def test_training_takes_references_from_the_dataset_where_the_configuration_asks(tmp_path: Path) -> None:
    batch = StructureBatch.from_ase([labelled_molecule(name) for name in ("H2O", "H2O2", "H2", "O2")])
    notes = encode_references({("a", "H", -13.6): 1, ("a", "O", -2041.0): 2, ("a", "O", -2042.0): 1})
    with StructureWriter(tmp_path / "a.bp", sources=[SourceInfo("a", "PBE")], notes=notes) as writer:
        writer.append(batch)
    with open_structures(tmp_path / "a.bp") as reader:
        assert decode_references(reader.notes) == {"a": {1: -13.6, 8: -2042.0}}
        catalog = scan([DataItem(path="a.bp", references="free_atoms")], [reader])
        assert catalog.free_atoms == {"a": {1: -13.6, 8: -2042.0}}
        (head,) = describe_heads(catalog, np.ones(len(catalog), bool), [ForceSums()], LossSection())
        assert head.references.energies == {1: -13.6, 8: -2042.0}
        assert scan([DataItem(path="a.bp")], [reader]).free_atoms == {}
    with StructureWriter(tmp_path / "b.bp", sources=[SourceInfo("b", "PBE")]) as writer:
        writer.append(batch)
    with open_structures(tmp_path / "b.bp") as reader, pytest.raises(UsageError, match="--element-references"):
        scan([DataItem(path="b.bp", references="free_atoms")], [reader])


def test_a_common_fit_finds_planted_energies_beside_structures_under_pressure() -> None:
    """A third of the structures holds 1 to 20 eV per atom more than its references: the others decide."""
    rng = np.random.default_rng(1)
    planted = np.zeros(MAX_Z)
    planted[[3, 8, 26, 74]] = [-2.0, -5.0, -8.0, -13.0]
    counts = compositions(
        [{3: int(a), 8: int(b), 26: int(c), 74: int(d)} for a, b, c, d in rng.integers(1, 6, (300, 4))]
    )
    pressure = np.where(np.arange(300) % 3 == 0, rng.uniform(1, 20, 300), 0.0)
    energy = counts @ planted + pressure * counts.sum(1)
    found = fit_together(counts, energy).table()
    assert np.abs(found - planted).max() < 0.05
    assert np.abs(fit_references(counts, energy).table() - planted).max() > 2.0


def test_sources_of_one_file_share_references_where_the_configuration_asks(tmp_path: Path) -> None:
    images = [labelled_molecule(name) for name in ("H2O", "H2O2", "H2", "O2", "CO", "CO2")]
    batch = StructureBatch.from_ase(images)
    batch = dataclasses.replace(batch, head=np.array([0, 0, 0, 0, 1, 1], np.int32))
    sources = [SourceInfo("a", "PBE"), SourceInfo("b", "PBE"), SourceInfo("c", "LDA")]
    with StructureWriter(tmp_path / "a.bp", sources=sources) as writer:
        writer.append(batch)
    with open_structures(tmp_path / "a.bp") as reader:
        catalog = scan([DataItem(path="a.bp", sources=["a", "b"], references="together")], [reader])
        assert catalog.together == [["a", "b"]]
        a, b = describe_heads(catalog, np.ones(len(catalog), bool), [ForceSums()] * 2, LossSection())
        assert a.references.energies[8] == b.references.energies[8]
        assert (sorted(a.references.energies), sorted(b.references.energies)) == ([1, 8], [6, 8])
        assert b.references.counts == {6: 2, 8: 3}
