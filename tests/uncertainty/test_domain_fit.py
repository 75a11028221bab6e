"""What a head saw: pairs as a plain search finds them, landmarks that tell like from unlike, a file that is checked."""

import dataclasses

import numpy as np
import pytest
from ase.neighborlist import neighbor_list as ase_neighbors
from safetensors.numpy import load, save

from atomsieve.errors import DataError
from atomsieve.gfm import load_gfm, record_files
from atomsieve.gfm.domain_file import dump_domain, read_domain
from atomsieve.gfm.manifest import DOMAIN
from atomsieve.graphs import build_graph
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.domain import POWER, SUMS, find_pair_limits, find_relatives, pool_distances
from atomsieve.uncertainty.domain_fit import (
    _features,
    _hold_back,
    encode,
    find_pairs,
    fit_head,
    join_pairs,
    k_means,
    usual_contact,
)
from tests.helpers import copper_oxides, tiny_ensemble, tiny_gfm

CUTOFF = 5.0


@pytest.fixture(scope="module")
def encoder():
    return tiny_ensemble(2).take([0]).eval()


@pytest.fixture(scope="module")
def batch():
    return copper_oxides(120)


@pytest.fixture(scope="module")
def domain(encoder, batch):
    return fit_head(encoder, batch.take, np.arange(80), np.arange(80, 120))


def by_ase(batch):
    """Return {(a, b): (shortest distance, number of structures)} as ASE finds it."""
    closest, owners = {}, {}
    for s, atoms in enumerate(batch.to_ase()):
        for i, j, d in zip(*ase_neighbors("ijd", atoms, CUTOFF), strict=True):
            pair = tuple(sorted((int(atoms.numbers[i]), int(atoms.numbers[j]))))
            closest[pair] = min(closest.get(pair, np.inf), d)
            owners.setdefault(pair, set()).add(s)
    return {pair: (closest[pair], len(owners[pair])) for pair in closest}


def as_dict(seen):
    rows = zip(seen.pairs.tolist(), seen.closest, seen.structures, strict=True)
    return {tuple(pair): (float(d), int(n)) for pair, d, n in rows}


def test_pairs_are_those_of_a_plain_search(batch):
    few = batch.take(np.arange(25))
    found, expected = as_dict(find_pairs(build_graph(few, CUTOFF))), by_ase(few)
    assert found.keys() == expected.keys() == {(8, 8), (8, 29), (29, 29)}
    for pair, (distance, structures) in expected.items():
        assert found[pair] == (pytest.approx(distance, abs=1e-5), structures)


def test_pairs_of_batches_add_up(batch):
    parts = [find_pairs(build_graph(batch.slice(k, k + 30), CUTOFF)) for k in range(0, 120, 30)]
    whole = find_pairs(build_graph(batch, CUTOFF))
    assert as_dict(join_pairs(parts)) == as_dict(whole)
    assert len(join_pairs([]).pairs) == 0
    assert usual_contact(join_pairs([])) == 0.0


def test_the_domain_holds_what_its_structures_hold(domain, batch):
    assert domain.elements.tolist() == [8, 29]
    expected = by_ase(batch.take(np.arange(80)))
    for pair, distance, structures in zip(domain.pairs.tolist(), domain.closest, domain.structures, strict=True):
        assert expected[tuple(pair)] == (pytest.approx(distance, abs=1e-5), structures)
    assert (domain.fitted, domain.held) == (80, 40)


def test_distances_are_those_of_a_plain_search(domain, encoder, batch):
    few = batch.slice(0, 7)
    features = encode(encoder, few, build_graph(few, CUTOFF))
    expected = np.zeros(few.n_atoms)
    for k, (z, f) in enumerate(zip(few.numbers, features, strict=True)):
        own = domain.landmarks[domain.owner == z].astype(float)
        expected[k] = min(np.linalg.norm(f @ domain.projection - c) for c in own)
    found = domain.atom_distances(few.numbers, features)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    whole = domain.distances(few.numbers, features, few.ptr)
    for s in range(7):
        own = expected[few.ptr[s] : few.ptr[s + 1]]
        assert whole[s] == pytest.approx((own**POWER).mean() ** (1 / POWER) / domain.limit, rel=1e-2)


def test_order_and_batch_do_not_matter(domain, encoder, batch):
    few = batch.slice(0, 12)
    features = encode(encoder, few, build_graph(few, CUTOFF))
    whole = domain.distances(few.numbers, features, few.ptr)
    order = np.random.default_rng(0).permutation(12)
    mixed = few.take(order)
    features = encode(encoder, mixed, build_graph(mixed, CUTOFF))
    np.testing.assert_allclose(domain.distances(mixed.numbers, features, mixed.ptr), whole[order], rtol=1e-3)


