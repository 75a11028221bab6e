"""Strange graphs: each is answered or refused in order.

The model runs in this process, on what `fake_backend` lends it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atomsieve.gfm import read_manifest
from atomsieve.graphs import build_graph
from atomsieve.serve.graph.model import GraphModel
from atomsieve.serve.model.settings import Limits, Settings
from atomsieve.serve.repository.layout import RepositoryModel
from atomsieve.serve.repository.write import write_repository
from tests.helpers import copper_oxides
from tests.serve.fake_backend import Asked, Family, backend
from tests.serve.fuzz_requests import DTYPES

pytestmark = pytest.mark.nightly  # strange requests to the ensemble itself are sent in every run (test_fuzz.py)
FEW = settings(deadline=None, derandomize=True, max_examples=250, suppress_health_check=list(HealthCheck))
LIMITS = Limits(structures=50, atoms=500, bytes=100_000)
ODD = (0, 1, -1, -2, 2, 7, 29, 119, 255, 10**6, 2**31, 2**62, -(2**63), 2**63 - 1, 0.5, 1e-300, 1e300, np.nan, np.inf)


@pytest.fixture(scope="module")
def graph(exported, tmp_path_factory):
    """A graph model, opened as the server does it, a request that it answers, and its outputs."""
    place = tmp_path_factory.mktemp("graph")
    own = Settings(precision="fp64", backend="torchscript", threads=1, limits=LIMITS, max_atoms=200, max_edges=4000)
    write_repository(place, [RepositoryModel("gfm", exported, own)], graph_backend="python")
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "triton_python_backend_utils", backend())
    patch.setattr("atomsieve.serve.graph.model.probe_dlpack", lambda pb: None)
    model = GraphModel()
    model.initialize(
        {
            "model_repository": str(place / "gfm_graph"),
            "model_name": "gfm_graph",
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_instance_name": "gfm_graph_0",
        }
    )
    patch.undo()
    manifest = read_manifest(exported)
    entry = manifest.exports["torchscript-fp64"]
    batch = copper_oxides(3)
    own_graph = build_graph(batch, manifest.cutoff, max_neighbors=manifest.config.max_neighbors)
    return model, model.artefact.arrays(batch, own_graph, 1), entry.outputs


def ask(model, arrays, outputs, parameters="{}", **more):
    [response] = model.execute([Asked(arrays, outputs, parameters, **more)])
    return response


@st.composite
def changes(draw, names):
    """What becomes of some of the tensors: name -> (what, how)."""
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(names)), max_size=3, unique=True)):
        what = draw(st.sampled_from(["values"] * 5 + ["shape", "rows", "dtype", "layout", "gone", "noise"]))
        seed = draw(st.integers(0, 2**16))
        found[name] = (what, draw(st.sampled_from(ODD)), seed, draw(st.sampled_from(DTYPES)))
        if what == "shape":
            found[name] = (what, draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)), seed, None)
    return found


def changed(arrays, how):
    found = dict(arrays)
    for name, (what, value, seed, dtype) in how.items():
        old, rng = arrays[name], np.random.default_rng(seed)
        if what == "gone":
            del found[name]
        elif what == "shape":
            found[name] = np.resize(old, value).astype(old.dtype)
        elif what == "dtype":
            found[name] = old.astype(dtype)
        elif what == "rows":
            found[name] = old[rng.integers(0, max(len(old), 1), rng.integers(0, 2 * len(old) + 1))] if len(old) else old
        elif what == "layout":
            found[name] = np.asfortranarray(old)
        elif what == "noise":
            found[name] = rng.permuted(old)
        elif old.size:
            new = old.copy()
            some = rng.integers(0, old.size, 1 + seed % 3)
            new.reshape(-1)[some] = np.array(value).astype(
                np.int64 if new.dtype.kind in "iu" else new.dtype, copy=False
            )
            found[name] = new
    return found


def test_strange_tensors(graph):
    model, good, outputs = graph
    truth = ask(model, good, outputs).tensors
    assert truth.keys() >= set(outputs)
    seen = Counter()
    values = st.sampled_from(["metal", "organic", "", 3, None])

    @FEW
    @given(changes(good), st.dictionaries(st.sampled_from(["head", "alone", "odd"]), values, max_size=1))
    def run(how, parameters):
        with np.errstate(all="ignore"):
            response = ask(model, changed(good, how), outputs, parameters)
        if response.error is not None:
            message = response.error.message
            assert response.error.code in ("invalid", "unsupported"), (message, how)
            assert message and len(message) < 2000 and "\n" not in message
            seen["refused"] += 1
            return
        seen["answered"] += 1
        found = response.tensors
        assert found.keys() == set(outputs)
        for one, values in found.items():
            assert values.dtype == truth[one].dtype and values.ndim == truth[one].ndim, one

    run()
    assert seen["refused"] > 20 and seen["answered"] > 20, seen
    again = ask(model, good, outputs).tensors
    for one, values in truth.items():
        np.testing.assert_array_equal(again[one], values)


# -- accidents ---------------------------------------------------------------------------------------------------------


def test_an_accident_is_one_requests_alone_and_the_log_holds_it(graph, monkeypatch, caplog):
    model, good, outputs = graph
    truth = ask(model, good, outputs).tensors["energy"]
    lend = model._pb.Tensor.from_dlpack
    left = [1]

    def once(name, values):
        if left and left.pop():
            raise RuntimeError("no shared memory in /dev/shm/secret")
        return lend(name, values)

    monkeypatch.setattr(model._pb.Tensor, "from_dlpack", once)
    bad, well = model.execute([Asked(good, outputs), Asked(good, outputs)])
    assert bad.error.code == "internal" and "secret" not in bad.error.message
    np.testing.assert_array_equal(well.tensors["energy"], truth)
    monkeypatch.setattr(model, "_evaluate", lambda *_: 1 / 0)
    [worse] = model.execute([Asked(good, outputs)])
    for response, said in ((bad, "/dev/shm/secret"), (worse, "ZeroDivisionError")):
        reference = response.error.message.split("reference ")[1].split(":")[0]
        [record] = [r for r in caplog.records if reference in r.getMessage()]
        assert record.exc_info is not None and said in caplog.text


def test_what_is_too_large_is_refused_before_it_is_copied(graph, monkeypatch):
    model, good, outputs = graph
    wide = {**good, "shifts": np.broadcast_to(np.zeros((), good["shifts"].dtype), (10**5, 10**3, 3))}
    copies = []
    own = np.array
    monkeypatch.setattr(np, "array", lambda *a, **k: copies.append(a) or own(*a, **k))
    response = ask(model, wide, outputs)
    monkeypatch.undo()
    assert response.error.code == "invalid" and "allowed are" in response.error.message
    assert not copies
    response = ask(model, {**good, "neighbors": np.zeros((1, 10**6), np.int64)}, outputs)
    assert "places (N * W), allowed are 20000" in response.error.message
    response = ask(model, good, outputs, {"x" * 20_000: 1})
    assert "parameters have" in response.error.message


def test_what_was_done_is_counted_and_logged(graph, capfd):
    Family.counts.clear()
    model, good, outputs = graph
    capfd.readouterr()
    ask(model, good, outputs)
    ask(model, {}, outputs)
    ask(model, good, outputs, cancelled=True)
    new = {key[0]: n for key, n in Family.counts.items() if ("model", "gfm_graph") in key}
    assert new["atomsieve_requests_total"] == 1 and new["atomsieve_evaluations_total"] == 1
    assert new["atomsieve_atoms_total"] == good["numbers"].size
    assert new["atomsieve_batches_total"] == 3 and new["atomsieve_compute_seconds_total"] > 0
    kinds = {dict(key[1:])["kind"] for key in Family.counts if key[0] == "atomsieve_errors_total"}
    assert kinds == {"invalid", "cancelled"}
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["model"] for line in lines if line["event"] == "graph"] == ["gfm_graph"] * 3
