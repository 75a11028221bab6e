"""Exported artefacts behind the predictor: the same answers as native, refusals with a remedy, and what auto takes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.export.spec import Spec, entry_of, import_format
from atomsieve.export.trust import trust
from atomsieve.gfm import ensemble_id, load_gfm, read_manifest, record_exports
from atomsieve.gfm.exports import FOLDER
from atomsieve.predict import Predictor, Status
from atomsieve.predict.backends.exported import atoms_at_once
from atomsieve.predict.backends.select import fastest
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides, tiny_gfm

CPU = torch.device("cpu")
WANT = ("energy", "forces", "stress", "spread")


def export(folder, spec, **changes):
    """Put an artefact into a gfm/ folder without the check, which has tests of its own."""
    ensemble, _ = load_gfm(folder)
    place = folder / FOLDER / spec.key
    place.mkdir(parents=True)
    written = import_format(spec.format).write(ensemble, spec, place, ensemble_id(folder))
    entry = entry_of(ensemble, spec, place, ensemble_id(folder), written).model_copy(update=changes)
    trust(place.iterdir())
    record_exports(folder, {entry.key: entry})
    return entry


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    folder = tiny_gfm(tmp_path_factory.mktemp("backends") / "gfm", layers=1)
    export(folder, Spec("torchscript", "fp64"), speed={"structures_per_s": 30.0, "native": 20.0})
    export(folder, Spec("torchscript", "fp64", kind="energy"))
    export(folder, Spec("torchscript", "fp32", kind="energy"))
    return folder


@pytest.fixture
def own_copy(gfm, tmp_path):
    return shutil.copytree(gfm, tmp_path / "gfm")


def mixed_batch():
    """Good structures, and one of each kind that gets a status before or after its neighbours are known."""
    batch = copper_oxides(9, seed=4)
    numbers, positions = batch.numbers.copy(), batch.positions.copy()
    numbers[batch.ptr[2]] = 92
    positions[batch.ptr[4]] = np.nan
    large = int(np.flatnonzero(batch.counts > 1)[-1])
    positions[batch.ptr[large] + 1] = positions[batch.ptr[large]]
    return batch.replace(numbers=numbers, positions=positions)


def test_an_artefact_predicts_what_the_ensemble_does(gfm):
    batch = mixed_batch()
    native = Predictor.load(gfm, precision="fp64")(batch, WANT)
    exported = Predictor.load(gfm, precision="fp64", backend="torchscript")(batch, WANT)
    assert len(set(native.status)) == 4
    left, right = native.arrays(), exported.arrays()
    assert left.keys() == right.keys()
    for name in left:
        assert np.allclose(left[name], right[name], rtol=0, atol=1e-9, equal_nan=True), name
    assert np.array_equal(native.status, exported.status)


def test_energies_alone_come_from_the_lighter_artefact(gfm):
    predictor = Predictor.load(gfm, precision="fp64", backend="torchscript")
    calls = []
    light = predictor._run.energy_only
    predictor._run.energy_only = lambda *a: calls.append(1) or light(*a)
    batch = copper_oxides(3)
    alone = predictor(batch, ("energy", "spread"))
    assert calls == [1]
    full = predictor(batch)
    assert calls == [1]
    assert np.allclose(alone.energy, full.energy, rtol=0, atol=1e-10)
    assert np.allclose(alone.energy_std, full.energy_std, rtol=0, atol=1e-10)


def test_an_energy_only_artefact_refuses_forces(gfm):
    predictor = Predictor.load(gfm, precision="fp32", backend="torchscript")
    assert np.isfinite(predictor(copper_oxides(2), ("energy",)).energy).all()
    with pytest.raises(UsageError, match=r"torchscript-fp32-energy gives no forces.*--backend native"):
        predictor(copper_oxides(2))


def test_what_is_not_there_is_named_with_its_remedy(gfm):
    with pytest.raises(
        AtomSieveError, match=r"no onnx export in fp32 .*atomsieve export .* --format onnx --precision fp32"
    ):
        Predictor.load(gfm, backend="onnx")
    with pytest.raises(UsageError, match=r"backend 'onyx'.*onnx"):
        Predictor.load(gfm, backend="onyx")


def test_a_damaged_artefact_is_refused(own_copy):
    path = own_copy / FOLDER / "torchscript-fp64" / "model.ts"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"x" + whole[101:])
    with pytest.raises(DataError, match=r"damaged or was changed.* --force"):
        Predictor.load(own_copy, precision="fp64", backend="torchscript")
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        Predictor.load(own_copy, precision="fp64", backend="torchscript")
    assert Predictor.load(own_copy, precision="fp64").backend == "native"


def test_an_artefact_of_another_ensemble_is_refused(own_copy):
    entry = read_manifest(own_copy).exports["torchscript-fp64"]
    record_exports(own_copy, {entry.key: entry.model_copy(update={"ensemble_id": "0" * 64})})
    with pytest.raises(DataError, match=r"another ensemble|is of ensemble"):
        Predictor.load(own_copy, precision="fp64", backend="torchscript")


def test_auto_takes_the_fastest_and_says_why(gfm):
    predictor = Predictor.load(gfm, precision="fp64", backend="auto")
    assert predictor.backend == "torchscript"
    assert "torchscript 1.50, native 1.00" in predictor.why
    other = Predictor.load(gfm, precision="fp32", backend="torchscript")
    assert predictor.capabilities.artefact != other.capabilities.artefact


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"speed": {"structures_per_s": 10.0, "native": 20.0}}, "native 1.00, torchscript 0.50"),
        ({"machine": "another"}, "checked on another processor"),
    ],
)
def test_auto_stays_native(own_copy, changes, reason):
    entry = read_manifest(own_copy).exports["torchscript-fp64"]
    record_exports(own_copy, {entry.key: entry.model_copy(update=changes)})
    name, why = fastest(own_copy, read_manifest(own_copy), "fp64", CPU)
    assert name == "native"
    assert reason in why


def test_auto_does_not_run_a_strangers_code(gfm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nobody"))
    predictor = Predictor.load(gfm, precision="fp64", backend="auto")
    assert predictor.backend == "native"
    assert "not trusted" in predictor.why
    with pytest.raises(AtomSieveError, match="atomsieve export trust"):
        Predictor.load(gfm, precision="fp64", backend="torchscript")


def test_a_truncated_list_is_refused_where_it_must_be_complete(gfm):
    from atomsieve.graphs import build_graph

    predictor = Predictor.load(gfm, precision="fp64", backend="torchscript")
    batch = copper_oxides(4)
    graph = build_graph(batch, predictor.cutoff, max_neighbors=3)
    with pytest.raises(AtomSieveError, match="complete neighbour list"):
        predictor._run(batch, graph, 1, {"forces"})


def test_an_empty_batch_and_a_lone_atom(gfm):
    predictor = Predictor.load(gfm, precision="fp64", backend="torchscript")
    lone = StructureBatch(
        ptr=np.array([0, 0, 1]),
        numbers=np.array([29], np.uint8),
        positions=np.zeros((1, 3)),
        cell=np.zeros((2, 3, 3)),
        pbc=np.zeros((2, 3), bool),
        id=np.arange(2),
    )
    found = predictor(lone)
    assert found.status.tolist() == [Status.EMPTY, Status.OK]
    assert np.abs(found.forces).max() == 0.0


@pytest.mark.parametrize("backend", ["native", "torchscript"])
def test_a_large_batch_is_worked_through_in_pieces(gfm, backend):
    predictor = Predictor.load(gfm, precision="fp64", backend=backend)
    batch = copper_oxides(30, seed=8)
    whole = predictor(batch, WANT).arrays()
    predictor._run.max_atoms = 11
    for name, pieces in predictor(batch, WANT).arrays().items():
        assert np.allclose(pieces, whole[name], rtol=0, atol=1e-10, equal_nan=True), name


def test_atoms_at_once_are_bounded_by_memory(gfm):
    manifest = read_manifest(gfm)
    entry = manifest.exports["torchscript-fp64"]
    small = atoms_at_once(manifest, entry, CPU)
    wide = manifest.model_copy(update={"config": manifest.config.model_copy(update={"hidden": 256})})
    assert small // 17 <= atoms_at_once(wide, entry, CPU) <= small // 15
    assert atoms_at_once(manifest, entry.model_copy(update={"precision": "fp32"}), CPU) == pytest.approx(
        2 * small, abs=1
    )
