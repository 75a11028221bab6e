"""The check of artefacts: its structures, the reference, errors, verdicts, and the fresh process."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from ase.data import covalent_radii

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.export import checks as checks_module
from atomsieve.export import fidelity
from atomsieve.export.checks import DENSEST, Checks, Part, generate_part
from atomsieve.export.fidelity import (
    MARGIN,
    TOLERANCES,
    compare,
    evaluate_reference,
    find_violation,
    measure_in_process,
)
from atomsieve.export.spec import Spec, entry_of, import_format
from atomsieve.export.trust import trust
from atomsieve.gfm import ensemble_id, load_gfm, read_manifest
from atomsieve.graphs import build_graph, shortest_distances
from atomsieve.structures import StructureBatch, write_structures
from tests.export.export_checks import eager_outputs
from tests.helpers import copper_oxides, tiny_ensemble, tiny_gfm, tiny_heads


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(checks_module, "VARIED", 24)
    monkeypatch.setattr(checks_module, "RANKED", 120)


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("gfm") / "gfm", layers=1)


# -- structures ----------------------------------------------------------------------------------------------------


def test_checks_are_a_function_of_the_manifest(gfm, tmp_path):
    one, two = Checks.of(read_manifest(gfm)), Checks.of(read_manifest(gfm))
    two.save(tmp_path / "checks.npz")
    read = Checks.load(tmp_path / "checks.npz")
    for name in ("vector", "varied", "ranked"):
        arrays = getattr(one, name).arrays()
        for other in (two, read):
            assert {n: a.tolist() for n, a in getattr(other, name).arrays().items()} == {
                n: a.tolist() for n, a in arrays.items()
            }
    assert (len(one.varied.batch), len(one.ranked.batch)) == (200, 5000)
    assert not read.own


@pytest.mark.parametrize("sizes", ["varied", "small"])
def test_generated_structures_are_sane_and_of_many_kinds(sizes):
    heads = tiny_heads()
    heads[1].statistics["shortest_distance"] = 2.1
    part = generate_part(heads, [k % 2 for k in range(160)], sizes, charged=False)
    batch = part.batch.validate()
    for k, head in enumerate(heads):
        own = batch.take(np.flatnonzero(part.head == k))
        assert set(own.numbers.tolist()) == set(head.references)
    assert (batch.counts.min(), batch.counts.max()) == ((1, 100) if sizes == "varied" else (2, 12))
    kinds = set(batch.pbc.sum(1).tolist())
    assert kinds == ({0, 1, 2, 3} if sizes == "varied" else {0, 3})
    graph = build_graph(batch, 4.0, dtype=torch.float64)
    i, j = graph.neighbors.receiver.numpy(), graph.neighbors.sender.numpy()
    radii = covalent_radii[batch.numbers]
    length = np.linalg.norm(graph.vec.numpy(), axis=1)
    assert (length >= 0.8 * (radii[i] + radii[j])).all()
    assert (length[part.head[batch.structure_of_atom[i]] == 1] >= 2.1).all()
    solid = batch.pbc.all(1)
    density = batch.counts[solid] / np.abs(np.linalg.det(batch.cell[solid]))
    assert density.max() < 1.3 * DENSEST  # strain adds a little
    assert batch.charge is None


def test_models_with_charge_get_charges():
    batch = generate_part(tiny_heads(), [0] * 100, "small", charged=True).batch
    assert set(batch.charge.tolist()) == {-1, 0, 1, 2}
    assert set(batch.spin.tolist()) == {1, 2, 3}


def test_pieces_cover_a_part_within_their_budget(gfm):
    part = Checks.of(read_manifest(gfm)).varied
    pieces = part.pieces(5.0, 4000, max_atoms=150)
    assert np.array_equal(np.concatenate(pieces), np.arange(200))
    assert all(len(p) == 1 or part.batch.counts[p].sum() <= 150 for p in pieces)
    assert len(Part(part.batch.take([]), part.head[:0]).pieces(5.0, 100)) == 0


def test_own_structures_are_taken_where_they_can_be(gfm, tmp_path, few):
    good, bad = copper_oxides(40), copper_oxides(5, seed=3)
    bad.positions[bad.ptr[0]] = np.nan
    bad.numbers[bad.ptr[1]] = 79
    bad.cell[2] = 0.0
    bad.positions[bad.ptr[3]] = bad.positions[bad.ptr[3] + 1] if bad.counts[3] > 1 else np.inf
    bad = bad.take([k for k in range(4) if k != 3 or bad.counts[3] > 1])
    both = StructureBatch.concatenate([good.slice(0, 20), bad, good.slice(20, 40)])
    write_structures(tmp_path / "own.bp", both, [])
    checks = Checks.of(read_manifest(gfm), tmp_path / "own.bp")
    assert checks.own
    assert len(checks.ranked.batch) == 40
    assert (checks.ranked.head == 1).all()
    assert len(checks.varied.batch) == 24
    assert shortest_distances(checks.ranked.batch).min() > 0.5
    known = [set(h.references) for h in tiny_heads()]
    for k, head in enumerate(checks.varied.head):
        assert set(checks.varied.batch.take([k]).numbers.tolist()) <= known[head]


def test_of_many_own_structures_some_from_everywhere_are_taken(gfm, tmp_path, few):
    batch = copper_oxides(700)
    write_structures(tmp_path / "many.bp", batch, [])
    checks = Checks.of(read_manifest(gfm), tmp_path / "many.bp")
    assert len(checks.ranked.batch) == 120
    assert len(checks.varied.batch) == 24
    assert np.abs(checks.varied.batch.positions[-1]).max() > 0


def test_own_structures_of_which_none_serves_are_refused(gfm, tmp_path):
    batch = copper_oxides(3)
    write_structures(tmp_path / "gold.bp", batch.replace(numbers=np.full(batch.n_atoms, 79, np.uint8)), [])
    with pytest.raises(UsageError, match=r"none of the structures of .*gold.bp .* elements that a head knows"):
        Checks.of(read_manifest(gfm), tmp_path / "gold.bp")


# -- reference -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [{}, {"forces": "direct"}, {"max_neighbors": 6}, {"charge_spin": True}, {"members": 1, "layers": 1}]
)
def test_the_reference_is_the_eager_ensemble(config, tmp_path, few):
    folder = tiny_gfm(tmp_path / "gfm", **config)
    ensemble, manifest = load_gfm(folder)
    checks = Checks.of(manifest)
    values = evaluate_reference(ensemble, checks)
    for name in ("vector", "varied", "ranked"):
        part = getattr(checks, name)
        expected = eager_outputs(ensemble, part.batch, part.head.tolist())
        assert part.batch.counts.min() > 0
        for quantity in ("energy", "energy_std", "energy_members", "forces", "forces_std", "forces_members"):
            if name == "ranked" and quantity.startswith("forces"):
                assert f"ranked.{quantity}" not in values
                continue
            found = values[f"{name}.{quantity}"]
            np.testing.assert_allclose(found, expected[quantity], rtol=1e-12, atol=1e-9, err_msg=quantity)
        if "virial" in expected and name != "ranked":
            solid = part.batch.pbc.all(1)
            volume = np.abs(np.linalg.det(part.batch.cell[solid]))[:, None, None]
            np.testing.assert_allclose(
                values[f"{name}.stress"][solid], expected["virial"][solid] / volume, rtol=0, atol=1e-10
            )
            assert np.isnan(values[f"{name}.stress"][~solid]).all()
    stored = np.concatenate([h["energy_members"] for h in manifest.test_vector["heads"].values()], axis=1)
    np.testing.assert_allclose(values["vector.energy_members"], stored, rtol=1e-12)


# -- errors and verdicts -------------------------------------------------------------------------------------------


def made_by_hand(n=3, ranked=1000):
    """Checks with n pairs of atoms in a cube each, single atoms to rank, and values for them all, forces 1 eV/A."""
    cell = np.tile(10 * np.eye(3), (n, 1, 1))
    batch = StructureBatch(
        ptr=2 * np.arange(n + 1, dtype=np.int64),
        numbers=np.full(2 * n, 8, np.uint8),
        positions=np.zeros((2 * n, 3)),
        cell=cell,
        pbc=np.ones((n, 3), bool),
        id=np.arange(n),
    )
    small = StructureBatch(
        ptr=np.arange(ranked + 1, dtype=np.int64),
        numbers=np.full(ranked, 8, np.uint8),
        positions=np.zeros((ranked, 3)),
        cell=np.zeros((ranked, 3, 3)),
        pbc=np.zeros((ranked, 3), bool),
        id=np.arange(ranked),
    )
    part = Part(batch, np.zeros(n, np.int64))
    checks = Checks(part, part, Part(small, np.zeros(ranked, np.int64)))
    values = {}
    for name in ("vector", "varied"):
        values |= {
            f"{name}.atomic": np.full(n, -4000.0),
            f"{name}.energy": -4000.0 + np.arange(n, dtype=float),
            f"{name}.energy_std": np.full(n, 0.5),
            f"{name}.forces": np.ones((2 * n, 3)),
            f"{name}.forces_std": np.full((2 * n, 3), 0.1),
            f"{name}.stress": np.full((n, 3, 3), 0.01),
        }
    values |= {"ranked.atomic": np.full(ranked, -7.0), "ranked.energy": -7.0 + np.linspace(0, 1, ranked)}
    return checks, values


def changed(values, name, place, by):
    new = values[name].copy()
    new[place] += by
    return {**{n: a for n, a in values.items() if not n.endswith("atomic")}, name: new}


def test_errors_are_per_atom_and_by_part():
    checks, exact = made_by_hand()
    found = changed(exact, "varied.energy", 1, 0.06)
    found = changed(found, "varied.forces", (2, 1), -0.3)
    errors = compare(exact, found, checks)
    assert json.loads(json.dumps(errors)) == errors
    energy, force = errors["varied"]["energy_per_atom"], errors["varied"]["force"]
    assert energy["max"] == pytest.approx(0.03)
    assert energy["rms"] == pytest.approx(0.03 / np.sqrt(3))
    assert energy["scale"] == pytest.approx(np.std([0, 0.5, 1]))
    assert force["max"] == force["judged"] == pytest.approx(0.3)
    assert force["rms"] == pytest.approx(0.3 / np.sqrt(18))
    assert force["scale"] == 1
    assert errors["vector"]["energy_per_atom"]["max"] == 0
    assert errors["varied"]["stress"]["max"] == errors["varied"]["force_std"]["max"] == 0
    assert errors["ranked"] == {"spearman": pytest.approx(1), "best": 1.0, "of": 10}
    assert errors["structures"] == {"vector": 3, "varied": 3, "ranked": 1000}


@pytest.mark.parametrize(
    ("name", "place", "quantity"),
    [
        ("varied.energy", 0, "energy per atom"),
        ("vector.energy_std", 2, "energy std per atom"),
        ("varied.forces", (5, 2), "force"),
        ("vector.forces_std", (0, 0), "force std"),
        ("varied.stress", (1, 0, 2), "stress"),
    ],
)
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_whatever_exceeds_its_tolerance_fails(name, place, quantity, precision):
    checks, exact = made_by_hand()
    tolerance = TOLERANCES[precision]
    kind = "energy" if "energy" in name else "stress" if "stress" in name else "force"
    limit = getattr(tolerance, kind) * (2 if kind == "energy" else 1)  # two atoms
    assert find_violation(compare(exact, changed(exact, name, place, 0.9 * limit), checks), precision) is None
    said = find_violation(compare(exact, changed(exact, name, place, 1.1 * limit), checks), precision)
    assert said.startswith(f"{quantity} is off by ")
    assert f"{precision} may be off by {getattr(tolerance, kind):.0e}" in said
    assert ("the test vector" in said) == name.startswith("vector")
    assert "\n" not in said


def test_where_eager_fp32_is_off_an_artefact_may_be_off_ten_times_as_much():
    checks, exact = made_by_hand()
    count = len(checks.varied.batch)
    condition = np.zeros(count)
    condition[0] = MARGIN * 3.0  # eager FP32 is off by three times its tolerance on the first structure
    exact = {**exact, "varied.condition": condition}
    atoms = checks.varied.batch.counts[0]
    for place, off, passes in ((0, 1.4e-4, True), (0, 1.6e-4, False), (1, 5.1e-6, False)):
        off = off * (atoms if place == 0 else checks.varied.batch.counts[1])
        errors = compare(exact, changed(exact, "varied.energy", place, off), checks)
        assert (find_violation(errors, "fp32") is None) == passes
        assert errors["beyond_fp32"] == {"vector": 0, "varied": 1}


def test_single_members_may_be_off_by_more_than_their_mean():
    checks, exact = made_by_hand()
    energy = exact["varied.energy"]
    exact = {**exact, "varied.energy_members": np.tile(energy, (4, 1))}
    counts = checks.varied.batch.counts
    for off, passes in ((9e-6, True), (1.1e-5, False)):  # sqrt(4) times 5e-6 eV/atom
        found = {**exact, "varied.energy_members": exact["varied.energy_members"] + off * counts * np.eye(4, 1)}
        assert (find_violation(compare(exact, found, checks), "fp32") is None) == passes
        mean = {**exact, "varied.energy": energy + off * counts}
        assert find_violation(compare(exact, mean, checks), "fp32") is not None


def test_errors_may_grow_with_the_values_of_their_structure_alone():
    checks, exact = made_by_hand()
    exact = {**exact, "varied.forces": exact["varied.forces"].copy()}
    exact["varied.forces"][4] = 200.0  # 20 times what is ordinary, in the last structure
    assert find_violation(compare(exact, changed(exact, "varied.forces", (5, 0), 9e-4), checks), "fp32") is None
    assert "force is off by 5.5e-05" in find_violation(
        compare(exact, changed(exact, "varied.forces", (5, 0), 1.1e-3), checks), "fp32"
    )
    assert "force is off" in find_violation(
        compare(exact, changed(exact, "varied.forces", (0, 0), 9e-4), checks), "fp32"
    )


@pytest.mark.parametrize("name", ["vector.energy", "varied.forces_std", "ranked.energy"])
def test_a_number_that_is_not_finite_fails(name):
    checks, exact = made_by_hand()
    assert "not finite" in find_violation(compare(exact, changed(exact, name, 0, np.nan), checks), "bf16")


def test_what_the_reference_lacks_is_not_compared():
    checks, exact = made_by_hand()
    alone = {n: np.full_like(a, np.nan) if "std" in n else a for n, a in exact.items()}  # one member
    errors = compare(alone, changed(alone, "varied.energy", 0, 0), checks)
    assert "energy_std_per_atom" not in errors["varied"]
    assert find_violation(errors, "fp64") is None
    energies = {n: a for n, a in exact.items() if "force" not in n and "stress" not in n}
    assert set(compare(exact, energies, checks)["varied"]) == {"energy_per_atom", "energy_std_per_atom"}


def test_an_array_of_another_shape_is_named():
    checks, exact = made_by_hand()
    with pytest.raises(AtomSieveError, match=r"shape \[4\], expected \[3\]"):
        compare(exact, {**exact, "varied.energy": np.zeros(4)}, checks)


def test_the_ranking_has_a_floor_and_ties_do_not_count():
    checks, exact = made_by_hand()
    rng = np.random.default_rng(0)
    noisy = changed(exact, "ranked.energy", slice(None), rng.normal(scale=0.03, size=1000))
    errors = compare(exact, noisy, checks)
    assert 0.9 < errors["ranked"]["spearman"] < 0.999
    assert "rank correlation" in find_violation(errors, "fp32")
    lost = changed(exact, "ranked.energy", [0, 1, 2], 0.5)
    errors = compare(exact, lost, checks)
    assert errors["ranked"]["best"] == pytest.approx(0.7)
    assert find_violation(errors, "bf16") == "70% of the best 10 candidates are found; bf16 needs 80%"
    exact["ranked.energy"][9:12] = exact["ranked.energy"][9]
    swapped = changed(exact, "ranked.energy", 11, -1e-7)
    assert compare(exact, swapped, checks)["ranked"]["best"] == 1.0


def test_bf16_is_held_to_the_scale_of_the_values():
    checks, exact = made_by_hand(n=20)
    small = changed(exact, "varied.forces", slice(None), 0.05)
    large = changed(exact, "varied.forces", slice(None), 0.2)
    assert find_violation(compare(exact, small, checks), "bf16") is None
    assert "force has an RMS error of 2.0e-01" in find_violation(compare(exact, large, checks), "bf16")


# -- the fresh process ---------------------------------------------------------------------------------------------


def artefact(gfm, place, precision="fp32", **options):
    ensemble, _ = load_gfm(gfm)
    spec = Spec("torchscript", precision, **options)
    place.mkdir()
    written = import_format("torchscript").write(ensemble, spec, place, ensemble_id(gfm))
    trust(list(place.iterdir()))
    return ensemble, entry_of(ensemble, spec, place, ensemble_id(gfm), written)


def test_an_artefact_is_measured_in_a_fresh_process(gfm, tmp_path, few):
    ensemble, entry = artefact(gfm, tmp_path / "place", members=True)
    checks = Checks.of(read_manifest(gfm))
    exact = evaluate_reference(ensemble, checks)
    found, speed = measure_in_process(gfm, entry, tmp_path / "place", checks)
    errors = compare(exact, found, checks)
    assert find_violation(errors, "fp32") is None
    assert 0 < errors["varied"]["force"]["max"] < 5e-5
    assert set(errors["varied"]) == set(fidelity._QUANTITIES)
    assert find_violation(errors, "fp64") is not None
    assert speed["structures_per_s"] > 0
    assert speed["native"] > 0
    assert speed["load_s"] > 0
    assert 50 < speed["peak_mib"] < 4000
    other = evaluate_reference(tiny_ensemble(layers=1, n_basis=5), checks)
    assert "is off by" in find_violation(compare(other, found, checks), "fp32")


def test_what_goes_wrong_in_that_process_is_one_line(gfm, tmp_path, few):
    _, entry = artefact(gfm, tmp_path / "place", kind="energy")
    checks = dataclasses.replace(Checks.of(read_manifest(gfm)))
    path = tmp_path / "place" / "model.ts"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AtomSieveError, match=r"model.ts is damaged or was changed .* --force") as told:
        measure_in_process(gfm, entry, tmp_path / "place", checks)
    assert "\n" not in str(told.value)


def test_a_process_that_dies_is_told_of():
    assert fidelity._describe_failure("pt2-fp32", -11, "") == "pt2-fp32 took down the process that checked it (SIGSEGV)"
    assert "memory" in fidelity._describe_failure("pt2-fp32", -9, "")
    assert (
        fidelity._describe_failure("onnx-fp32", 1, "warning: x\nValueError: no such thing\n")
        == "ValueError: no such thing"
    )
    several = "Traceback\nonnxruntime.capi.Fail: it broke\n  because of that\nbye\n"
    assert fidelity._describe_failure("onnx-fp32", 1, several) == "onnxruntime.capi.Fail: it broke"
    assert "ended with code 7" in fidelity._describe_failure("onnx-fp32", 7, "\n")
