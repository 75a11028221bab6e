"""The worst structures of a head, and what is odd about each, on structures made odd on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from atomsieve.evaluation.baselines import count_elements, hash_compositions
from atomsieve.evaluation.headline import compute_headline
from atomsieve.evaluation.residuals import HeadRows
from atomsieve.evaluation.worst import _SHORT, find_worst
from atomsieve.models.config import HeadSpec
from atomsieve.predict.domain_flags import Outside
from atomsieve.structures import StructureBatch

STATISTICS = {"shortest_distance": 2.1, "force_component_rms": 0.5, "residual_energy_per_atom_std": 0.2}
SPEC = HeadSpec(
    name="a",
    level_of_theory="PBE",
    references={29: -3.0, 47: -2.0, 94: -10.0},
    scale=1.0,
    elements={29: 500, 47: 400, 94: 3},
    statistics=STATISTICS,
)


def dimer(symbols, distance, energy, forces=None):
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(symbols, [[0, 0, 0], [distance, 0, 0]])
    given = np.zeros((2, 3)) if forces is None else np.array([[forces, 0, 0], [-forces, 0, 0]], float)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=given)
    return atoms


def make(frames, predicted, *, outside=None, composition=np.nan):
    batch = StructureBatch.from_ase(frames)
    n, counts = len(batch), count_elements(batch.numbers, batch.structure_of_atom, len(batch))
    table = np.zeros(119)
    table[list(SPEC.references)] = list(SPEC.references.values())
    reference = counts @ table
    spread = np.full(n, 0.02)
    force = batch.forces
    rows = HeadRows(
        position=np.arange(n) + 100,
        natoms=batch.counts,
        elements=np.zeros(n, np.int64),
        status=np.zeros(n, np.uint8),
        outside=np.zeros(n, np.uint8) if outside is None else np.array(outside, np.uint8),
        energy=batch.energy,
        predicted=np.array(predicted, float),
        energy_std=spread,
        sigma_energy=spread,
        interval_energy=1.645 * spread,
        reference=reference,
        composition=reference + np.full(n, composition) * batch.counts,
        formula=hash_compositions(counts),
        atom_structure=batch.structure_of_atom,
        force=force,
        predicted_force=np.zeros_like(force),
        force_spread=np.full(len(force), 0.1),
        sigma_force=np.full(len(force), 0.1),
        interval_force=np.full(len(force), 0.2),
    )
    return rows, lambda positions: batch.take(positions - 100)


def test_each_oddity_is_named():
    frames = [
        dimer("Cu2", 2.2, -6.0, 0.2),
        dimer("Cu2", 1.2, -6.0, 0.2),  # touching
        dimer("CuAg", 2.05, -5.0, 9.0),  # closer than training, high force
        dimer("CuPu", 2.9, -13.0, 0.2),  # rare element
        dimer("Cu2", 2.3, -3.0, 0.0),  # unusual energy, zero forces, doubtful
    ]
    flags = [0, 0, int(Outside.FAR_FROM_TRAINING), 0, 0]
    rows, fetch = make(frames, [-6.1, -6.2, -5.3, -13.4, -6.0], outside=flags, composition=0.0)
    worst = find_worst(rows, SPEC, fetch)
    energies = [one for one in worst if one["property"] == "energy"]
    assert [one["position"] for one in energies] == [104, 103, 102, 101, 100]
    assert energies[0]["error"] == pytest.approx(1500.0) and energies[0]["sigmas"] == pytest.approx(150.0)
    assert energies[0]["label"] == pytest.approx(1.5) and energies[0]["predicted"] == pytest.approx(0.0)
    odd = {one["position"]: "; ".join(one["odd"]) for one in energies}
    assert "all labelled forces are exactly zero" in odd[104] and "unusual energy: +1.50 eV/atom" in odd[104]
    assert "label doubtful: 150 standard errors" in odd[104] and "nearest training composition" in odd[104]
    assert "rarely seen in training: Pu (3 atoms)" in odd[103]
    assert "surroundings far from the training data" in odd[102] and "high force: 9.0 eV/Å" in odd[102]
    assert "two atoms 2.05 Å apart, the shortest in training is 2.10" in odd[102]
    assert "Cu-Cu 1.20 Å apart, 0.45 of their covalent radii" in odd[101]
    assert "radii" not in odd[100] and "rarely" not in odd[100]
    forces = [one for one in worst if one["property"] == "force"]
    assert forces[0]["position"] == 102 and forces[0]["formula"] == "AgCu"
    assert forces[0]["error"] == pytest.approx(3000.0)
    assert 104 not in [one["position"] for one in forces]  # no error, nothing to show


def test_headline_numbers_are_plain_means():
    rng = np.random.default_rng(0)
    labels = -6.0 + rng.normal(0, 0.3, 20)
    rows, _ = make([dimer("Cu2", 2.2, e, 0.05 if k < 12 else 1.5) for k, e in enumerate(labels)], labels + 0.1)
    found = compute_headline(rows)
    assert found["energy_mae"] == pytest.approx(50.0) and found["energy_rank"] == pytest.approx(1.0)
    assert found["energy_baseline"] == pytest.approx(1e3 * np.abs(labels + 6).mean() / 2)
    assert "energy_composition" not in found and found["compositions"] == 1
    assert found["force_mae"] == found["force_baseline"] == pytest.approx(1e3 * (12 * 0.05 + 8 * 1.5) / 20 / 3)
    assert found["relaxed"] == 12 and found["relaxed_force_mae"] == pytest.approx(1e3 * 0.05 / 3)
    assert found["energy_coverage"] == 0.0 and found["in_domain"] == 1.0
    rows, _ = make([dimer("Cu2", 2.2, e) for e in labels], labels, composition=0.01)
    assert compute_headline(rows)["energy_composition"] == pytest.approx(1e3 * np.abs(0.01 - (labels + 6) / 2).mean())


def test_every_reason_against_a_structure_has_words():
    assert set(_SHORT) == set(Outside)
