"""The .pt2 format: the compiled package against the ensemble in FP64, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.export import to_pt2
from atomsieve.export.artefact import Artefact
from atomsieve.export.spec import Spec, entry_of
from atomsieve.export.trust import trust
from atomsieve.gfm import ensemble_id, load_gfm
from atomsieve.graphs import build_graph
from atomsieve.structures import StructureBatch
from tests.export.export_checks import eager_outputs, given_arrays
from tests.helpers import copper_oxides, tiny_gfm

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="compiling .pt2 needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def trusted():
    """Marks stay for the whole module, whose packages are compiled once."""


def written(folder, place, spec):
    """Write an artefact and return the entry that the manifest would hold."""
    ensemble, _ = load_gfm(folder)
    place.mkdir()
    made = to_pt2.write(ensemble, spec, place, ensemble_id(folder))
    trust(place.iterdir())
    return entry_of(ensemble, spec, place, ensemble_id(folder), made)


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("pt2") / "gfm", members=2, layers=1)


@pytest.fixture(scope="module")
def made(gfm):
    place = gfm.parent / "pt2-fp64"
    return place, written(gfm, place, Spec("pt2", "fp64", members=True))


def written_uncompiled(folder, place):
    """Write all of an artefact but the machine code, which takes minutes to compile: other bytes are in its place."""

    def not_compile(program, *, package_path, inductor_configs):
        Path(package_path).write_bytes(b"no machine code")
        return package_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor, "aoti_compile_and_package", not_compile)
        return place, written(folder, place, Spec("pt2", "fp64", members=True))


@pytest.fixture(scope="module")
def uncompiled(gfm):
    return written_uncompiled(gfm, gfm.parent / "pt2-uncompiled")


@pytest.fixture(scope="module")
def artefact(gfm, made):
    place, entry = made
    return Artefact(gfm, load_gfm(gfm)[1], entry, CPU, place)


def lone_atom():
    return StructureBatch(
        ptr=np.array([0, 1]),
        numbers=np.array([29], np.uint8),
        positions=np.zeros((1, 3)),
        cell=np.zeros((1, 3, 3)),
        pbc=np.zeros((1, 3), bool),
        id=np.array([0]),
    )


BATCHES = {
    "crystals": copper_oxides(7),
    "one crystal": copper_oxides(1, seed=3),
    "one atom without neighbours": lone_atom(),
    "three atoms without neighbours": StructureBatch.concatenate([lone_atom()] * 3),
    "both": StructureBatch.concatenate([lone_atom(), copper_oxides(2, seed=5), lone_atom()]),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", BATCHES)
def test_compiled_equals_the_ensemble(gfm, artefact, name):
    ensemble, _ = load_gfm(gfm)
    batch = BATCHES[name]
    graph = build_graph(batch, ensemble.config.cutoff, dtype=torch.float64)
    head = 1 if "crystals" in name else np.ones(len(batch), np.int64)
    found = artefact(batch, graph, head)
    exact = ensemble.double()(graph, torch.ones(len(batch), dtype=torch.int64), stress=True)
    energy = exact.energy.detach().numpy() + ensemble.reference_energy(batch.numbers, batch.ptr, 1)
    assert np.abs(found["energy_members"] - energy).max() < 1e-9
    assert np.abs(found["energy"] - energy.mean(0)).max() < 1e-9
    assert np.abs(found["energy_std"] - energy.std(0, ddof=1)).max() < 1e-9
    forces = exact.forces.detach().numpy()
    assert np.abs(found["forces_members"] - forces).max() < 1e-9
    assert np.abs(found["forces_std"] - forces.std(0, ddof=1)).max() < 1e-9
    assert np.abs(found["virial"] - exact.virial.detach().numpy().mean(0)).max() < 1e-9


@pytest.mark.nightly
def test_each_structure_has_its_own_head(gfm, artefact):
    ensemble, _ = load_gfm(gfm)
    batch = copper_oxides(6, seed=2)
    batch = batch.replace(numbers=np.full(batch.n_atoms, 8, np.uint8))  # known to both heads
    graph = build_graph(batch, ensemble.config.cutoff, dtype=torch.float64)
    heads = np.array([0, 1, 1, 0, 1, 0])
    mixed = artefact(batch, graph, heads)["energy"]
    for head in (0, 1):
        alone = artefact(batch, graph, head)["energy"]
        assert np.allclose(mixed[heads == head], alone[heads == head], rtol=0, atol=1e-10)
        assert not np.isclose(mixed[heads != head], alone[heads != head]).any()


@pytest.mark.nightly
def test_arrays_that_are_not_contiguous_are_refused(gfm, artefact):
    batch = copper_oxides(3)
    graph = build_graph(batch, load_gfm(gfm)[1].cutoff, dtype=torch.float64)
    arrays = artefact.arrays(batch, graph, 1)
    whole = artefact.evaluate(arrays)["energy"]
    turned = arrays | {"positions": np.asfortranarray(arrays["positions"])}
    with pytest.raises(UsageError, match="positions is not contiguous"):
        artefact.evaluate(turned)
    assert np.array_equal(artefact._session(turned)["energy"], whole)  # and would not have been wrong


@pytest.mark.nightly
def test_a_package_of_another_ensemble_is_refused(gfm, made):
    place, entry = made
    other = entry.model_copy(update={"ensemble_id": "f" * 64})
    with pytest.raises(DataError, match=r"is of ensemble .* this folder's is ffff"):
        to_pt2.open_session(place, other, CPU)


def test_a_package_for_another_processor_is_refused(uncompiled):
    place, entry = uncompiled
    other = entry.model_copy(update={"machine": "Some CPU, AVX9"})
    with pytest.raises(AtomSieveError, match=r"compiled for Some CPU, AVX9, this machine is .* --force"):
        to_pt2.open_session(place, other, CPU)


def test_a_changed_package_is_refused(gfm, uncompiled, tmp_path):
    place, entry = uncompiled
    copied = shutil.copytree(place, tmp_path / "copy")
    path = copied / to_pt2.COMPILED
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is damaged or was changed"):
        Artefact(gfm, load_gfm(gfm)[1], entry, CPU, copied)
    with pytest.raises(AtomSieveError, match="machine code"):  # the digest is no longer a trusted one
        to_pt2.open_session(copied, entry, CPU)
    trust([path])
    with pytest.raises(DataError, match="does not open"):
        to_pt2.open_session(copied, entry, CPU)


def test_code_from_a_stranger_is_not_run(uncompiled, tmp_path, monkeypatch):
    place, entry = uncompiled
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(AtomSieveError, match=r"machine code.* atomsieve export trust"):
        to_pt2.open_session(place, entry, CPU)


@pytest.mark.parametrize("config", [{}, {"repulsion": "zbl"}], ids=["plain", "repulsion"])
def test_the_program_is_portable(gfm, uncompiled, tmp_path, config):
    if config:
        gfm = tiny_gfm(tmp_path / "gfm", members=1, layers=1, **config)
        uncompiled = written_uncompiled(gfm, tmp_path / "pt2")
    place, entry = uncompiled
    program = torch.export.load(place / to_pt2.PROGRAM)
    ensemble, batch = load_gfm(gfm)[0].double(), copper_oxides(4)
    batch = batch.replace(positions=batch.positions * 0.5, cell=batch.cell * 0.5)  # pairs repel each other
    arrays = given_arrays(ensemble, batch)
    with torch.no_grad():
        found = program.module()(*map(torch.from_numpy, arrays.values()))
    exact = eager_outputs(ensemble, batch)
    for name, values in zip(entry.outputs, found, strict=True):
        np.testing.assert_allclose(values.numpy(), exact[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_bf16_rounds_weights(gfm, tmp_path):
    ensemble, _ = load_gfm(gfm)
    functional = Spec("pt2", "bf16", kind="energy").functional(ensemble)
    weight = functional.model.encoder.layers[0].mix.weight
    assert torch.equal(weight, weight.bfloat16().float())
