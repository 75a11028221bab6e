"""BP directories that others wrote: our variable names without a manifest, and HydraGNN's dataset schema."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import adios2
import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import SourceInfo, StructureBatch, open_structures, write_structures
from atomsieve.structures.dataset import third_party_bp
from tests.structures.structure_samples import assert_equal, random_batch

SOURCES = [SourceInfo("a", "PBE"), SourceInfo("b", "LDA")]


def test_a_part_of_ours_opens_by_itself(tmp_path: Path) -> None:
    batch = random_batch(90, heads=2)
    write_structures(tmp_path / "x.bp", batch, SOURCES, step_size=20)
    shutil.copytree(tmp_path / "x.bp" / "part-00000.r000.bp", tmp_path / "bare.bp")
    reader = open_structures(tmp_path / "bare.bp")
    assert reader.sources == SOURCES
    assert np.array_equal(reader.counts(), batch.counts)
    assert_equal(reader.read(0, 90), batch)
    assert_equal(reader.read(15, 45), batch.slice(15, 45))
    assert_equal(pickle.loads(pickle.dumps(reader)).read(3, 9), batch.slice(3, 9))
    assert len(reader.identity()) == 64
    with pytest.raises(UsageError, match="it has 90"):
        reader.read(0, 91)


def write_bp(path: Path, steps: list[dict[str, np.ndarray]], attributes: dict[str, object] | None = None) -> Path:
    with adios2.Stream(str(path), "w") as stream:
        for step in steps:
            stream.begin_step()
            for name, value in (attributes or {}).items():
                stream.write_attribute(name, value)
            attributes = None
            for name, array in step.items():
                stream.write(name, np.ascontiguousarray(array), list(array.shape), [0] * array.ndim, list(array.shape))
            stream.end_step()
    return path


def bare_step(batch: StructureBatch, **changes: object) -> dict[str, np.ndarray]:
    step = {"natoms": batch.counts, "numbers": batch.numbers.astype(np.int64), "positions": batch.positions}
    return {name: np.asarray(array) for name, array in {**step, **changes}.items() if array is not None}


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    batch = random_batch(20, fields=set(), smallest=1)
    steps = [bare_step(batch.slice(0, 5)), bare_step(batch.slice(5, 20), positions=batch.slice(5, 20).positions)]
    reader = open_structures(write_bp(tmp_path / "x.bp", steps))
    found = reader.read(3, 12).validate()
    assert np.array_equal(found.positions, batch.slice(3, 12).positions, equal_nan=True)
    assert np.array_equal(found.numbers, batch.slice(3, 12).numbers)
    assert found.id.tolist() == list(range(3, 12))
    assert not found.pbc.any()
    assert not found.cell.any()
    assert found.energy is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": None}, "has no variable 'positions'"),
        ({"positions": np.zeros((3, 3))}, "was expected"),
        ({"positions": np.zeros((999, 2))}, "was expected"),
        ({"cell": np.zeros((4, 3, 3))}, "was expected"),
        ({"natoms": np.full(20, 10**6)}, "do not add up"),
        ({"natoms": np.full(20, -1)}, "do not add up"),
        ({"numbers": np.full(999, 300)}, "was expected|whole numbers"),
        ({"natoms": None, "n": np.zeros(3)}, "no structures that are understood"),
    ],
)
def test_bare_files_that_do_not_fit(tmp_path: Path, changes: dict[str, np.ndarray], words: str) -> None:
    batch = random_batch(20, fields=set(), smallest=1)
    path = write_bp(tmp_path / "x.bp", [bare_step(batch, **changes)])
    with pytest.raises(DataError, match=words) as caught:
        open_structures(path).read(0, 20)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_no_elements(tmp_path: Path) -> None:
    batch = random_batch(20, fields=set(), smallest=1)
    path = write_bp(tmp_path / "x.bp", [bare_step(batch, numbers=np.full(batch.n_atoms, 300))])
    with pytest.raises(DataError, match="whole numbers from 0 to 118"):
        open_structures(path).read(0, 20)


# -- HydraGNN ------------------------------------------------------------------------------------------------------


def hydra_step(label: str, batch: StructureBatch, coefficients: np.ndarray) -> tuple[dict, dict]:
    """Lay a batch out as HydraGNN's writer does: samples joined along one axis, with counts and offsets."""
    offset = np.add.reduceat(coefficients[batch.numbers.astype(int) - 1], batch.ptr[:-1])
    x = np.concatenate([batch.numbers[:, None], batch.positions, batch.forces], axis=1).astype(np.float32)
    n = len(batch)
    edges = np.arange(2 * batch.n_atoms, dtype=np.int64).reshape(2, -1)
    layout = {
        "x": (x, batch.counts, 0),
        "pos": (batch.positions.astype(np.float32), batch.counts, 0),
        "forces": (batch.forces.astype(np.float32), batch.counts, 0),
        "atomic_numbers": (batch.numbers.astype(np.int64)[:, None], batch.counts, 0),
        "cell": (batch.cell.reshape(-1, 3).astype(np.float32), np.full(n, 3), 0),
        "pbc": (batch.pbc.reshape(-1).astype(np.int32), np.full(n, 3), 0),
        "energy": ((batch.energy - offset).astype(np.float32)[:, None], np.full(n, 1), 0),
        "graph_attr": (np.stack([batch.charge, batch.spin], 1).reshape(-1), np.full(n, 2), 0),
        "edge_index": (edges, batch.counts, 1),
    }
    arrays, attributes = {}, {f"{label}/ndata": np.array(n), f"{label}/keys": sorted(layout)}
    for key, (array, counts, vdim) in layout.items():
        arrays[f"{label}/{key}"] = array
        arrays[f"{label}/{key}/variable_count"] = counts.astype(np.int64)
        arrays[f"{label}/{key}/variable_offset"] = (np.cumsum(counts) - counts).astype(np.int64)
        attributes[f"{label}/{key}/variable_dim"] = np.array(vdim)
    return arrays, attributes