def test_the_limit_leaves_the_asked_share_of_held_structures_outside(domain, encoder, batch):
    held = batch.take(np.arange(80, 120))
    distance = domain.distances(held.numbers, encode(encoder, held, build_graph(held, CUTOFF)), held.ptr)
    assert np.sort(distance)[-1] == pytest.approx(1.0, rel=1e-3)  # of 40, the 97.5th percentile with its correction


def test_what_is_unlike_is_far(domain, encoder, batch):
    held = batch.take(np.arange(80, 120))
    cell = held.cell * 0.85
    dense = held.replace(cell=cell, positions=held.positions * 0.85)
    near, far = (domain.distances(b.numbers, encode(encoder, b, build_graph(b, CUTOFF)), b.ptr) for b in (held, dense))
    assert np.median(far) > 2 * np.median(near)
    assert (far > 1).mean() > 0.5 > 0.1 > (near > 1).mean()


def test_without_calibration_structures_a_tenth_is_kept(encoder, batch):
    found = fit_head(encoder, batch.take, np.arange(120))
    assert found.held >= 10
    assert found.held + found.fitted == 120
    assert as_dict(found) == as_dict(find_pairs(build_graph(batch, CUTOFF)))  # the pairs of all count in the end
    assert fit_head(encoder, batch.take, np.arange(9)) is None


def made_of(formulas):
    """Return structures of the given atomic numbers, spread out."""
    numbers = np.concatenate(formulas).astype(np.uint8)
    ptr = np.concatenate([[0], np.cumsum([len(f) for f in formulas])]).astype(np.int64)
    n = len(formulas)
    return StructureBatch(
        ptr, numbers, np.zeros((len(numbers), 3)), np.zeros((n, 3, 3)), np.zeros((n, 3), bool), np.arange(n)
    )


def test_a_tenth_at_most_is_kept_where_most_are_of_one_composition():
    batch = made_of([[29, 29]] * 270 + [[29, 29, k] for k in range(30, 60)])
    rows = np.random.default_rng(1).permutation(300)
    fitted, held = _hold_back(rows, batch.take, np.random.default_rng(0))
    assert sorted([*fitted, *held]) == list(range(300))
    assert len(held) == 30
    assert 10 < (held < 270).sum() < 30  # the composition of many is in both parts


def test_compositions_are_kept_whole():
    batch = made_of([[29] * (k % 20 + 1) + [8] for k in range(400)] + [[29, 29, 8, 8]] * 20)
    fitted, held = _hold_back(np.arange(420), batch.take, np.random.default_rng(0))
    assert 20 <= len(held) <= 42
    formula = np.where(np.arange(420) < 400, np.arange(420) % 20, 0)  # Cu2O2 is CuO
    assert not set(formula[fitted]) & set(formula[held])


def test_features_are_of_the_graph_that_was_trained_on(batch):
    encoder = tiny_ensemble(1, max_neighbors=5).eval()
    found = _features(encoder, np.arange(6), batch.take)[1]
    few = batch.slice(0, 6)
    assert np.array_equal(found, encode(encoder, few, build_graph(few, CUTOFF, max_neighbors=5)))
    assert not np.allclose(found, encode(encoder, few, build_graph(few, CUTOFF)))


def test_the_fit_is_deterministic(domain, encoder, batch):
    again = fit_head(encoder, batch.take, np.arange(80), np.arange(80, 120))
    assert dump_domain({"metal": domain}, ["metal"]) == dump_domain({"metal": again}, ["metal"])


def test_power_mean_without_atoms():
    found = pool_distances(np.array([3.0, 3.0, 1.0, 2.0]), np.array([0, 0, 2, 4, 4]))
    assert found.tolist() == [0.0, pytest.approx(3.0), pytest.approx(8.5**0.25), 0.0]
    assert len(pool_distances(np.zeros(0), np.array([0]))) == 0


def test_k_means_finds_separate_clusters():
    rng = np.random.default_rng(0)
    middle = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    points = (middle[rng.integers(3, size=300)] + 0.1 * rng.normal(size=(300, 2))).astype(np.float32)
    centres = k_means(points, 12, rng)
    assert np.linalg.norm(points[:, None] - centres, axis=2).min(1).max() < 0.6
    assert {tuple(np.round(c / 10).astype(int)) for c in centres} == {(0, 0), (1, 0), (0, 1)}


# -- pairs and their relatives -------------------------------------------------------------------------------------


@pytest.fixture
def rules(domain):
    def limits(pairs, closest, structures, kin=0, seen=None, paired=100, expected=5.0):
        seen = seen or {}
        return find_pair_limits(
            dataclasses.replace(
                domain,
                pairs=np.array(pairs, np.uint8),
                closest=np.array(closest, np.float32),
                kin=kin,
                contact=0.8,
                structures=np.array(structures),
                elements=np.array(list(seen), np.uint8),
                paired=paired,
                seen_in=np.array(list(seen.values()), np.int32),
                expected=expected,
            )
        )

    return limits


