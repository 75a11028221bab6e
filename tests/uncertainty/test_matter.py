"""Usual densities and coordinations: found again from made data, the same for a slab, and written only if there."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, fcc111

from atomsieve.errors import DataError
from atomsieve.gfm.domain_file import dump_domain, read_domain
from atomsieve.graphs import build_graph
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.domain import HeadDomain
from atomsieve.uncertainty.matter import (
    WEIGHED,
    MatterRange,
    MatterSample,
    count_neighbours,
    fit_matter,
    measure_edges,
)

CUTOFF = 4.5


def sample(images) -> MatterSample:
    batch = StructureBatch.from_ase(images)
    return MatterSample.measure(batch, build_graph(batch, CUTOFF))


def crystals(seed: int, many: int = 40):
    rng = np.random.default_rng(seed)
    return [
        bulk(*kind, a=a * rng.uniform(0.97, 1.03)) for kind, a in [(("Cu", "fcc"), 3.6), (("Fe", "bcc"), 2.87)] * many
    ]


def judge(found: MatterRange, images) -> np.ndarray:
    batch = StructureBatch.from_ase(images)
    graph = build_graph(batch, CUTOFF)
    return np.array(found.judge(batch, *count_neighbours(graph, *measure_edges(graph)), CUTOFF))


@pytest.fixture(scope="module")
def found() -> MatterRange:
    return fit_matter(sample(crystals(0)), sample(crystals(1)), CUTOFF)


def test_volumes_and_bonds_of_elements_are_found_again() -> None:
    rng = np.random.default_rng(0)
    volumes, bonds = np.array([12.0, 20.0, 31.0]), np.array([3.0, 7.0, 11.0])
    parts = np.zeros((300, 119))
    parts[:, [8, 22, 56]] = rng.dirichlet(np.ones(3), 300)
    mean = parts[:, [8, 22, 56]]
    made = MatterSample(WEIGHED * CUTOFF**3 / (mean @ volumes), mean @ bonds, parts)
    fitted = fit_matter(made, made, CUTOFF)
    assert fitted.volumes[[8, 22, 56]] == pytest.approx(volumes, rel=0.02)
    assert fitted.bonds[[8, 22, 56]] == pytest.approx(bonds + 1, rel=0.02)
    assert fitted.ranges == pytest.approx([-0.1, 0.1, -0.1, 0.1], abs=0.02)


def test_crystals_are_usual_and_what_is_blown_up_or_squeezed_is_not(found) -> None:
    copper = bulk("Cu", a=3.6)
    images = [copper, *[bulk("Cu", a=3.6 * f ** (1 / 3)) for f in (1.6, 0.5)], bulk("Fe", a=2.87)]
    dense, bound = judge(found, images)
    assert dense.tolist() == [False, True, True, False] and not bound[0] and not bound[3]
    assert judge(found, [bulk("Cu", a=9.0)]).all(), "free atoms have no neighbours at all"
    assert not judge(found, [bulk("Cu")[:0]]).any()


def test_vacuum_does_not_make_a_slab_less_dense(found) -> None:
    thin, wide = (fcc111("Cu", (1, 1, 12), a=3.6, vacuum=v, periodic=True) for v in (6.0, 40.0))
    one, two = sample([thin]), sample([wide])
    assert one.neighbours == two.neighbours and one.bonds == two.bonds
    assert not judge(found, [thin, wide]).any()


def test_nothing_is_fitted_to_atoms_alone() -> None:
    assert fit_matter(sample([bulk("Cu", a=9.0)]), sample([bulk("Cu", a=9.0)]), CUTOFF) is None


def domain(matter: MatterRange | None) -> HeadDomain:
    one = np.array([29], np.uint8)
    return HeadDomain(
        elements=one,
        seen_in=np.array([5], np.int32),
        paired=5,
        pairs=np.array([[29, 29]], np.uint8),
        closest=np.array([2.4], np.float32),
        structures=np.array([5], np.int32),
        contact=0.9,
        kin=0,
        expected=5.0,
        closer=0.9,
        projection=np.ones((4, 2), np.float32),
        landmarks=np.zeros((1, 2), np.float32),
        owner=one,
        limit=1.0,
        fitted=5,
        held=5,
        matter=matter,
    )


def test_older_fits_have_none_and_damage_is_refused(found, tmp_path) -> None:
    def read(contents: bytes) -> HeadDomain:
        (tmp_path / "domain.safetensors").write_bytes(contents)
        return read_domain(tmp_path, ["one"], 4)["one"]

    older = dump_domain({"one": domain(None)}, ["one"])
    assert read(older).matter is None and b"volumes" not in older
    again = read(dump_domain({"one": domain(found)}, ["one"])).matter
    for name, values in vars(found).items():
        assert np.array_equal(getattr(again, name), values)
    for changes, said in [
        ({"ranges": found.ranges[::-1].copy()}, "two intervals"),
        ({"volumes": -found.volumes}, "must be positive"),
        ({"bonds": found.bonds[:5]}, "must have shape"),
    ]:
        broken = MatterRange(**{**vars(found), **changes})
        with pytest.raises(DataError, match=said):
            read(dump_domain({"one": domain(broken)}, ["one"]))
