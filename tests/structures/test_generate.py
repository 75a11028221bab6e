"""Generated structures are functions of (seed, k), distributed as stated."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st

from atomsieve.errors import UsageError
from atomsieve.structures import StructureBatch, generate_random_boxes, generate_rattled, generate_substituted
from atomsieve.structures.generate import BLOCK, RandomBoxes, Rattled, Substituted, atomic_numbers_of, generate
from tests.structures.structure_samples import assert_equal

PARENTS = StructureBatch.from_ase(
    [bulk("NaCl", "rocksalt", a=5.6, cubic=True), molecule("CH4"), bulk("Fe", cubic=True), bulk("Cu")]
)
RECIPES = {
    "boxes": RandomBoxes(max_atoms=20, charge=0, spin=0),
    "rattled": Rattled(PARENTS, 0.1, 0.05),
    "substituted": Substituted(PARENTS, (3, 11, 19, 8), keep=(1,), rattle=0.01),
}


@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 2500), count=st.integers(0, 1500), seed=st.sampled_from([0, 7]))
def test_structure_k_depends_on_seed_and_k_only(name: str, start: int, count: int, seed: int) -> None:
    whole = StructureBatch.concatenate(list(generate(RECIPES[name], 0, 4000, seed)))
    piece = StructureBatch.concatenate(list(generate(RECIPES[name], start, start + count, seed)))
    if count:
        assert_equal(piece.validate(), whole.slice(start, start + count))
        assert piece.id.tolist() == list(range(start, start + count))
    else:
        assert len(piece) == 0


@pytest.mark.parametrize("name", RECIPES)
def test_seeds_and_blocks_differ(name: str) -> None:
    recipe = RECIPES[name]
    blocks = [recipe.block(b, seed).positions.tobytes() for b in (0, 1, 2) for seed in (0, 1)]
    assert len(set(blocks)) == 6


def test_a_seed_means_the_same_for_ever() -> None:
    """Datasets are named by recipe and seed: these numbers may never change."""
    batch = generate_random_boxes(3, seed=42)
    assert batch.counts.tolist() == [152, 411, 182]
    assert batch.numbers[:5].tolist() == [17, 86, 44, 47, 20]
    np.testing.assert_array_equal(batch.positions[0], [9.4194563527481, 4.703376953595627, 0.6987155639296461])


def test_random_boxes_are_hydragnns() -> None:
    batch = generate_random_boxes(4 * BLOCK, charge=0, spin=0)
    assert (batch.counts.min(), batch.counts.max()) == (2, 500)
    assert abs(batch.counts.mean() - 251) < 3 * 144 / np.sqrt(len(batch))
    assert (batch.numbers.min(), batch.numbers.max()) == (1, 94)
    histogram = np.bincount(batch.numbers, minlength=95)[1:] * 94 / batch.n_atoms
    assert abs(histogram - 1).max() < 0.06
    assert 0 <= batch.positions.min() < 0.001
    assert 9.999 < batch.positions.max() < 10
    assert abs(batch.positions.mean(axis=0) - 5).max() < 0.02
    assert not batch.pbc.any()
    assert not batch.cell.any()
    assert not batch.charge.any()
    assert not batch.spin.any()


def test_rattled_copies() -> None:
    batch = generate_rattled(PARENTS, 3000, rattle=0.1, strain=0.0, seed=3)
    kinds = {PARENTS.numbers[PARENTS.ptr[k] : PARENTS.ptr[k + 1]].tobytes(): k for k in range(4)}
    parent = np.array([kinds[batch.numbers[a:b].tobytes()] for a, b in zip(batch.ptr, batch.ptr[1:], strict=False)])
    assert (np.abs(np.bincount(parent) / 750 - 1) < 0.15).all()
    expected = PARENTS.take(parent)
    moves = batch.positions - expected.positions
    assert abs(moves.std() - 0.1) < 0.001
    assert abs(moves.mean()) < 0.002
    np.testing.assert_array_equal(batch.cell, expected.cell)
    assert batch.energy is None


def test_strain_is_homogeneous_and_bounded() -> None:
    batch = generate_rattled(PARENTS, 2000, rattle=0.0, strain=0.04, seed=3)
    periodic = np.flatnonzero(batch.counts == 8)
    salt = PARENTS.slice(0, 1)
    deformation = np.linalg.solve(salt.cell[0], batch.cell[periodic])
    tensor = deformation - np.eye(3)
    np.testing.assert_allclose(tensor, tensor.transpose(0, 2, 1), atol=1e-12)
    assert 0.039 < np.abs(tensor).max() <= 0.04
    one = int(periodic[0])
    scaled = batch.positions[batch.ptr[one] : batch.ptr[one + 1]] @ np.linalg.inv(batch.cell[one])
    np.testing.assert_allclose(scaled, salt.positions @ np.linalg.inv(salt.cell[0]), atol=1e-12)
    molecules = np.flatnonzero(batch.counts == 5)
    np.testing.assert_array_equal(batch.take(molecules[:1]).positions, PARENTS.slice(1, 2).positions)


def test_substitution_by_species() -> None:
    elements = ["Li", "Na", "K", "O", "F"]
    batch = generate_substituted(PARENTS, 4000, elements, keep=["H"], scale_volume=False, seed=1)
    seen: dict[int, set[tuple[int, ...]]] = {}
    for a, b in zip(batch.ptr, batch.ptr[1:], strict=False):
        seen.setdefault(int(b - a), set()).add(tuple(batch.numbers[a:b].tolist()))
    salt = seen[8]
    assert len(salt) == 20, "every ordered pair of different elements"
    assert all(len(set(numbers[::2])) == 1 and len(set(numbers[1::2])) == 1 for numbers in salt)
    assert seen[5] == {(z, 1, 1, 1, 1) for z in atomic_numbers_of(elements)}, "hydrogen stays"
    assert seen[1] == {(z,) for z in atomic_numbers_of(elements)}
    assert (batch.charge is None) and (batch.spin is None)


def test_substitution_by_sites_and_short_lists() -> None:
    batch = generate_substituted(PARENTS, 2000, ["Cu", "Ag"], by="sites", seed=1)
    assert set(np.unique(batch.numbers)) == {29, 47}
    assert abs((batch.numbers == 29).mean() - 0.5) < 0.02
    salt = batch.take(np.flatnonzero(batch.counts == 8)).numbers.reshape(-1, 8)
    assert len({row.tobytes() for row in salt}) > 150
    one = generate_substituted(PARENTS, 100, ["Cu"])
    assert set(np.unique(one.numbers)) == {29}


def test_volume_follows_the_radii() -> None:
    batch = generate_substituted(PARENTS, 2000, ["Cs", "F"], seed=1)
    salt = batch.take(np.flatnonzero(batch.counts == 8))
    radii = covalent_radii**3
    expected = radii[salt.numbers].reshape(-1, 8).sum(axis=1) / radii[PARENTS.slice(0, 1).numbers].sum()
    volume = np.linalg.det(salt.cell) / np.linalg.det(PARENTS.cell[0])
    np.testing.assert_allclose(volume, expected, rtol=1e-12)
    methane = batch.take(np.flatnonzero(batch.counts == 5))
    np.testing.assert_array_equal(methane.positions[:5], PARENTS.slice(1, 2).positions)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RandomBoxes(min_atoms=0), "min-atoms must be from 1"),
        (lambda: RandomBoxes(max_atoms=1), "max-atoms must be from 2"),
        (lambda: RandomBoxes(max_number=119), "max-number must be from 1 to 118"),
        (lambda: Rattled(PARENTS, rattle=-1), "rattle"),
        (lambda: Rattled(PARENTS, strain=float("nan")), "strain"),
        (lambda: Substituted(PARENTS, ()), "at least one element"),
        (lambda: generate_substituted(PARENTS, 1, ["Fw"]), "unknown element 'Fw'"),
        (lambda: generate_substituted(PARENTS, 1, ["Fe", "Fe"]), "twice"),
        (lambda: generate_substituted(PARENTS, 1, ["Fe"], by="magic"), "species or sites"),
        (lambda: generate_rattled(StructureBatch.empty(), 1), "no structures to start from"),
        (lambda: generate_random_boxes(1, seed=-1), "seed"),
        (lambda: list(generate(RECIPES["boxes"], 5, 3)), "were asked for"),
    ],
)
def test_refused(call, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()
