"""Data sets that HydraGNN itself wrote, of before and after its keys got names, and conditions by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atomsieve.structures import StructureBatch, open_structures
from atomsieve.structures.formats import ReadRequest, read_blocks
from tests.structures.dataset.test_third_party_bp import hydra_step, write_bp
from tests.structures.structure_samples import random_batch

LABELS = ("trainset", "valset", "testset")


@pytest.mark.parametrize(
    "name",
    ["d251f816/MPTrj-v2", "d251f816/ANI1x", "pr527/MPTrj"],
)
def test_files_of_hydragnn(shared_data: Path, name: str) -> None:
    folder = shared_data / "hydragnn" / "datasets"
    expected = np.load(folder / f"{name}.expected.npz", allow_pickle=False)

    def want(key: str) -> np.ndarray:
        return np.concatenate([expected[f"{label}/{key}"] for label in LABELS])

    with open_structures(folder / f"{name}.bp") as reader:
        batch = reader.read(0, len(reader)).validate()
        assert reader.notes.get("keys not taken", "") in ("", "energy_per_atom", "energy_per_atom, y")
    assert batch.numbers.tolist() == want("Z").astype(int).ravel().tolist()
    np.testing.assert_array_equal(batch.positions, want("pos"))
    np.testing.assert_array_equal(batch.forces, want("forces"))
    pbc = want("pbc").reshape(-1, 3) != 0
    np.testing.assert_array_equal(batch.pbc, pbc)
    cells = want("cell").reshape(-1, 3, 3)
    np.testing.assert_array_equal(batch.cell, np.where(pbc.any(axis=1)[:, None, None], cells, 0))
    energy = want("energy_total" if name.endswith("-v2") else "energy").ravel()
    np.testing.assert_allclose(batch.energy, energy, rtol=0, atol=1e-3 if name.endswith("-v2") else 0)
    if "MPTrj" in name:
        np.testing.assert_array_equal(batch.stress, want("stress").reshape(-1, 3, 3))
        assert batch.has_stress.all()
    else:
        assert batch.stress is None
    if "graph_attr" in "".join(expected.files):
        np.testing.assert_array_equal(np.stack([batch.charge, batch.spin], 1), want("graph_attr").reshape(-1, 2))
    else:
        assert batch.charge is None, "files of the named schema that state none"


def by_name(label: str, batch: StructureBatch) -> tuple[dict, dict]:
    """Return a step with charge, spin and stress by name."""
    arrays, attributes = hydra_step(label, batch, np.zeros(118))
    keys = [key for key in attributes[f"{label}/keys"] if key != "graph_attr"]
    for key in [key for key in (*arrays, *attributes) if key.startswith(f"{label}/graph_attr")]:
        arrays.pop(key, None), attributes.pop(key, None)
    n = len(batch)
    layout = {"charge": (batch.charge[:, None], 1), "spin": (batch.spin[:, None], 1)}
    layout["stress"] = batch.stress.reshape(-1, 3), 3
    for key, (array, rows) in layout.items():
        arrays[f"{label}/{key}"] = array.astype(np.float32)
        arrays[f"{label}/{key}/variable_count"] = np.full(n, rows)
        arrays[f"{label}/{key}/variable_offset"] = np.arange(n) * rows
        attributes[f"{label}/{key}/variable_dim"] = np.array(0)
    return arrays, attributes | {f"{label}/keys": [*keys, *layout]}


def sample(n: int, seed: int) -> StructureBatch:
    rng = np.random.default_rng(seed)
    batch = random_batch(n, seed, smallest=1)
    return batch.replace(
        numbers=rng.integers(1, 90, batch.n_atoms).astype(np.uint8),
        energy=rng.normal(size=n),
        charge=rng.integers(-2, 3, n).astype(np.float32),
        spin=rng.integers(1, 4, n).astype(np.float32),
        stress=rng.normal(size=(n, 3, 3)),
    )


def test_charge_spin_and_stress_by_name(tmp_path: Path) -> None:
    batch = sample(8, 1)
    arrays, attributes = by_name("trainset", batch)
    with open_structures(write_bp(tmp_path / "x.bp", [arrays], attributes)) as reader:
        found = reader.read(0, 8).validate()
        part = reader.read(3, 6)
    np.testing.assert_array_equal(found.charge, batch.charge)
    np.testing.assert_array_equal(found.spin, batch.spin)
    np.testing.assert_array_equal(found.stress, batch.stress.astype(np.float32))
    assert found.has_stress.all()
    np.testing.assert_array_equal(part.stress, found.stress[3:6])


def test_a_key_that_one_set_lacks(tmp_path: Path) -> None:
    """Stress and conditions of the first set are kept though the second has none."""
    one, two = sample(4, 1), sample(3, 2)
    arrays, attributes = by_name("trainset", one)
    more, described = hydra_step("valset", two, np.zeros(118))
    more = {key: value for key, value in more.items() if not key.startswith(("valset/graph_attr", "valset/forces"))}
    with open_structures(write_bp(tmp_path / "x.bp", [arrays | more], attributes | described)) as reader:
        found = reader.read(0, 7).validate()
    assert found.has_stress.tolist() == [True] * 4 + [False] * 3
    assert found.has_forces.tolist() == [True] * 4 + [False] * 3
    np.testing.assert_array_equal(found.charge, [*one.charge, *[np.nan] * 3])


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    arrays, attributes = by_name("trainset", sample(4, 1))
    n = 4
    arrays["trainset/y"] = np.zeros((n, 1), np.float32)
    arrays["trainset/y/variable_count"] = np.ones(n, np.int64)
    arrays["trainset/y/variable_offset"] = np.arange(n)
    attributes["energy_linear_regression_coeff"] = np.ones(118)
    path = write_bp(tmp_path / "x.bp", [arrays], attributes)
    (block,) = read_blocks(ReadRequest(path), "bp")
    assert block.notes == {
        "with keys of HydraGNN that are not taken: y": 4,
        "with energies of HydraGNN: linear regression added back": 4,
    }
