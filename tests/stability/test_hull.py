"""Distances from hulls: beside pymatgen, beside linear programs, member by member, and where references are missing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from atomsieve.stability import hull
from atomsieve.stability.columns import COLUMNS, chance_below, compute_columns
from atomsieve.stability.hull import HullFinder
from tests.stability.phase_fakes import compositions_of, random_set, random_structures, reference_set

ELEMENTS = (3, 8, 22, 26)


def rows_of(references, seed=1, n=200, elements=ELEMENTS):
    rng = np.random.default_rng(seed)
    structures = random_structures(rng, elements, n)
    return structures, rng.normal(-5, 2, n), rng.normal(0, 0.05, (n, references.members)).astype(np.float32)


def test_distances_are_those_of_pymatgen():
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition, Element

    references = random_set()
    structures, energy, _ = rows_of(references)
    found = HullFinder(references).measure(compositions_of(structures), energy)
    c = references.compositions
    entries = []
    for k in range(len(references)):
        own = slice(c.ptr[k], c.ptr[k + 1])
        amounts = {Element.from_Z(int(z)): int(m) for z, m in zip(c.element[own], c.count[own], strict=True)}
        entries.append(PDEntry(Composition(amounts), references.energy[k] * sum(amounts.values())))
    diagram = PhaseDiagram(entries)
    for structure, e, above, formation in zip(structures, energy, found.above, found.formation, strict=True):
        composition = Composition({Element.from_Z(z): m for z, m in structure})
        assert above == pytest.approx(e - diagram.get_hull_energy_per_atom(composition), abs=1e-8)
        entry = PDEntry(composition, e * composition.num_atoms)
        assert formation == pytest.approx(diagram.get_form_energy_per_atom(entry), abs=1e-8)


@pytest.mark.parametrize("listed", [True, False], ids=["facets", "programs"])
def test_each_member_has_the_hull_of_the_facet_of_the_mean(listed, monkeypatch):
    if not listed:
        monkeypatch.setattr(hull, "QHULL_ELEMENTS", 0)
    references = random_set(3)
    structures, energy, members = rows_of(references)
    rows = compositions_of(structures)
    finder = HullFinder(references)
    found = finder.measure(rows, energy, members)
    for k in range(0, len(structures), 7):
        mixture = finder.decompose(rows, k)
        assert sum(share for share, _ in mixture) == pytest.approx(1)
        at = sum(share * references.energy[p] for share, p in mixture)
        assert found.above[k] == pytest.approx(energy[k] - at, abs=1e-8)
        of = sum(share * references.deviation[p].astype(float) for share, p in mixture)
        np.testing.assert_allclose(found.above_members[k], members[k] - of, atol=1e-6)
        total = sum(m for _, m in structures[k])
        pure = sum(m / total * references.deviation[references.elements[z]].astype(float) for z, m in structures[k])
        np.testing.assert_allclose(found.formation_members[k], members[k] - pure, atol=1e-6)


def test_many_elements_are_solved_by_programs():
    elements = (3, 8, 11, 13, 19, 22, 26, 29)
    references = random_set(5, elements, 80)
    structures, energy, members = rows_of(references, 6, 40, elements)
    found = HullFinder(references).measure(compositions_of(structures), energy, members)
    c = references.compositions
    x = np.zeros((len(references), 128))
    for k in range(len(references)):
        own = slice(c.ptr[k], c.ptr[k + 1])
        x[k, c.element[own]] = c.count[own] / c.count[own].sum()
    for k in range(0, len(structures), 3):
        target = np.zeros(128)
        for z, m in structures[k]:
            target[z] = m
        target /= target.sum()
        best = linprog(references.energy + 100, A_eq=x.T, b_eq=target).fun - 100
        assert found.above[k] == pytest.approx(energy[k] - best, abs=1e-7)


def test_phases_in_one_plane_and_twins_make_no_wrong_facet():
    structures = [[(3, 1)], [(8, 1)], [(26, 1)], [(3, 1), (8, 1)], [(3, 2), (8, 2)], [(8, 1), (26, 1)]]
    structures += [[(3, 1), (8, 2), (26, 1)], [(3, 1), (26, 1)], [(3, 1), (8, 1), (26, 1)]]
    energy = [0.0, 0.0, 0.0, -1.0, -1.0, -1.0, -1.0, 0.0, 0.5]  # the quaternary lies on the line of two binaries
    found = HullFinder(reference_set(structures, energy))
    rows = compositions_of([[(3, 1), (8, 2), (26, 1)], [(3, 1), (8, 1), (26, 1)], [(3, 1), (26, 3)]])
    np.testing.assert_allclose(found.measure(rows, np.array([-1.0, 0.0, 0.1])).above, [0.0, 2 / 3, 0.1], atol=1e-9)


def test_a_hull_of_one_element_and_missing_references():
    references = reference_set([[(3, 1)], [(3, 4)], [(8, 2)]], [-1.0, -1.5, -4.0])
    finder = HullFinder(references)
    found = finder.measure(compositions_of([[(3, 1)], [(3, 1), (29, 1)], [(8, 3)]]), np.array([-1.2, -3.0, -4.5]))
    np.testing.assert_allclose(found.above, [0.3, np.nan, -0.5])
    np.testing.assert_allclose(found.formation, [0.3, np.nan, -0.5])
    assert found.missing.tolist() == [False, True, False] and finder.absent == {29}
    assert found.above_members is None


def test_errors_are_those_of_the_distance_and_missing_members_give_none():
    references = random_set(8, members=3)
    structures, energy, members = rows_of(references)
    members[0] = np.nan
    rows = compositions_of(structures)
    finder = HullFinder(references)
    columns = compute_columns(finder, rows, energy, members, np.full(len(energy), 2.0))
    assert list(columns) == list(COLUMNS)
    expected = 2 * finder.measure(rows, energy, members).above_members.std(1, ddof=1)
    np.testing.assert_allclose(columns["sigma_energy_above_hull"][1:], expected[1:], rtol=1e-5)
    assert np.isnan(columns["sigma_energy_above_hull"][0]) and np.isnan(columns["p_stable"][0])
    assert np.isfinite(columns["energy_above_hull"][0])
    fewer = compute_columns(finder, rows, energy, members[:, :2], np.full(len(energy), 2.0))
    assert np.isnan(fewer["p_stable"]).all()  # members of another ensemble are not matched by their order
    assert (columns["p_stable_100"][1:] >= columns["p_stable"][1:]).all()


def test_chances():
    found = chance_below(0.0, np.array([0.0, -1.0, 1.0, 0.2, np.nan]), np.array([1.0, 0.0, 0.0, np.nan, 1.0]))
    np.testing.assert_allclose(found, [0.5, 1.0, 0.0, np.nan, np.nan])


def test_the_order_of_rows_and_their_number_do_not_matter():
    references = random_set(9)
    structures, energy, members = rows_of(references)
    whole = HullFinder(references).measure(compositions_of(structures), energy, members)
    order = np.random.default_rng(0).permutation(len(energy))[:50]
    part = HullFinder(references).measure(
        compositions_of([structures[k] for k in order]), energy[order], members[order]
    )
    np.testing.assert_allclose(part.above, whole.above[order], atol=1e-12)
    np.testing.assert_allclose(part.above_members, whole.above_members[order], atol=1e-7)