def test_a_pair_seen_once_far_apart_makes_no_bond_short(rules):
    bonds, closest = rules([[8, 29]], [3.9], [1])
    assert bonds[8, 29] == pytest.approx(1.25 * SUMS[8, 29])  # never bonded
    assert closest[29, 8] == pytest.approx(0.8 * SUMS[8, 29])
    bonds, closest = rules([[8, 29]], [3.9], [50])  # seen often: then it means something
    assert closest[8, 29] == pytest.approx(3.9)
    assert bonds[8, 29] == bonds[29, 8] > 0
    bonds, closest = rules([[8, 29]], [1.9], [1])
    assert bonds[8, 29] == 0
    assert closest[8, 29] == pytest.approx(0.8 * SUMS[8, 29])


def test_relatives_may_stand_in(rules):
    near = find_relatives(2)
    assert near[26, [26, 27, 25]].all()  # Fe: Co and Mn
    assert near.sum(1)[1:].tolist() == [3] * 118
    cobalt_fluoride = [9, 27]
    some, _ = rules([cobalt_fluoride], [1.9], [1], kin=2)
    none, _ = rules([cobalt_fluoride], [1.9], [1], kin=0)
    assert some[8, 26] == some[26, 8] == 0
    assert some[8, 22] > 0
    assert none[8, 26] == pytest.approx(1.25 * SUMS[8, 26])


def test_a_pair_that_chance_cannot_explain_away_has_no_relatives(rules):
    seen = {8: 50, 26: 12}  # of 100: by chance 6 structures hold both
    pairs, closest = [[9, 26], [8, 27]], [1.9, 1.9]
    strict, _ = rules(pairs, closest, [9, 9], kin=2, seen=seen, expected=5.0)
    lenient, _ = rules(pairs, closest, [9, 9], kin=2, seen=seen, expected=6.1)
    assert strict[8, 26] == pytest.approx(1.25 * SUMS[8, 26])
    assert lenient[8, 26] == 0


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(domain, tmp_path):
    path = tiny_gfm(tmp_path / "gfm")
    record_files(path, {DOMAIN: dump_domain({"metal": domain}, ["organic", "metal"])})
    return path


def test_what_is_written_is_read(folder, domain):
    assert DOMAIN in load_gfm(folder)[1].files
    assert (folder / DOMAIN).stat().st_size < 100_000
    found = read_domain(folder, ["organic", "metal"], 16)
    assert set(found) == {"metal"}
    for field in dataclasses.fields(domain)[:-1]:  # the last is tested in test_matter
        assert np.array_equal(getattr(found["metal"], field.name), getattr(domain, field.name)), field.name
    assert read_domain(folder.parent, ["metal"], 16) == {}


def spoil(name, value):
    return lambda arrays: arrays | {f"1/{name}": value}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: {n: v for n, v in a.items() if n != "1/owner"}, "owner is missing"),
        (spoil("more", np.zeros(3)), "more is unknown"),
        (lambda a: a | {"7/owner": np.zeros(3, np.uint8)}, "no head's"),
        (lambda a: a | {"1/pairs": a["1/pairs"][:, :1]}, "pairs must have shape"),
        (lambda a: a | {"1/pairs": a["1/pairs"][:, ::-1].copy()}, "first of a pair"),
        (lambda a: a | {"1/pairs": a["1/pairs"] + np.uint8(120)}, "atomic numbers from 1 to 118"),
        (lambda a: a | {"1/closest": a["1/closest"].astype(np.float64)}, "closest must be float32"),
        (lambda a: a | {"1/closest": -a["1/closest"]}, "must be positive"),
        (lambda a: a | {"1/landmarks": a["1/landmarks"] * np.float32(np.nan)}, "not finite"),
        (lambda a: a | {"1/landmarks": a["1/landmarks"][:0], "1/owner": a["1/owner"][:0]}, r"landmarks must be"),
        (lambda a: a | {"1/projection": a["1/projection"][:-1]}, "projection must have shape"),
        (lambda a: a | {"1/owner": a["1/owner"][::-1].copy()}, "owner must be sorted"),
        (lambda a: a | {"1/numbers": a["1/numbers"] * -1}, "out of range"),
        (lambda a: a | {"1/numbers": a["1/numbers"][:2]}, "numbers must have shape"),
    ],
)
def test_a_file_that_is_not_what_it_must_be_is_refused(folder, change, said):
    arrays = change(load((folder / DOMAIN).read_bytes()))
    (folder / DOMAIN).write_bytes(save(arrays))
    with pytest.raises(DataError, match=said) as error:
        read_domain(folder, ["organic", "metal"], 16)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_safetensors_are_refused(folder):
    (folder / DOMAIN).write_bytes(b"\x00" * 40)
    with pytest.raises(DataError, match="not a safetensors file"):
        read_domain(folder, ["organic", "metal"], 16)
    with pytest.raises(DataError, match=f"{DOMAIN} has 40 bytes"):
        load_gfm(folder)
