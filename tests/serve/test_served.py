"""A real server answers as the predictor in this process does."""

from __future__ import annotations

import json
import os
import stat
import urllib.error
import urllib.request

import numpy as np
import pytest

from atomsieve.remote.test_vector import compare_test_vector
from atomsieve.remote.wire import outputs_for, prediction_from_arrays, request_arrays
from atomsieve.serve.server import reaper
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides

WANTS = (
    {"energy"},
    {"energy", "forces", "spread"},
    {"energy", "forces", "stress", "spread", "members", "energies", "features"},
)


@pytest.mark.parametrize("http", [False, True], ids=["grpc", "http"])
@pytest.mark.parametrize("want", WANTS, ids=["energy", "forces", "all"])
def test_answers_are_those_of_the_predictor(server, local, http, want):
    batch = copper_oxides(5)
    names = outputs_for(want, local.kind)
    with server.transport(http=http) as transport:
        found = transport.infer("gfm", request_arrays(batch), names, {"head": "metal"})
    answer, truth = prediction_from_arrays(found, "metal", frozenset()), local(batch, want, head="metal")
    assert answer.arrays().keys() == truth.arrays().keys()
    for name, values in truth.arrays().items():
        np.testing.assert_allclose(getattr(answer, name), values, rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_server_is_triton_and_holds_its_test_vector(server, local):
    with server.transport() as transport:
        assert transport.metadata()["name"] == "triton"
        empty = request_arrays(copper_oxides(1).slice(0, 0))
        found = transport.infer("gfm", empty, ["description", "test_vector"])
        description, vector = (json.loads(bytes(found[n])) for n in ("description", "test_vector"))

        def answer(arrays, head, names):
            return transport.infer("gfm", arrays, names, {"head": head})

        assert compare_test_vector(vector, answer, "fp64", description["gives"]) < 1
    assert description["ensemble_id"] == local.ensemble_id
    assert description["elements"]["metal"] == local.elements("metal")


def plain(server, numbers):
    """Ask for a water molecule as a program without any library does; return status and answer."""
    body = {
        "parameters": {"head": "organic"},
        "inputs": [
            {"name": "n_atoms", "shape": [1, 1], "datatype": "INT64", "data": [3]},
            {"name": "numbers", "shape": [1, 3], "datatype": "INT32", "data": numbers},
            {
                "name": "positions",
                "shape": [1, 3, 3],
                "datatype": "FP64",
                "data": [0, 0, 0.119, 0, 0.763, -0.477, 0, -0.763, -0.477],
            },
        ],
        "outputs": [{"name": "status"}, {"name": "energy"}],
    }
    request = urllib.request.Request(f"{server.http}/v2/models/gfm/infer", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return 200, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_plain_json_is_answered(server, local):
    from ase import Atoms

    code, answer = plain(server, [8, 1, 1])
    water = Atoms("OH2", positions=[[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]])
    truth = local(StructureBatch.from_ase([water]), {"energy"}, head="organic")
    found = {output["name"]: output["data"] for output in answer["outputs"]}
    assert code == 200 and found["status"] == [0]
    np.testing.assert_allclose(found["energy"], truth.energy, rtol=1e-12)


@pytest.mark.parametrize("numbers", [[300, 1, 1], [-1, 1, 1]])
def test_numbers_that_do_not_fit_a_byte_are_refused_not_cut(server, numbers):
    code, answer = plain(server, numbers)
    assert code == 400
    assert answer["error"] == f"numbers holds {numbers[0]}, allowed are 0 to 255"


def test_other_users_cannot_read_the_tensors(server):
    regions = reaper.list_regions(reaper.list_processes(server.process.pid))
    assert regions
    for region in regions:
        assert stat.S_IMODE(os.stat(region).st_mode) == 0o600
