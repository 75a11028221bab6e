"""Exported artefacts on a real server answer as they do in this process."""

from __future__ import annotations

import importlib
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest

from atomsieve.gfm import read_manifest
from atomsieve.graphs import build_graph
from atomsieve.predict import Predictor
from atomsieve.serve.model.settings import Settings
from atomsieve.serve.repository import graph_config
from atomsieve.serve.repository.layout import RepositoryModel, read_config
from atomsieve.serve.repository.write import write_repository
from atomsieve.serve.server.health import load_probes
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides
from tests.serve.exported import KINDS
from tests.serve.triton import RunningServer, installation

ROOT = Path(__file__).resolve().parents[2]
WANT = {"energy", "forces", "stress", "spread", "members"}


def settings(kind):
    return Settings(precision="fp64", backend=kind, threads=1)


@pytest.fixture(scope="module")
def running(exported, tmp_path_factory):
    """A server with the ONNX and the TorchScript artefact."""
    installation()
    place = tmp_path_factory.mktemp("models")
    both = [RepositoryModel(kind, exported, settings(kind)) for kind in KINDS]
    write_repository(place, both, graph_backend="python")
    server = RunningServer(place, ("onnx_graph", "torchscript_graph"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def predictors(exported):
    return {kind: Predictor.load(exported, precision="fp64", backend=kind) for kind in KINDS}


def tables(predictor, batch, head=1):
    graph = build_graph(batch, predictor.cutoff)
    return predictor.run.artefact.arrays(batch, graph, head)


def ask(server, model, arrays, outputs):
    """Ask with nothing but tritonclient, as any program would."""
    import tritonclient.grpc as client
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for name, values in arrays.items():
        inputs.append(client.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
        inputs[-1].set_data_from_numpy(values)
    with client.InferenceServerClient(server.grpc.removeprefix("grpc://")) as one:
        found = one.infer(model, inputs, outputs=[client.InferRequestedOutput(name) for name in outputs])
    return {name: found.as_numpy(name) for name in outputs}


@pytest.mark.parametrize("kind", KINDS)
def test_artefact_on_the_server_is_the_artefact_here(running, predictors, kind):
    arrays = tables(predictors[kind], copper_oxides(4))
    here = predictors[kind].run.artefact.evaluate(arrays)
    there = ask(running, f"{kind}_graph", arrays, list(here))
    for name, values in here.items():
        assert there[name].dtype == values.dtype
        np.testing.assert_allclose(there[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


def changed(arrays, name, **values):
    found = arrays[name].copy()
    for where, value in values.values():
        found[where] = value
    return arrays | {name: found}


BAD = {
    "index beyond the atoms": lambda a: changed(a, "neighbors", x=((0, 0), 10**6)),
    "negative index": lambda a: changed(a, "neighbors", x=((0, 0), -2)),
    "position that is no number": lambda a: changed(a, "positions", x=((0, 0), np.nan)),
    "infinite cell": lambda a: changed(a, "cell", x=((0, 0, 0), np.inf)),
    "shapes that do not fit": lambda a: a | {"positions": a["positions"][:-1]},
    "head that is not there": lambda a: changed(a, "head", x=((0,), 9)),
    "half an edge": lambda a: changed(a, "shifts", x=((0, 0), [7, 0, 0])),
    "neighbour in another structure": lambda a: changed(a, "neighbors", x=((0, 0), len(a["numbers"]) - 1)),
    "too many atoms": lambda a: {
        **a,
        "numbers": np.full(10**5, 29, np.uint8),
        "positions": np.zeros((10**5, 3)),
        "structure": np.zeros(10**5, np.int64),
        "neighbors": np.full((10**5, 1), -1),
        "shifts": np.zeros((10**5, 1, 3), np.int32),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_graphs_are_refused_and_the_server_stays(running, predictors, kind):
    from tritonclient.utils import InferenceServerException

    good = tables(predictors[kind], copper_oxides(4))
    for what, spoil in BAD.items():
        with pytest.raises(InferenceServerException) as caught:
            ask(running, f"{kind}_graph", spoil(good), ["energy"])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", what
        assert "Traceback" not in caught.value.message()
    here = predictors[kind].run.artefact.evaluate(good)["energy"]
    np.testing.assert_allclose(ask(running, f"{kind}_graph", good, ["energy"])["energy"], here, rtol=1e-9)


def test_example_of_the_documentation(running, predictors, capsys):
    from ase import Atoms

    text = (ROOT / "docs" / "graph_models.md").read_text()
    code = textwrap.dedent(text[text.index("    import json") : text.index("\n`metal` stands for")])
    code = code.replace("127.0.0.1:8001", running.grpc.removeprefix("grpc://")).replace(
        "gfm_graph", "torchscript_graph"
    )
    names = {}
    exec(code, names)
    truth = predictors["torchscript"](
        StructureBatch.from_ase(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]])), head="metal"
    )
    np.testing.assert_allclose(names["found"].as_numpy("energy"), truth.energy, rtol=1e-9)
    np.testing.assert_allclose(names["found"].as_numpy("forces"), truth.forces, rtol=1e-9, atol=1e-9)
    assert str(names["found"].as_numpy("energy")) in capsys.readouterr().out


# -- without a server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_configuration_for_tritons_own_backend_fits_the_artefact(exported, predictors, kind, tmp_path):
    write_repository(tmp_path, [RepositoryModel("gfm", exported, settings(kind))], graph_backend="triton")
    config = read_config(tmp_path / "gfm_graph" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == (graph_config.BACKENDS[kind][0], 0)
    file = tmp_path / "gfm_graph" / "1" / config.default_model_filename
    entry = read_manifest(exported).exports[f"{kind}-fp64"]
    (listed,) = entry.files.values()
    from atomsieve.runs.hashing import hash_file

    assert hash_file(file) == listed["sha256"]
    types = {
        "TYPE_FP64": "double",
        "TYPE_FP32": "float",
        "TYPE_INT64": "int64",
        "TYPE_INT32": "int32",
        "TYPE_UINT8": "uint8",
    }
    schema = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    first = {}
    for tensor in config.input:
        warm = config.model_warmup[0].inputs[tensor.name]
        dtype = types[schema[tensor.data_type].name].replace("double", "float64").replace("float64", "f8")
        dtype = {"float": "f4"}.get(dtype, dtype)
        raw = (tmp_path / "gfm_graph" / "warmup" / warm.input_data_file).read_bytes()
        first[tensor.name] = np.frombuffer(raw, dtype).reshape(list(warm.dims)).copy()
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file))
        for ours, theirs in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [t.name for t in ours] == [t.name for t in theirs]
            for one, other in zip(ours, theirs, strict=True):
                assert f"tensor({types[schema[one.data_type].name]})" == other.type
                assert list(one.dims) == [n if isinstance(n, int) else -1 for n in other.shape]
        found = dict(zip([o.name for o in session.get_outputs()], session.run(None, first), strict=True))
    else:
        import torch

        with pytest.warns(DeprecationWarning, match="torch.jit.load"):
            model = torch.jit.load(str(file))
        arguments = [a.name for a in model.forward.schema.arguments[1:]]
        names = [t.name for t in config.input]
        assert len(names) == len(arguments)
        # Triton goes by the order where names are neither those of arguments nor end in __ and a number
        assert not {*names} & {*arguments} and not any("__" in t.name for t in (*config.input, *config.output))
        assert names == entry.inputs and [t.name for t in config.output] == entry.outputs
        out = model(*(torch.from_numpy(first[name]) for name in names))
        found = {t.name: values.numpy() for t, values in zip(config.output, out, strict=True)}
        for tensor in config.output:
            assert str(found[tensor.name].dtype).replace("64", "") == types[schema[tensor.data_type].name].replace(
                "double", "float"
            )
    for tensor in config.output:
        assert [-1 if want == -1 else n for want, n in zip(tensor.dims, found[tensor.name].shape, strict=True)] == [
            *tensor.dims
        ]
    stored = read_manifest(exported).test_vector["heads"]["metal"]
    np.testing.assert_allclose(found["energy"], np.mean(stored["energy_members"], axis=0), rtol=1e-9)


def test_a_second_version_joins_the_first(exported, tmp_path):
    from atomsieve.errors import AtomSieveError

    for version in (1, 2):
        one = [RepositoryModel("gfm", exported, settings("onnx"))]
        found = write_repository(tmp_path, one, graph_backend="python", version=version)
        assert [p.parent.name for p in found] == ["gfm", "gfm_graph"]
    for name in ("gfm", "gfm_graph"):
        assert {"1", "2"} <= {p.name for p in (tmp_path / name).iterdir()}
        assert read_config(tmp_path / name / "config.pbtxt").version_policy.WhichOneof("policy_choice") == "all"
    assert [(p.model, p.version) for p in load_probes(tmp_path, ["gfm", "gfm_graph"])] == [("gfm", "1"), ("gfm", "2")]
    (tmp_path / "gfm_graph" / "config.pbtxt").write_text('name: "gfm_graph"\n')
    with pytest.raises(AtomSieveError, match="gfm_graph is there already and was not written by this program"):
        write_repository(tmp_path, one, graph_backend="python", version=3)
    assert not (tmp_path / "gfm" / "3").exists()


@pytest.mark.parametrize("broken", ["head", "artefact", "other version"])
def test_all_models_are_written_or_none(exported, tmp_path, broken):
    """A fault of the second ensemble is found before anything of the first is in its place."""
    from atomsieve.errors import AtomSieveError

    place, other, chosen = tmp_path / "models", tmp_path / "other", settings("onnx")
    shutil.copytree(exported, other)
    if broken == "head":
        chosen = chosen.model_copy(update={"head": "wood"})
    elif broken == "artefact":
        (path,) = (other / "exports" / "onnx-fp64").glob("*.onnx")
        path.write_bytes(path.read_bytes()[:-1])
    else:
        write_repository(place, [RepositoryModel("b", exported, chosen)], graph_backend="python")
        config = place / "b_graph" / "config.pbtxt"
        config.write_text(config.read_text().replace('"virial"', '"virial_of_old"'))
    before = sorted(tmp_path.rglob("*"))
    both = [RepositoryModel("a", exported, settings("onnx")), RepositoryModel("b", other, chosen)]
    with pytest.raises(AtomSieveError, match={"other version": "differs in its output"}.get(broken)):
        write_repository(place, both, graph_backend="python", version=2)
    assert sorted(tmp_path.rglob("*")) == before
    if broken == "head":
        both[1] = RepositoryModel("b", other, settings("onnx"))
        assert len(write_repository(place, both, graph_backend="python", version=2)) == 4


def test_which_backend_follows_from_the_server(tmp_path):
    from atomsieve.serve.installation import Installation

    (tmp_path / "onnxruntime").mkdir()
    server = Installation(tmp_path / "tritonserver", tmp_path)
    assert graph_config.uses_triton_backend("auto", "onnx", server)
    assert not graph_config.uses_triton_backend("auto", "torchscript", server)
    assert not graph_config.uses_triton_backend("auto", "onnx", None)
    assert graph_config.uses_triton_backend("triton", "torchscript", None)
    assert not graph_config.uses_triton_backend("python", "onnx", server)


def test_a_graph_model_takes_no_more_than_its_capacity():
    from atomsieve.serve.graph.capacity import Capacity

    capacity = Capacity(4096, 500_000)
    assert capacity.refusal(4096, 100) is None and "places" in capacity.refusal(4096, 130)
    assert "atoms" in capacity.refusal(4097, 1)
    assert Capacity(10, 100).refusal(1, 20_000) is None and Capacity(0, 0).refusal(1, 1) is None
    assert "places" in capacity.refusal(1, 10**8) and "places" in Capacity(10, 100).refusal(1, 20_001)


def test_a_pipeline_of_an_older_repository_is_refused_with_advice(exported, tmp_path):
    """Written before release 0.1.0: its model.py files import the removed kinds from their old place."""
    from atomsieve.errors import AtomSieveError
    from atomsieve.serve.server.start import list_models

    write_repository(tmp_path, [RepositoryModel("gfm", exported, settings("onnx"))], graph_backend="python")
    assert list_models(tmp_path) == ["gfm", "gfm_graph"]
    for part in ("prepare", "finish", "pipeline"):
        (tmp_path / f"gfm_{part}" / "1").mkdir(parents=True)
        (tmp_path / f"gfm_{part}" / "config.pbtxt").write_text(f'name: "gfm_{part}"\n')
    for part in ("prepare", "finish"):
        model = tmp_path / f"gfm_{part}" / "1" / "model.py"
        model.write_text(f"from atomsieve.serve.graph_model import {part.capitalize()}Model as TritonPythonModel\n")
        names = {}
        exec(model.read_text(), names)
        with pytest.raises(AtomSieveError, match=rf"gfm_{part}: pipelines .* no longer served; remove"):
            names["TritonPythonModel"]().initialize({"model_name": f"gfm_{part}"})
    with pytest.raises(AtomSieveError, match=r"gfm_prepare, gfm_finish, gfm_pipeline: .*remove the folders") as caught:
        list_models(tmp_path)
    assert "\n" not in str(caught.value)
    for part in ("prepare", "finish", "pipeline"):
        shutil.rmtree(tmp_path / f"gfm_{part}")
    assert list_models(tmp_path) == ["gfm", "gfm_graph"]


@pytest.mark.parametrize("name", ["triton_model.TritonPythonModel", "graph_model.GraphModel", "remote.RemotePredictor"])
def test_old_places_of_names_still_work(name):
    module, attribute = name.split(".")
    old = getattr(importlib.import_module(f"atomsieve.serve.{module}"), attribute)
    places = {
        "triton_model": "atomsieve.serve.model.triton_model",
        "graph_model": "atomsieve.serve.graph.model",
        "remote": "atomsieve.remote.predictor",
    }
    assert old is getattr(importlib.import_module(places[module]), attribute)