@pytest.fixture
def hydra(tmp_path: Path) -> tuple[Path, dict[str, StructureBatch], np.ndarray]:
    rng = np.random.default_rng(3)
    coefficients = np.zeros(118)
    coefficients[:20] = rng.normal(size=20) * 100
    arrays, attributes, batches = {}, {}, {}
    for k, (label, n) in enumerate([("trainset", 50), ("valset", 7), ("testset", 9)]):
        batch = random_batch(n, k, smallest=1)
        numbers = rng.integers(1, 21, batch.n_atoms).astype(np.uint8)
        batch = batch.replace(numbers=numbers, energy=rng.normal(size=n), charge=np.ones(n, np.float32))
        more, described = hydra_step(label, batch, coefficients)
        arrays |= more
        attributes |= described
        batches[label] = batch
    attributes |= {"total_ndata": np.array(66), "dataset_name": "mptrj", "pna_deg": np.arange(4)}
    attributes["energy_linear_regression_coeff"] = coefficients
    return write_bp(tmp_path / "MPTrj-v2.bp", [arrays], attributes), batches, coefficients


def test_hydragnn_dataset(hydra: tuple[Path, dict[str, StructureBatch], np.ndarray], monkeypatch) -> None:
    path, batches, coefficients = hydra
    monkeypatch.setattr(third_party_bp, "VIRTUAL_STEP", 8)
    reader = open_structures(path)
    whole = StructureBatch.concatenate(list(batches.values()))
    assert reader.sources == [SourceInfo("mptrj", "not stated")]
    assert len(reader) == 66
    assert reader.step_structures.tolist() == [8] * 6 + [2, 7, 8, 1]
    assert np.array_equal(reader.counts(), whole.counts)
    for start, stop in [(0, 66), (5, 61), (49, 51), (65, 66), (3, 3)]:
        found, expected = reader.read(start, stop).validate(), whole.slice(start, stop)
        assert np.array_equal(found.numbers, expected.numbers)
        assert np.array_equal(found.positions, expected.positions.astype(np.float32), equal_nan=True)
        assert np.array_equal(found.forces, expected.forces.astype(np.float32), equal_nan=True)
        assert np.array_equal(found.cell, expected.cell.astype(np.float32), equal_nan=True)
        assert np.array_equal(found.pbc, expected.pbc)
        assert np.array_equal(found.charge, expected.charge)
        assert np.array_equal(found.spin, expected.spin, equal_nan=True)
        assert found.id.tolist() == list(range(start, stop))
        np.testing.assert_allclose(found.energy, expected.energy, atol=2e-3)
        assert found.has_energy.all()
        assert (found.head == 0).all()
    assert "energy_linear_regression_coeff" in reader.notes
    stored = open_structures(path, restore_energies=False).read(0, 66).energy
    offset = np.add.reduceat(coefficients[whole.numbers.astype(int) - 1], whole.ptr[:-1])
    np.testing.assert_allclose(stored, whole.energy - offset, rtol=1e-6)
    assert_equal(pickle.loads(pickle.dumps(reader)).read(40, 60), reader.read(40, 60))


def test_hydragnn_labels(hydra: tuple[Path, dict[str, StructureBatch], np.ndarray]) -> None:
    path, batches, _ = hydra
    reader = open_structures(path, label="valset")
    assert len(reader) == 7
    assert np.array_equal(reader.read(0, 7).numbers, batches["valset"].numbers)
    with pytest.raises(UsageError, match="did you mean 'valset'"):
        open_structures(path, label="vlaset")


def test_hydragnn_elements_without_coefficient(tmp_path: Path) -> None:
    batch = random_batch(5, smallest=1).replace(energy=np.zeros(5))
    batch = batch.replace(numbers=np.full(batch.n_atoms, 30, np.uint8))
    arrays, attributes = hydra_step("trainset", batch, np.zeros(118))
    attributes["energy_linear_regression_coeff"] = np.ones(10)
    reader = open_structures(write_bp(tmp_path / "x.bp", [arrays], attributes))
    with pytest.raises(DataError, match="no regression coefficient"):
        reader.read(0, 5)
    assert reader.read(0, 5, fields=["forces"]).energy is None
