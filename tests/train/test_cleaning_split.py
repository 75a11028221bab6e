"""Planted bad structures are found and counted; no group is on two sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import StructureBatch, StructureReader
from atomsieve.structures.source import SourceInfo
from atomsieve.train.config import CleaningSection, DataItem, SplitSection
from atomsieve.train.data.catalog import Catalog, scan
from atomsieve.train.data.label_scales import _describe_conditions, check_conditions
from atomsieve.train.data.outliers import remove_outliers
from atomsieve.train.data.split import CALIBRATION, TEST, TRAIN, VAL, assign_parts
from tests.train.train_samples import SOURCES, labelled


class Memory(StructureReader):
    """A file of structures that is not on disk."""

    def __init__(self, batch: StructureBatch, sources=SOURCES) -> None:
        self.batch, self.sources, self.path = batch, sources, Path("memory")
        self.n_atoms, self.fields = batch.n_atoms, tuple(batch.present())

    def __len__(self) -> int:
        return len(self.batch)

    def counts(self):
        return self.batch.counts

    def read(self, start, stop, fields=None):
        return self.batch.slice(start, stop)

    def read_arrays(self, start, stop, fields):
        return self.batch.slice(start, stop).present()

    def identity(self):
        return "memory"


def catalog_of(*batches: StructureBatch, use: str = "auto") -> Catalog:
    items = [DataItem(path="memory", use=use) for _ in batches]
    return scan(items, [Memory(b) for b in batches])


def test_each_reason_is_found_once_and_counted_for_its_source():
    batch = labelled(20, 20)
    positions, cell = batch.positions.copy(), batch.cell.copy()
    forces, energy = batch.forces.copy(), batch.energy.copy()
    has_energy, has_forces = batch.has_energy.copy(), batch.has_forces.copy()
    atom = batch.ptr
    positions[atom[0]] = np.nan
    positions[atom[1]] = positions[atom[1] + 1] + 0.1
    forces[atom[2]] = [60.0, 0, 0]
    cell[3] = np.eye(3) * 40
    has_energy[4] = has_forces[4] = False
    cell[5] = 0
    energy[7] = np.nan
    energy[25] += 1e6
    energy[26] -= 1e3
    batch = batch.replace(
        positions=positions, cell=cell, forces=forces, energy=energy, has_energy=has_energy, has_forces=has_forces
    )
    catalog = catalog_of(batch)
    result = remove_outliers(catalog, CleaningSection())
    assert result.counts == {
        "emt": {"not finite": 3, "atoms too close": 1, "force too large": 1, "too sparse": 1, "no labels": 1},
        "springs": {"energy outlier": 2},
    }
    assert np.flatnonzero(~result.keep).tolist() == [0, 1, 2, 3, 4, 5, 7, 25, 26]
    assert result.removed == 9


def test_rules_that_are_off_remove_nothing():
    off = CleaningSection(max_force=None, min_distance=None, max_volume_per_atom=None, max_energy_deviation=None)
    batch = labelled(10, 10)
    assert remove_outliers(catalog_of(batch.replace(forces=batch.forces * 1e4)), off).keep.all()


def test_one_source_in_two_files_is_one_head_and_keeps_its_level_of_theory():
    catalog = catalog_of(labelled(3, 2), labelled(4, 5, seed=1))
    assert catalog.sources == ["emt", "springs"]
    assert np.bincount(catalog.head).tolist() == [7, 7]
    other = [SourceInfo("emt", "another level"), SOURCES[1]]
    items = [DataItem(path="a"), DataItem(path="b")]
    with pytest.raises(UsageError, match="one source has one level of theory"):
        scan(items, [Memory(labelled(2, 2)), Memory(labelled(2, 2), other)])


def test_a_source_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'springs'"):
        scan([DataItem(path="a", sources=["spring"])], [Memory(labelled(2, 2))])
    chosen = scan([DataItem(path="a", sources=["springs"])], [Memory(labelled(2, 3))])
    assert chosen.sources == ["springs"]
    assert chosen.head.tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="names no sources"):
        scan([DataItem(path="a")], [Memory(labelled(2, 2), [])])


def many_formulas(n: int = 400) -> Catalog:
    rng = np.random.default_rng(0)
    composition = np.zeros((n, 119), np.uint16)
    composition[:, 29] = rng.integers(1, 9, n)
    composition[:, 47] = rng.integers(1, 9, n)
    base = catalog_of(labelled(2, 2))
    grown = base.take(np.zeros(n, int))
    return replace(grown, composition=composition, row=np.arange(n), head=np.arange(n, dtype=np.int32) % 2)


def test_by_formula_no_reduced_formula_is_on_two_sides_even_across_sources():
    catalog = many_formulas()
    part = assign_parts(catalog, SplitSection(train=0.5, val=0.2, test=0.2, by="formula", max_group=1.0))
    ratio = catalog.composition[:, 29] / catalog.composition[:, 47]
    for value in np.unique(ratio):
        assert len(np.unique(part[ratio == value])) == 1
    assert set(part) == {TRAIN, VAL, TEST, CALIBRATION}


def test_a_formula_that_is_a_large_part_of_its_source_is_divided_by_structure():
    catalog = many_formulas()
    rules = SplitSection(train=0.5, val=0.2, test=0.2, by="formula", max_group=0.1)
    part = assign_parts(catalog, rules)
    ratio = catalog.composition[:, 29] / catalog.composition[:, 47]
    assert np.mean(ratio == 1) > 0.1
    assert len(np.unique(part[ratio == 1])) == 4
    assert len(np.unique(part[ratio == 2])) == 1


def test_a_file_may_be_divided_by_its_own_rule():
    catalog = many_formulas()
    catalog = replace(catalog, file=(np.arange(len(catalog)) % 2).astype(np.int32))
    rules = SplitSection(train=0.5, val=0.2, test=0.2, by="formula", max_group=1.0)
    items = [DataItem(path="a.bp"), DataItem(path="b.bp", split_by="structure")]
    part = assign_parts(catalog, rules, items)
    ratio = catalog.composition[:, 29] / catalog.composition[:, 47]
    assert len(np.unique(part[(ratio == 1) & (catalog.file == 0)])) == 1
    assert len(np.unique(part[(ratio == 1) & (catalog.file == 1)])) == 4


def test_the_part_of_a_structure_does_not_depend_on_the_others():
    catalog = many_formulas()
    rules = SplitSection(train=0.5, val=0.2, test=0.2)
    whole = assign_parts(catalog, rules)
    some = np.arange(0, len(catalog), 3)
    np.testing.assert_array_equal(assign_parts(catalog.take(some), rules), whole[some])
    assert np.mean(whole == TRAIN) == pytest.approx(0.5, abs=0.08)
    assert (assign_parts(catalog, SplitSection(train=0.5, val=0.2, test=0.2, seed=1)) != whole).any()


def test_few_formulas_are_divided_by_structure_and_given_parts_are_kept():
    catalog = catalog_of(labelled(3, 200))
    part = assign_parts(catalog, SplitSection(train=0.7, val=0.2, test=0.0, by="formula"))
    own = part[catalog.head == 1]
    assert 0 < np.sum(own == VAL) < len(own)
    given = catalog_of(labelled(3, 5), use="test")
    assert (assign_parts(given, SplitSection()) == TEST).all()


def test_heads_know_the_charges_and_multiplicities_of_their_training_data():
    batch = labelled(4, 4)
    protons = np.add.reduceat(batch.numbers.astype(int), batch.ptr[:-1])
    radical = protons % 2 + 1.0

    def described(charge, spin) -> dict:
        full = {"charge": np.broadcast_to(charge, 8), "spin": np.broadcast_to(spin, 8)}
        catalog = catalog_of(batch.replace(**{name: np.float32(values) for name, values in full.items()}))
        return _describe_conditions(catalog, np.arange(8) != 7)

    charge = np.array([0, 0, 0, 0, 2, -2, 0, 9.0])
    fits = {"charge_range": [-2.0, 2.0], "spin_range": [1.0, float(radical[:7].max())], "spin_fits_electrons": True}
    assert described(charge, radical) == fits
    assert not described(np.roll(charge, 1) + 1, radical)["spin_fits_electrons"]
    assert not described([0.5, *charge[1:]], radical)["spin_fits_electrons"]
    assert described(charge, 0) == fits | {"spin_range": [0.0, 0.0], "spin_fits_electrons": False}
    assert described([np.nan, *charge[1:]], radical) == {}


def test_a_conditioned_model_is_not_trained_on_structures_that_state_nothing():
    batch = labelled(4, 4)
    charge, spin = np.zeros(8, np.float32), np.ones(8, np.float32)
    check_conditions(catalog_of(batch.replace(charge=charge, spin=spin)))
    charge[[1, 7]], spin[1] = np.nan, np.nan
    for given in (batch, batch.replace(charge=charge), batch.replace(charge=charge, spin=spin)):
        with pytest.raises(
            DataError, match=r"structures of source '\w+' state no charge or no multiplicity, and model"
        ):
            check_conditions(catalog_of(given))
