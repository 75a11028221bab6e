"""The verdict against numbers whose meaning is plain, and the baselines against direct sums."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import DataError
from atomsieve.evaluation.baselines import (
    COMPOSITIONS,
    fit_compositions,
    hash_compositions,
    read_compositions,
    write_compositions,
)
from atomsieve.evaluation.limits import LIMITS, format_limits
from atomsieve.evaluation.verdict import judge, judge_head, judge_training
from atomsieve.gfm.evaluation_file import COLUMNS
from atomsieve.train.record import find_fall

ROOT = Path(__file__).parents[2]
GOOD = {
    "structures": 200,
    "compositions": 150,
    "energy_mae": 12.0,
    "energy_baseline": 500.0,
    "energy_composition": 250.0,
    "energy_rank": 0.99,
    "energy_coverage": 0.91,
    "energy_coverage_se": 0.02,
    "force_mae": 40.0,
    "force_baseline": 600.0,
    "force_coverage": 0.89,
    "force_coverage_se": 0.01,
    "in_domain": 0.97,
    "train_structures": 2000,
}


def grades(**changes):
    return {r.about: (r.grade, r.text) for r in judge_head({**GOOD, **changes})}


def test_a_good_head_is_called_good_beside_both_baselines():
    found = grades()
    assert {about: grade for about, (grade, _) in found.items()} == dict.fromkeys(
        ("energies", "forces", "intervals"), "good"
    )
    text = found["energies"][1]
    assert "12 meV/atom, 2 % of that of element references alone (500), 5 % of copying" in text
    assert "good for ranking between compositions" in text
    assert "90 % intervals held 91 % of energies and 89 % of forces: as they should" in found["intervals"][1]


@pytest.mark.parametrize(
    ("changes", "about", "grade", "words"),
    [
        ({"energy_mae": 206.0, "energy_rank": 0.8, "energy_composition": 480.0}, "energies", "fair", "coarse ranking"),
        ({"energy_mae": 206.0, "energy_composition": 480.0}, "energies", "fair", "not to decide what is stable"),
        ({"energy_mae": 260.0}, "energies", "poor", "no better than copying the nearest composition"),
        ({"energy_mae": 510.0, "energy_composition": None}, "energies", "poor", "no better than element references"),
        ({"energy_rank": 0.3}, "energies", "poor", "too coarse for ranking"),
        ({"compositions": 1}, "energies", "good", "good for comparing structures of one composition"),
        ({"energy_mae": 150.0, "energy_baseline": 2000.0, "energy_composition": None}, "energies", "fair", "coarse"),
        ({"force_mae": 79.0, "force_baseline": 1.4}, "forces", "poor", "worse than predicting zero for these relaxed"),
        ({"force_mae": 10.0, "force_baseline": 7.0}, "forces", "unknown", "larger forces are untested"),
        ({"force_mae": 200.0}, "forces", "fair", "33 % of that of predicting zero"),
        ({"force_mae": 599.0}, "forces", "poor", "no better than zero"),
        (
            {"relaxed": 40, "relaxed_force_mae": 60.0, "relaxed_force_baseline": 8.0},
            "forces",
            "poor",
            "worse than zero for the 40 relaxed structures among these (60 against 8 meV/Å)",
        ),
        ({"energy_coverage": 0.7}, "intervals", "poor", "those of energies are too narrow"),
        ({"energy_coverage": 0.84, "energy_coverage_se": 0.05}, "intervals", "good", "as they should"),
        ({"force_coverage": None, "energy_coverage": None}, "intervals", "poor", "atomsieve calibrate"),
        ({"structures": 6}, "energies", "unknown", "12 meV/atom"),
        ({"structures": 6}, "data", "unknown", "too few to say"),
        ({"train_structures": 24}, "data", "poor", "learnt from 24 structures only"),
        ({"in_domain": 0.5}, "domain", "fair", "50 % of these structures lie outside"),
    ],
)
def test_numbers_become_these_words(changes, about, grade, words):
    found = grades(**changes)
    assert found[about][0] == grade and words in found[about][1], found[about]


def test_a_short_training_is_told_to_go_on():
    short = {"steps": 54, "epochs": 0.83, "train_structures": 1682}
    (one,) = judge_training(short)
    assert one.grade == "poor" and "54 steps" in one.text and "train longer" in one.text
    fell = {"steps": 18182, "epochs": 31.0, "train_structures": 13457, "fall": 0.16, "fall_se": 0.01}
    assert "fell by 16 % when the steps last doubled: longer training" in judge_training(fell)[0].text
    assert "no longer falls" in judge_training({**fell, "fall": 0.01})[0].text
    assert judge_training(None) == judge_training({}) == []


def test_the_fall_of_a_power_law_is_found_and_noise_is_not():
    steps = np.arange(5, 2001, 5.0)
    fall, error = find_fall(steps, steps**-0.3)
    ratio = np.mean(steps[steps > 1000] ** -0.3) / np.mean(steps[(steps > 500) & (steps <= 1000)] ** -0.3)
    assert fall == pytest.approx(1 - ratio) and 0.15 < fall < 0.2 and error < 0.01
    fall, error = find_fall(steps, np.random.default_rng(0).normal(1, 0.1, len(steps)))
    assert abs(fall) < 3 * error
    assert find_fall(steps[:1], steps[:1]) is None and find_fall(steps, -steps) is None
    late = np.where(steps > 1900, -10.0, steps**-0.3)  # another loss from there on
    assert find_fall(steps, late, 1900)[0] == pytest.approx(0.17, abs=0.03)


def test_metrics_of_all_versions_are_judged():
    older_training = {"val": {}, "test": {"a": {k: v for k, v in GOOD.items() if "coverage" not in k}}}
    assert judge(older_training).heads["a"][0].grade == "good"
    part = {"mae": 0.012, "rmse": 0.02, "structures": 50, "coverage": 0.9, "coverage_se": 0.04}
    older_evaluation = {"heads": {"a": {"structures": 50, "energy": part, "force": None, "calibrated": ["energy"]}}}
    texts = [r.text for r in judge(older_evaluation).heads["a"]]
    assert "error 12 meV/atom; nothing to compare it with" in texts[0] and "90 % of energies" in texts[1]
    assert judge({}).format_lines() == []
    frozen = json.loads((ROOT / "tests/frozen/gfm/manifest.json").read_text())["training"]["metrics"]
    assert judge(frozen).heads and all(judge(frozen).heads.values())


def test_heads_are_counted_and_a_part_that_chose_the_weights_is_said():
    heads = {name: dict(GOOD) for name in "abc"} | {"d": {**GOOD, "energy_mae": 700.0}}
    lines = judge({"heads": heads, "default_head": "d", "data": {"part": "val"}}).general
    assert [r.text for r in lines if r.about == "energies"] == [
        "Energies: good for a, b, c (3 of 4); bad for d (1 of 4)."
    ]
    assert lines[0].text.startswith("No test structures were kept") and lines[1].grade == "poor"


def test_the_nearest_composition_predicts_the_mean_of_its_structures(tmp_path):
    def count(**atoms):
        row = np.zeros(119, np.int64)
        for symbol, n in atoms.items():
            row[{"O": 8, "Ti": 22, "Sn": 50}[symbol]] = n
        return row

    train = np.array([count(Ti=1, O=2), count(Ti=2, O=4), count(Sn=1, O=2), count(Ti=1), count(O=1)])
    energy = np.array([-3.0, -12.0, 3.0, 0.5, np.nan])
    found = fit_compositions(train, energy)
    assert len(found.energy) == 3  # TiO2 once, nothing for the structure without an energy
    asked = np.array([count(Ti=4, O=8), count(Ti=3, O=5), count(Sn=1), count(Ti=1, Sn=1, O=4), count(Ti=5)])
    means = {"TiO2": (-1.0 - 2.0) / 2, "SnO2": 1.0, "Ti": 0.5}
    ties = (means["TiO2"] + means["SnO2"]) / 2
    expected = [means["TiO2"], means["TiO2"], means["SnO2"], ties, means["Ti"]]
    np.testing.assert_allclose(found.predict(asked), expected, rtol=1e-6)
    write_compositions(tmp_path, {"b": found}, ["a", "b"])
    again = read_compositions(tmp_path)
    assert list(again) == ["b"]
    np.testing.assert_array_equal(again["b"].predict(asked), found.predict(asked))
    (tmp_path / COMPOSITIONS).write_bytes(b"x" * 40)
    with pytest.raises(DataError, match="evaluation goes without"):
        read_compositions(tmp_path)
    assert read_compositions(tmp_path / "none") == {}
    assert fit_compositions(train[:1], np.array([np.nan])) is None


def test_reduced_formulas_have_one_hash():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, (500, 119))
    hashes = hash_compositions(counts)
    np.testing.assert_array_equal(hash_compositions(3 * counts), hashes)
    assert len(np.unique(hashes)) == 500


def test_the_documentation_has_the_thresholds_of_the_code():
    text = (ROOT / "docs/evaluation.md").read_text()
    assert format_limits() in text
    for key, heading, _, doc in COLUMNS:
        assert f"| `{key}` | {heading} | {doc} |" in text
    used = set(re.findall(r'limit\("(\w+)"\)', (ROOT / "atomsieve/evaluation/verdict.py").read_text()))
    used |= set(re.findall(r"limit\('(\w+)'\)", (ROOT / "atomsieve/evaluation/verdict.py").read_text()))
    assert used == set(LIMITS)
