"""Model repositories: whole or not there, several models and versions, configurations that Triton reads."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.gfm import ensemble_id, read_manifest
from atomsieve.remote.transport import EndpointError
from atomsieve.remote.wire import INPUTS, OUTPUTS, available_outputs, request_arrays
from atomsieve.serve.model.settings import Settings
from atomsieve.serve.repository import write as module
from atomsieve.serve.repository.layout import RepositoryModel, parse_named_folders, read_config
from atomsieve.serve.repository.write import write_repository
from tests.helpers import copper_oxides, tiny_gfm
from tests.serve.exported import add_export
from tests.serve.repositories import write_model
from tests.serve.triton import RunningServer, installation

FP64 = Settings(precision="fp64", threads=1)
SMALL = {"members": 2, "hidden": 8, "layers": 1, "head_hidden": 8}


@pytest.fixture(scope="module")
def gfm(tmp_path_factory):
    return tiny_gfm(tmp_path_factory.mktemp("ensemble") / "gfm", **SMALL)


@pytest.fixture
def own(gfm, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(gfm, tmp_path / "own" / "gfm")


def entries(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


# -- names ---------------------------------------------------------------------------------------------------------


def test_names_of_models():
    assert parse_named_folders(["some/where"])[0][0] == "gfm"
    assert [n for n, _ in parse_named_folders(["a/oxides", "b=c/d"])] == ["oxides", "b"]
    for bad in ("1st=x", "=x", "a.b=x", "../up=x", "a b=x", f"{'n' * 65}=x"):
        with pytest.raises(UsageError, match="cannot name a model"):
            parse_named_folders([bad, "y"])
    with pytest.raises(UsageError, match="two models are named 'gfm'"):
        parse_named_folders(["a/gfm", "b/gfm"])


def test_a_derived_name_that_is_taken(gfm, tmp_path, monkeypatch):
    onnx = Settings(backend="onnx")
    with pytest.raises(UsageError, match="would be named 'a_graph'"):
        write_repository(
            tmp_path / "r",
            [RepositoryModel("a", gfm, onnx), RepositoryModel("a_graph", gfm, FP64)],
            graph_backend="auto",
        )
    with pytest.raises(UsageError, match=r"graph backend 'pyton' \(did you mean 'python'\?\)"):
        write_repository(tmp_path / "r", [RepositoryModel("a", gfm, onnx)], graph_backend="pyton")
    for backend in ("native", "pt2"):
        one = [RepositoryModel("a", gfm, Settings(backend=backend))]
        with pytest.raises(UsageError, match=f"'{backend}' has no models for graphs"):
            write_repository(tmp_path / "r", one, graph_backend="python")
    assert entries(tmp_path / "r") == []


# -- what is there already -----------------------------------------------------------------------------------------


def test_foreign_folders_are_left_alone(gfm, tmp_path):
    (tmp_path / "gfm").mkdir()
    (tmp_path / "gfm" / "thesis.tex").write_text("years of work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.pbtxt").write_text('name: "other"\nbackend: "python"\n')
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.pbtxt").write_text("no configuration {")
    for name in ("gfm", "other", "odd"):
        before = entries(tmp_path / name)
        for overwrite in (False, True):
            with pytest.raises(AtomSieveError, match="not written by this program"):
                write_model(tmp_path, RepositoryModel(name, gfm, FP64), overwrite=overwrite)
        assert entries(tmp_path / name) == before
    with pytest.raises(AtomSieveError, match="is an ensemble folder"):
        write_model(gfm, RepositoryModel("gfm", gfm, FP64))
    with pytest.raises(AtomSieveError, match="is a file"):
        write_model(tmp_path / "gfm" / "thesis.tex", RepositoryModel("gfm", gfm, FP64))
    with pytest.raises(UsageError, match="1 or above, got 0"):
        write_model(tmp_path, RepositoryModel("new", gfm, FP64), version=0)
    assert entries(tmp_path) == ["gfm", "odd", "other"]


def test_a_version_is_replaced_only_when_asked(gfm, tmp_path):
    first = write_model(tmp_path, RepositoryModel("gfm", gfm, FP64))
    with pytest.raises(AtomSieveError, match=re.escape(f"{first} is there already; choose another --version")):
        write_model(tmp_path, RepositoryModel("gfm", gfm, Settings()))
    assert Settings.read(first) == FP64
    assert write_model(tmp_path, RepositoryModel("gfm", gfm, Settings()), overwrite=True) == first
    assert Settings.read(first) == Settings()
    assert entries(tmp_path) == ["gfm"]
    assert entries(tmp_path / "gfm") == ["1", "config.pbtxt", "labels.txt"]


# -- configurations ------------------------------------------------------------------------------------------------


def test_configuration_read_back_by_tritons_schema(gfm, tmp_path):
    write_model(tmp_path, RepositoryModel("gfm", gfm, FP64), instances=3, queue_delay=250)
    config = read_config(tmp_path / "gfm" / "config.pbtxt")
    assert (config.name, config.backend) == ("gfm", "python")
    assert [t.name for t in config.input] == list(INPUTS)
    assert [t.name for t in config.output] == available_outputs(
        {"forces", "stress", "energies", "forces_members"}, "deep"
    )
    types = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    for tensor in config.input:
        one = INPUTS[tensor.name]
        assert types[tensor.data_type].name == f"TYPE_{one.datatype}"
        assert list(tensor.dims) == one.dims
        assert tensor.allow_ragged_batch and tensor.optional == one.optional
    members = {t.name: list(t.dims) for t in config.output if "members" in t.name}
    assert members == {"energy_members": [-1, 2], "forces_members": [-1, 2, 3]}
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    [group] = config.instance_group
    assert (group.count, group.kind) == (3, group.KIND_CPU)
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 250
    # with any of these, servers of this age make requests wait for 500 ms now and then
    assert not batching.priority_levels and not batching.HasField("default_queue_policy")
    said = {key: value.string_value for key, value in config.parameters.items()}
    manifest = read_manifest(gfm)
    assert said["ensemble_id"] == ensemble_id(gfm)
    assert json.loads(said["heads"]) == ["organic", "metal"]
    assert json.loads(said["levels_of_theory"]) == {h.name: h.level_of_theory for h in manifest.heads}
    assert json.loads(said["elements"])["metal"] == [8, 29]
    assert said["model_card"] == (gfm / "README.md").read_text()
    assert (tmp_path / "gfm" / "labels.txt").read_text() == "organic\nmetal\n"


def test_an_instance_for_each_gpu(gfm, tmp_path):
    cuda = FP64.model_copy(update={"device": "cuda"})
    write_model(tmp_path, RepositoryModel("some", gfm, cuda), instances=2, gpus=[0, 3])
    write_model(tmp_path, RepositoryModel("every", gfm, cuda))
    [some] = read_config(tmp_path / "some" / "config.pbtxt").instance_group
    [every] = read_config(tmp_path / "every" / "config.pbtxt").instance_group
    assert (some.kind, some.count, list(some.gpus)) == (some.KIND_GPU, 2, [0, 3])
    assert (every.kind, every.count, list(every.gpus)) == (every.KIND_GPU, 1, [])


def test_versions_share_a_configuration_that_fits_both(gfm, tmp_path):
    three = tiny_gfm(tmp_path / "three", **(SMALL | {"members": 3}))
    direct = tiny_gfm(tmp_path / "direct", **SMALL, forces="direct")
    place = tmp_path / "r"
    write_model(place, RepositoryModel("gfm", gfm, FP64))
    with pytest.raises(AtomSieveError, match="version 1 of gfm differs in its output 'stress'"):
        write_model(place, RepositoryModel("gfm", direct, FP64), version=2)
    assert entries(place / "gfm") == ["1", "config.pbtxt", "labels.txt"]
    write_model(place, RepositoryModel("gfm", three, FP64), version=2)
    config = read_config(place / "gfm" / "config.pbtxt")
    dims = {t.name: list(t.dims) for t in config.output if "members" in t.name}
    assert dims == {"energy_members": [-1, -1], "forces_members": [-1, -1, 3]}
    assert config.parameters["ensemble_id"].string_value == ensemble_id(three)
    assert [ensemble_id(place / "gfm" / n / "gfm") for n in "12"] == [ensemble_id(gfm), ensemble_id(three)]


# -- sources that are not as they should be --------------------------------------------------------------------------


def test_a_damaged_ensemble_is_not_served(own, tmp_path):
    [weights, *_] = sorted(own.glob("members/*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=re.escape(str(weights.name))):
        write_model(tmp_path / "r", RepositoryModel("gfm", own, FP64))
    assert entries(tmp_path / "r") == []


def test_a_backend_without_its_artefact(gfm, tmp_path):
    for backend in ("onnx", "torchscript", "pt2"):
        said = f"atomsieve export {gfm} --format {backend} --precision fp64"
        with pytest.raises(AtomSieveError, match=re.escape(said)):
            write_model(tmp_path / "r", RepositoryModel("gfm", gfm, FP64.model_copy(update={"backend": backend})))
    with pytest.raises(UsageError, match="did you mean 'metal'"):
        write_model(tmp_path / "r", RepositoryModel("gfm", gfm, FP64.model_copy(update={"head": "metall"})))
    assert entries(tmp_path / "r") == []


def test_code_of_strangers_is_not_served(own, tmp_path, monkeypatch):
    place = add_export(own, "torchscript")
    chosen = FP64.model_copy(update={"backend": "torchscript"})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nothing trusted"))
    with pytest.raises(AtomSieveError, match="atomsieve export trust"):
        write_repository(tmp_path / "r", [RepositoryModel("gfm", own, chosen)], graph_backend="triton")
    assert entries(tmp_path / "r") == []
    monkeypatch.undo()
    path = next(place.iterdir())
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="damaged or was changed"):
        write_repository(tmp_path / "r", [RepositoryModel("gfm", own, chosen)], graph_backend="triton")
    with pytest.raises(AtomSieveError, match="an export in it is damaged"):  # and native does not take it along
        write_model(tmp_path / "r", RepositoryModel("gfm", own, FP64))
    assert entries(tmp_path / "r") == []


def test_a_source_that_changes_while_it_is_copied(own, tmp_path, monkeypatch):
    place = tmp_path / "r"
    write_model(place, RepositoryModel("gfm", own, FP64))

    def slow(source, target, **more):
        found = shutil.copytree(source, target, **more)
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["training"]["note"] = "calibrated anew meanwhile"
        (target / "manifest.json").write_text(json.dumps(manifest))
        return found

    def vanishing(source, target, **more):
        next(own.glob("members/*/model.yaml")).unlink()
        return shutil.copytree(source, target, **more)

    for changing in (slow, vanishing):
        monkeypatch.setattr(module, "shutil", SimpleNamespace(copytree=changing, Error=shutil.Error))
        for version in (1, 2):
            with pytest.raises((AtomSieveError, DataError)):
                write_model(place, RepositoryModel("gfm", own, FP64), version=version, overwrite=True)
        monkeypatch.undo()
        assert entries(place) == ["gfm"]
        assert entries(place / "gfm") == ["1", "config.pbtxt", "labels.txt"]
        assert Settings.read(place / "gfm" / "1") == FP64


# -- a real server -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(gfm, tmp_path_factory):
    """A server of one ensemble under its name; tests add to its repository."""
    installation()
    place = tmp_path_factory.mktemp("served")
    write_model(place, RepositoryModel("gfm", gfm, FP64))
    running = RunningServer(place)
    yield running
    running.close()


def energies(server, model="gfm", version=""):
    batch = copper_oxides(3)
    with server.transport() as transport:
        found = transport.infer(model, request_arrays(batch), ["energy", "energy_members"], version=version)
    return found["energy"], found["energy_members"].shape[1]


def test_versions_and_several_ensembles_on_one_server(served, gfm, tmp_path):
    from atomsieve.predict import Predictor

    place, batch = served.options.repository, copper_oxides(3)
    new = tiny_gfm(tmp_path / "new", **(SMALL | {"members": 3}))
    write_model(place, RepositoryModel("gfm", new, FP64), version=2)
    write_model(place, RepositoryModel("second", gfm, FP64))
    with served.transport(admin=True) as transport:
        assert transport.models() == ["gfm", "second"]
        with pytest.raises(EndpointError):  # explicit control: nothing is served that nobody asked for
            energies(served, "second")
        transport.load("gfm")
        transport.load("second")
    old, latest = (Predictor.load(path, precision="fp64")(batch).energy for path in (gfm, new))
    for model, version, truth, members in (
        ("gfm", "1", old, 2),
        ("gfm", "2", latest, 3),
        ("gfm", "", latest, 3),
        ("second", "", old, 2),
    ):
        found, shape = energies(served, model, version)
        np.testing.assert_allclose(found, truth, rtol=1e-9)
        assert shape == members
    assert np.abs(old - latest).max() > 1e-3


def test_an_ensemble_whose_manifest_was_edited_is_refused(gfm, tmp_path):
    """The manifest has no checksum of its own; what comes out tells."""
    edited = tmp_path / "edited"
    shutil.copytree(gfm, edited)
    manifest = (edited / "manifest.json").read_text()
    cutoff = json.loads(manifest)["cutoff"]
    (edited / "manifest.json").write_text(manifest.replace(f'"cutoff": {cutoff}', f'"cutoff": {cutoff - 1}'))
    with pytest.raises(DataError, match=r"does not give its own test vector .*off by"):
        write_model(tmp_path / "models", RepositoryModel("gfm", edited, FP64))
    assert not (tmp_path / "models" / "gfm").exists()


def test_a_model_that_computes_something_else_is_refused_by_the_server(served, gfm, tmp_path):
    """Its files agree with its manifest, but what comes out is not the manifest's test vector."""
    place = served.options.repository
    write_model(place, RepositoryModel("wrong", gfm, FP64))
    path = place / "wrong" / "1" / "gfm" / "manifest.json"
    manifest = json.loads(path.read_text())
    for member in manifest["test_vector"]["heads"]["organic"]["energy_members"]:
        member[0] += 0.01
    path.write_text(json.dumps(manifest))
    with served.transport(admin=True) as transport:
        with pytest.raises(EndpointError, match="load failed"):
            transport.load("wrong")
        with pytest.raises(EndpointError):
            transport.infer("wrong", request_arrays(copper_oxides(1)), ["energy"])
    assert any("energy per atom of the test vector is off by" in line for line in served.lines)
    assert OUTPUTS["energy"].datatype == "FP64" and np.isfinite(energies(served)[0]).all()
