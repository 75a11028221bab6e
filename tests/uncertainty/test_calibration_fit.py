"""Calibration: known truths are recovered, intervals cover what they promise on fresh data, files are checked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.calibration import Calibration, HeadCalibration, Isotonic, Residuals, parse_calibration
from atomsieve.uncertainty.calibration_fit import (
    FEWEST,
    FEWEST_GROUP,
    calibrate_head,
    calibrate_property,
    fit_isotonic,
    fit_scale,
    quantiles,
)
from atomsieve.uncertainty.strata import ELEMENT_GROUPS, choose_group, find_element_group, find_size_edges, list_groups


def sample(n: int, seed: int = 0, factor: float = 3.0, power: float = 1.0, elements: np.ndarray | None = None):
    """Errors whose standard deviation is factor x spread^power; spreads within two decades."""
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-2, 0, n)
    size = factor * spread**power
    if elements is not None:
        size = size * np.where(elements == 1, 4.0, 1.0)
    return Residuals(
        energy_error=rng.normal(size=n) * size,
        energy_spread=spread,
        natoms=rng.integers(2, 60, n),
        elements=np.zeros(n, np.int64) if elements is None else elements,
        force_error=np.zeros((0, 3)),
        force_spread=np.zeros(0),
        structure=np.zeros(0, np.int64),
    )


def energies(residuals: Residuals):
    found = calibrate_head(residuals).energy_per_atom
    assert found is not None
    return found


def coverage(fit, residuals: Residuals, level: float = 0.9, chosen=slice(None)) -> float:
    """Share of errors within the interval by the documented rule, structure by structure."""
    names = list_groups(residuals.elements, residuals.natoms, fit.size_edges)
    column = choose_group(names, fit.groups)
    factor = [fit.quantile(level, None if c == 3 else str(row[c])) for row, c in zip(names, column, strict=True)]
    within = np.abs(residuals.energy_error) <= fit.sigma(residuals.energy_spread) * np.array(factor)
    return float(within[chosen].mean())


def test_the_scale_is_recovered_and_is_the_likelihoods_maximum():
    found = sample(20_000)
    fit = energies(found)
    assert fit.scale == pytest.approx(3.0, rel=0.02)

    def likelihood(scale):
        sigma = scale * found.energy_spread
        return -np.sum(np.log(sigma) + 0.5 * (found.energy_error / sigma) ** 2)

    assert likelihood(fit.scale) > max(likelihood(fit.scale * 1.01), likelihood(fit.scale * 0.99))


@pytest.mark.parametrize("level", [0.5, 0.68, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [60, 2000])
def test_conformal_intervals_cover_fresh_data_as_promised(n, level):
    """Within 4 standard errors: of the fresh sample, and of the quantile, whose coverage is a Beta variable."""
    fresh = [coverage(energies(sample(n, k)), sample(4000, 1000 + k), level) for k in range(5)]
    spread = np.sqrt(level * (1 - level) * (1 / (5 * n) + 1 / 20_000))
    assert np.mean(fresh) == pytest.approx(level, abs=4 * spread + 0.5 / n)


def test_conformal_intervals_cover_heavy_tails_where_gaussian_ones_do_not():
    def heavy(n, seed):
        found = sample(n, seed)
        error = found.energy_spread * np.random.default_rng(seed).standard_t(2.1, size=n)
        return Residuals(**{**vars(found), "energy_error": error})

    fit, fresh = energies(heavy(3000, 1)), heavy(20_000, 2)
    assert coverage(fit, fresh) == pytest.approx(0.9, abs=0.025)
    assert np.mean(np.abs(fresh.energy_error) < 1.645 * fit.scale * fresh.energy_spread) > 0.94


def test_the_monotone_map_beats_the_scale_where_the_spread_says_too_little():
    fit, fresh = energies(sample(3000, power=0.3)), sample(20_000, 9, power=0.3)
    truth = 3.0 * fresh.energy_spread**0.3
    by_map, by_scale = fit.sigma(fresh.energy_spread), fit.scale * fresh.energy_spread
    assert fit.isotonic is not None
    assert np.median(np.abs(np.log(by_map / truth))) < 0.12
    assert np.median(np.abs(np.log(by_scale / truth))) > 0.4
    assert fit.coverage["conformal"] == pytest.approx(0.9, abs=0.02)
    assert len(fit.isotonic.spread) <= 34


def test_groups_whose_errors_differ_are_covered_each():
    rng = np.random.default_rng(3)
    train, test = (sample(n, s, elements=rng.integers(0, 2, n)) for n, s in ((3000, 1), (20_000, 2)))
    fit = energies(train)
    assert set(fit.groups) == {f"{e}/{n}" for e in ("oxide", "metallic") for n in ("small", "medium", "large")}
    alone = fit.model_copy(update={"groups": {}})
    for group in (0, 1):
        own = test.elements == group
        assert coverage(fit, test, chosen=own) == pytest.approx(0.9, abs=0.03)
        assert abs(coverage(alone, test, chosen=own) - 0.9) > 0.05


def two_sizes(kind: str, n: int, seed: int) -> Residuals:
    """Oxides of 5 atoms and others of 50, whose errors are three times as large; metals besides, as `kind` says."""
    rng = np.random.default_rng(seed)
    share = {
        "oxides": [0.85, 0.15, 0, 0],
        "few": [0.55, 0.05, 0, 0.4],
        "rest": [0.5, 0.06, 0.2, 0.24],
        "many": [0.3, 0.2, 0.3, 0.2],
    }[kind]
    which = rng.choice(4, n, p=share)
    large = which % 2 == 1
    return Residuals(
        energy_error=rng.normal(size=n) * np.where(large, 3.0, 1.0) * np.where(which == 3, 0.2, 1.0),
        energy_spread=rng.uniform(0.9, 1.1, n),
        natoms=np.where(large, 50, 5),
        elements=(which < 2).astype(np.int64),
        force_error=np.zeros((0, 3)),
        force_spread=np.zeros(0),
        structure=np.zeros(0, np.int64),
    )


@pytest.mark.parametrize("kind", ["oxides", "few", "rest", "many"])
def test_every_category_is_covered_by_itself_on_fresh_structures(kind):
    """A category is what takes one quantile; those of no finer group are not covered by what that group gave."""
    fresh, shares = two_sizes(kind, 20_000, 99), {}
    for seed in range(8):
        fit = energies(two_sizes(kind, 1000, seed))
        names = list_groups(fresh.elements, fresh.natoms, fit.size_edges)
        column = choose_group(names, fit.groups)
        category = np.array(["" if c == 3 else str(row[c]) for row, c in zip(names, column, strict=True)])
        for name in np.unique(category):
            shares.setdefault(name, []).append(coverage(fit, fresh, chosen=category == name))
        shares.setdefault("large oxides", []).append(
            coverage(fit, fresh, chosen=(fresh.elements == 1) & (fresh.natoms == 50))
        )
    assert {name for name, found in shares.items() if np.mean(found) < 0.88} == set()


def test_a_group_needs_enough_structures_and_the_finest_that_has_them_applies():
    elements = np.zeros(600, np.int64)
    elements[: FEWEST_GROUP - 1] = 1
    fit = energies(sample(600, elements=elements))
    assert set(fit.groups) == {"metallic/small", "metallic/medium", "metallic/large"}
    names = list_groups(np.array([0, 1]), np.array([2, 2]), fit.size_edges)
    assert names[0].tolist() == ["metallic/small", "metallic", "small"]
    assert choose_group(names, fit.groups).tolist() == [0, 3]
    assert choose_group(names, ["metallic", "small"]).tolist() == [1, 2]
    assert choose_group(names, []).tolist() == [3, 3]


@pytest.mark.parametrize("left", [0, 5, 60])
def test_the_few_that_are_left_take_the_larger_quantile(left):
    elements = np.zeros(1000, np.int64)
    elements[:left] = 1
    one, other = (sample(1000, elements=e) for e in (elements, np.zeros(1000, np.int64)))
    fit, alike = energies(one), energies(other)
    assert sum(group.n for group in fit.groups.values()) == 1000 - left
    if left == 0:
        assert fit == alike  # as of all structures
    else:
        assert fit.quantile(0.9) > 1.5 * alike.quantile(0.9)
    narrow = Residuals(**{**vars(one), "energy_error": np.where(elements == 1, 0.0, one.energy_error)})
    assert energies(narrow).quantile(0.9) > 0.9 * alike.quantile(0.9)


def test_structures_fall_into_the_documented_groups():
    from ase import Atoms
    from ase.build import bulk, molecule

    images = [
        bulk("Cu"),
        bulk("MgO", "rocksalt", a=4.2),
        bulk("NaCl", "rocksalt", a=5.6),
        bulk("GaAs", "zincblende", a=5.6),
        molecule("CH3CH2OH"),
        Atoms("BiOCl", positions=[[0, 0, 0], [0, 0, 2], [0, 2, 0]]),
        bulk("Si"),
    ]
    found = [ELEMENT_GROUPS[g] for g in find_element_group(StructureBatch.from_ase(images))]
    assert found == ["metallic", "oxide", "halide", "chalcogenide_pnictide", "nonmetallic", "oxide", "metallic"]


def test_tertiles_of_size_hold_a_third_each():
    natoms = np.random.default_rng(0).permutation(np.arange(1, 301))
    classes = np.searchsorted(find_size_edges(natoms), natoms, side="right")
    assert np.bincount(classes).tolist() == [100, 100, 100]
    for mostly in (5, 50):  # one size that most have is a class of its own
        natoms = np.array([5, 50] * 10 + [mostly] * 80)
        assert len(np.unique(np.searchsorted(find_size_edges(natoms), natoms, side="right"))) == 2
    assert find_size_edges(np.full(7, 3)) == [3, 3] and find_size_edges(np.zeros(0, np.int64)) == []


def test_quantiles_are_those_of_the_finite_sample():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))  # n = 19: ranks 10, 13.6, 16, 18, 19
    assert quantiles(scores) == {"0.5": 10.0, "0.68": 14.0, "0.8": 16.0, "0.9": 18.0, "0.95": 19.0}
    assert "0.95" not in quantiles(scores[:18])


def test_wider_levels_give_wider_intervals_and_more_spread_no_smaller_sigma():
    fit = energies(sample(1000, power=0.5))
    for group in (None, *fit.groups):
        limits = [fit.quantile(level, group) for level in (0.5, 0.68, 0.8, 0.9, 0.95)]
        assert limits == sorted(limits)
    grid = np.logspace(-4, 3, 400)
    sigma = fit.sigma(grid)
    assert (sigma > 0).all() and (np.diff(sigma) >= 0).all()
    assert sigma[-1] == pytest.approx(10 * fit.sigma(np.array([100.0]))[0])  # beyond what was seen: in proportion
    assert np.isnan(fit.sigma(np.array([np.nan])))[0]


def test_the_order_of_structures_changes_nothing():
    found = sample(700)
    order = np.random.default_rng(1).permutation(700)
    arrays = ("energy_error", "energy_spread", "natoms", "elements")
    turned = Residuals(**{k: v[order] if k in arrays else v for k, v in vars(found).items()})
    first, second = energies(found).model_dump(), energies(turned).model_dump()
    assert first.pop("scale") == pytest.approx(second.pop("scale"), rel=1e-12)
    for one, two in ((first["isotonic"], second["isotonic"]), (first["conformal"], second["conformal"])):
        for key, value in one.items():
            assert value == pytest.approx(two[key], rel=1e-9)
    assert first["coverage"] == second["coverage"]


def test_few_or_unusable_structures_stay_uncalibrated():
    assert calibrate_head(sample(FEWEST - 1)).calibrated == frozenset()
    found = sample(FEWEST)
    assert calibrate_head(found).calibrated == {"energy"}
    found.energy_error[0] = np.nan
    assert calibrate_head(found).energy_per_atom is None
    still = sample(FEWEST)
    still.energy_spread[:] = 0.0
    assert calibrate_head(still).energy_per_atom is None
    for right in (20, 19):  # without its own fold a single error leaves no scale
        exact = sample(20)
        exact.energy_error[:right] = 0.0
        assert calibrate_head(exact).energy_per_atom is None
    exact = sample(200)
    exact.energy_error[30:] = 0.0
    assert calibrate_head(exact).calibrated == {"energy"}


def test_spreads_that_are_rounding_do_not_spoil_the_scale():
    """Symmetry makes some forces zero: error and spread are rounding, and their ratio is anything."""
    found = sample(5000)
    found.energy_spread[::4], found.energy_error[::4] = 1e-12, 1e-8
    fit = energies(found)
    assert fit.scale == pytest.approx(3.0 * np.sqrt(0.75), rel=0.05)
    assert fit.sigma(np.array([0.0]))[0] == fit.sigma(np.array([fit.floor]))[0] > 0


def test_force_components_of_a_structure_stay_in_one_fold_and_count_by_structure():
    rng = np.random.default_rng(0)
    structure = np.repeat(np.arange(FEWEST - 1), 50)
    base = sample(FEWEST - 1)
    fit = calibrate_property(rng.normal(size=450), np.ones(450), structure, base)
    assert fit is None  # many components, few structures
    base, structure = sample(300), np.repeat(np.arange(300), 12)
    shared = rng.normal(size=300)[structure]  # all components of a structure have one error
    fit = calibrate_property(shared, np.ones(3600), structure, base)
    assert fit is not None and fit.structures == 300 and fit.n == 3600
    assert fit.isotonic is None  # one value of spread is no map
    assert fit.scale == pytest.approx(fit_scale(shared, np.ones(3600)))


def test_a_map_is_monotone_whatever_the_data():
    rng = np.random.default_rng(0)
    found = fit_isotonic(rng.normal(size=400) * 0.1, rng.uniform(1, 2, 400), 20)
    assert found is not None
    assert (np.diff(found.sigma) >= 0).all()
    none = fit_isotonic(np.linspace(2, 1, 400), np.linspace(1, 2, 400), 20)  # errors that fall: the best map is flat
    assert none is not None and np.ptp(none.sigma) < 1e-9
    with pytest.raises(ValueError, match="must not fall"):
        Isotonic(spread=[1.0, 2.0], sigma=[2.0, 1.0])


def test_a_calibration_file_round_trips_and_names_what_is_wrong():
    whole = Calibration(atomsieve="0", members=3, heads={"metal": calibrate_head(sample(500))})
    assert parse_calibration(whole.dumps()) == whole
    assert parse_calibration(b"{}") == Calibration() == parse_calibration(Calibration().dumps())
    raw = json.loads(whole.dumps())
    changes = [
        (lambda r: r.update(schema_version=3), "version 3, this program reads 'atomsieve-calibration' version 2"),
        (lambda r: r.update(more=1), "more: Extra inputs"),
        (lambda r: r["heads"]["metal"]["energy_per_atom"].update(scale=-1.0), r"metal\.energy_per_atom\.scale"),
        (lambda r: r["heads"]["metal"]["energy_per_atom"]["isotonic"]["sigma"].pop(), "spreads but"),
        (lambda r: r["heads"]["metal"]["energy_per_atom"].update(size_edges=[1, 2, 3, 4]), "size_edges: List should"),
        (lambda r: r["heads"]["metal"]["energy_per_atom"].update(size_edges=[2, 1]), "size_edges must not fall"),
        (lambda r: r["heads"]["metal"]["energy_per_atom"].update(size_edges=[-1, 1]), r"size_edges\.0"),
        (lambda r: r["heads"].update({"a\nb": 1}), r"heads\.a b"),
    ]
    for change, message in changes:
        bad = json.loads(json.dumps(raw))
        change(bad)
        with pytest.raises(DataError, match=message) as caught:
            parse_calibration(bad, "calibration.json")
        assert "\n" not in str(caught.value) and "calibrate the ensemble again" in str(caught.value)
    entry = b'{"heads": {"metal": {"energy_per_atom": %s}}}'
    for damaged in (
        b"{",
        b"[]",
        b"[" * 200_000,
        entry % b'{"scale": "x"}',
        entry % b'{"scale": 1, "n": 1e999}',
        entry % b'{"scale": 1%s, "n": 1}' % (b"0" * 400),
    ):
        with pytest.raises(DataError, match="calibrate the ensemble again"):
            parse_calibration(damaged)


def test_an_old_file_gives_its_scale_and_gaussian_intervals():
    old = {"fitted_on": "x", "heads": {"metal": {"energy_per_atom": {"scale": 2.0, "n": 30, "coverage_90": 0.9}}}}
    fit = parse_calibration(old).head("metal").energy_per_atom
    assert (fit.scale, fit.n, fit.quantile(0.9)) == (2.0, 30, 1.645)
    assert parse_calibration(old).head("organic") == HeadCalibration()
    with pytest.raises(UsageError, match=r"level 0\.7 is not calibrated; allowed: 0\.5"):
        fit.quantile(0.7)
