"""A real server answers as the predictor in this process does."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.serve.vector import compare
from atomsieve.serve.wire import outputs_for, prediction_of, request_arrays
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
    answer, truth = prediction_of(found, "metal", frozenset()), local(batch, want, head="metal")
    assert answer.arrays().keys() == truth.arrays().keys()
    for name, values in truth.arrays().items():
        np.testing.assert_allclose(getattr(answer, name), values, rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_server_is_triton_and_holds_its_test_vector(server, local):
    import json

    with server.transport() as transport:
        assert transport.metadata()["name"] == "triton"
        empty = request_arrays(copper_oxides(1).slice(0, 0))
        found = transport.infer("gfm", empty, ["description", "test_vector"])
        description, vector = (json.loads(bytes(found[n])) for n in ("description", "test_vector"))

        def answer(arrays, head, names):
            return transport.infer("gfm", arrays, names, {"head": head})

        assert compare(vector, answer, "fp64", description["gives"]) < 1
    assert description["ensemble_id"] == local.ensemble_id
    assert description["elements"]["metal"] == local.elements("metal")
