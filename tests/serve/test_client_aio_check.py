"""The client of asyncio, and the check of an endpoint by true inference."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.remote.async_predictor import AsyncRemotePredictor
from atomsieve.remote.transport import DeadlineExceeded, Rejected, Unavailable
from atomsieve.remote.url import parse_url
from atomsieve.serve import check
from atomsieve.serve.check import check_endpoint
from atomsieve.serve.server.process import find_free_ports
from tests.helpers import copper_oxides, tiny_gfm

ALL = {"energy", "forces", "stress", "spread", "members", "energies", "features"}


def test_many_calls_at_once_get_their_own_answers(server, local):
    batches = [copper_oxides(1 + k % 4, seed=k) for k in range(60)]

    async def main():
        async with await AsyncRemotePredictor.connect(server.grpc, in_flight=8) as predictor:
            assert predictor.ensemble_id == local.ensemble_id
            return await asyncio.gather(*(predictor(b, ALL) for b in batches))

    for answer, batch in zip(asyncio.run(main()), batches, strict=True):
        truth = local(batch, ALL)
        for name, values in truth.arrays().items():
            np.testing.assert_allclose(getattr(answer, name), values, rtol=1e-9, atol=1e-9, err_msg=name)


def test_asyncio_fails_as_the_other_client_does(server):
    async def main():
        with pytest.raises(UsageError, match="gRPC alone"):
            await AsyncRemotePredictor.connect(server.http)
        with pytest.raises(Rejected, match="gfmm"):
            await AsyncRemotePredictor.connect(server.grpc, model="gfmm")
        with pytest.raises(Unavailable, match="no endpoint answers"):
            await AsyncRemotePredictor.connect(f"grpc://127.0.0.1:{find_free_ports(1)[0]}", deadline=2)
        late = await AsyncRemotePredictor.connect(server.grpc, patience=0.3)
        late._pool.policy = type(late._pool.policy)(deadline=1e-4, patience=0.3)
        with pytest.raises(DeadlineExceeded, match="patience"):
            await late(copper_oxides(3))
        await late.close()

    asyncio.run(main())


def test_a_cancelled_task_takes_nothing_with_it(server, local):
    async def main():
        async with await AsyncRemotePredictor.connect(server.grpc, in_flight=2) as predictor:
            tasks = [asyncio.create_task(predictor(copper_oxides(30, seed=k))) for k in range(8)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [e.in_flight for e in predictor._pool.endpoints] == [0]
            return done

    found = asyncio.run(main())
    assert all(isinstance(x, asyncio.CancelledError) for x in found[::2])
    for k, answer in list(enumerate(found))[1::2]:
        np.testing.assert_allclose(answer.energy, local(copper_oxides(30, seed=k)).energy, rtol=1e-9)


@pytest.mark.parametrize("http", [False, True], ids=["grpc", "http"])
def test_a_sound_endpoint_passes(server, served_gfm, local, http):
    facts = check_endpoint(server.http if http else server.grpc, ensemble=served_gfm)
    assert facts["server"].startswith("triton 2.") and facts["ensemble_id"] == local.ensemble_id
    assert facts["heads"] == local.heads and facts["precision"] == "fp64"
    assert 0 <= facts["error_of_allowed"] < 1 and facts["milliseconds"] > 0
    assert json.loads(json.dumps(facts)) == facts


def test_a_wrong_answer_does_not_pass(server, monkeypatch):
    true = check.compare_test_vector

    def shifted(vector, answer, precision, gives, heads):
        def wrong(arrays, head, names):
            found = dict(answer(arrays, head, names))
            return found | {"energy": found["energy"] + 1e-3}

        return true(vector, wrong, precision, gives, heads)

    monkeypatch.setattr(check, "compare_test_vector", shifted)
    with pytest.raises(AtomSieveError, match=r"head organic: energy per atom .* is off by .*do not use this server"):
        check_endpoint(server.grpc)
    with pytest.raises(AtomSieveError, match="head metal"):
        check_endpoint(server.grpc, heads=["metal"])


def test_another_ensemble_does_not_pass(server, tmp_path):
    with pytest.raises(AtomSieveError, match="serves ensemble"):
        check_endpoint(server.grpc, ensemble=tiny_gfm(tmp_path / "other", members=2))
    with pytest.raises(UsageError, match="did you mean 'metal'"):
        check_endpoint(server.grpc, heads=["meta"])
    with pytest.raises(UsageError, match="leave heads out to test all of organic, metal"):
        check_endpoint(server.grpc, heads=[])


@pytest.mark.parametrize("sent", [b"{", b"[]", b"{}"])
def test_a_test_vector_that_is_none_is_said_so(sent):
    with pytest.raises(AtomSieveError, match=r"grpc://h:1: its test vector .*do not use this server"):
        check._parse_vector(np.frombuffer(sent, np.uint8), parse_url("grpc://h:1"))
