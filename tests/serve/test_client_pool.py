"""The rules of several endpoints, without any server: who gets a request, when it is tried again, who is left out."""

from __future__ import annotations

import logging

import pytest

from atomsieve.errors import UsageError
from atomsieve.remote.endpoints import (
    MOST_BROKEN,
    MOST_EASED,
    STEADY,
    SUSPECT,
    Attempts,
    EndpointPool,
    RetryPolicy,
    explain_mismatch,
)
from atomsieve.remote.transport import Broken, DeadlineExceeded, Denied, Rejected, Unavailable
from atomsieve.remote.url import parse_urls
from atomsieve.remote.wire import WIRE

SAID = {
    "wire": WIRE,
    "ensemble_id": "a" * 64,
    "precision": "fp32",
    "backend": "native",
    "artefact": None,
    "device": "cpu",
    "default_head": "x",
    "threads": 2,
    "budget": {"atoms": None, "edges": None},
    "limits": {"atoms": 100},
    "atomsieve": "1.0",
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pool(clock):
    made = EndpointPool(parse_urls("grpc://h1:8001,h2:8001,http://h3"), RetryPolicy(patience=10, in_flight=2), clock)
    made.admit([SAID, SAID, SAID])
    return made


def test_schemes_hold_for_those_that_follow():
    found = [str(u) for u in parse_urls("grpcs://h1:1,h2:2,http://h3,h4, grpc://h5")]
    assert found == ["grpcs://h1:1", "grpcs://h2:2", "http://h3:8000", "http://h4:8000", "grpc://h5:8001"]


def test_requests_go_where_the_fewest_are(pool):
    taken = [pool.take(Attempts()) for _ in range(6)]
    assert {e.in_flight for e in pool.endpoints} == {2} and {id(e) for e in taken[:3]} == {
        id(e) for e in pool.endpoints
    }
    assert pool.take(Attempts()) is None
    pool.note_answer(pool.endpoints[1])
    assert pool.take(Attempts()) is pool.endpoints[1]


def test_one_outage_is_one_however_many_requests_it_fails(pool):
    first, second, _ = pool.endpoints
    sent = [(pool.take(Attempts()), Attempts()) for _ in range(6)]
    mine = [tries for endpoint, tries in sent if endpoint is first]
    assert pool.note_failure(first, 0, Unavailable("gone"), mine[0]) is True
    assert pool.note_failure(first, 0, Unavailable("gone"), mine[1]) is False
    assert not first.up and first.in_flight == 0 and first.failures == 1
    assert pool.take(Attempts()) is None, "the others are full"
    pool.note_answer(second)
    assert pool.take(Attempts()) is second
    assert pool.note_probe(first, Unavailable("still gone")) is False and pool.note_probe(first, SAID) is True
    assert first.up and pool.take(Attempts()) is first
    assert pool.note_failure(first, 0, Unavailable("late news"), Attempts()) is False and first.up, (
        "of the earlier outage"
    )


def test_pauses_grow_and_vary(pool):
    endpoint, policy = pool.endpoints[0], pool.policy
    for failures, usual in ((1, 0.1), (2, 0.2), (4, 0.8), (40, policy.longest)):
        endpoint.failures = failures
        found = {pool.pause_seconds(endpoint) for _ in range(20)}
        assert len(found) > 10 and usual / 2 <= min(found) and max(found) <= usual * 1.5


@pytest.mark.parametrize("kind", [Unavailable, Broken, DeadlineExceeded])
def test_patience_ends_with_the_latest_error(pool, clock, kind):
    tries = Attempts()
    for _ in pool.endpoints:
        endpoint = pool.take(tries)
        pool.note_failure(endpoint, 0, kind(f"{endpoint.url}: no"), tries)
        pool.check(tries, kind("no"))
    clock.now = 9.0
    assert pool.take(tries) is None
    clock.now = 10.5
    with pytest.raises(kind, match=r"no; given up after a patience of 10 s and 3 tries"):
        pool.take(tries)
    with pytest.raises(kind, match="very late"):
        pool.check(tries, kind("very late"))


def test_a_request_that_breaks_servers_is_not_sent_for_ever(pool):
    tries, endpoint = Attempts(), pool.endpoints[0]
    for k in range(MOST_BROKEN):
        endpoint.up, endpoint.in_flight = True, 1
        pool.note_failure(endpoint, endpoint.outages, Broken("died"), tries)
        if k < MOST_BROKEN - 1:
            pool.check(tries, Broken("died"))
    with pytest.raises(Broken, match="taken to be the cause"):
        pool.check(tries, Broken("died"))


def test_a_sound_server_that_was_late_gets_less_and_longer(clock):
    pool = EndpointPool(parse_urls("h1"), RetryPolicy(deadline=5, patience=10, in_flight=4), clock)
    pool.admit([SAID])
    [endpoint], tries = pool.endpoints, Attempts()

    def late():
        assert pool.take(tries) is endpoint
        assert pool.note_failure(endpoint, endpoint.outages, DeadlineExceeded("late"), tries)
        pool.check(tries, DeadlineExceeded("late"))

    for k in range(MOST_EASED):
        late()
        clock.now += 9.0  # more than the patience in all
        assert pool.note_probe(endpoint, SAID)
        assert pool.deadline(endpoint) == 5 * 2 ** (k + 1) and endpoint.room == (2, 1, 1)[k]
    late()
    clock.now += 10.5  # no more than so often
    assert pool.note_probe(endpoint, SAID) and pool.take(tries) is endpoint
    pool.note_failure(endpoint, endpoint.outages, DeadlineExceeded("late"), tries)
    with pytest.raises(DeadlineExceeded, match="given up after a patience of 10 s"):
        pool.check(tries, DeadlineExceeded("late"))
    pool.note_probe(endpoint, SAID)
    for _ in range(5 * STEADY):
        pool.note_answer(pool.take(Attempts()))
    assert endpoint.room == 4 and endpoint.in_flight == 0


def test_answers_to_others_are_signs_of_life(pool, clock):
    tries, endpoint = Attempts(since=0.0), pool.endpoints[0]
    endpoint.in_flight, clock.now = 1, 9.0
    pool.note_answer(endpoint)
    clock.now = 18.0
    pool.check(tries, Unavailable("full"))
    clock.now = 19.5
    with pytest.raises(Unavailable, match="patience"):
        pool.check(tries, Unavailable("full"))


def test_a_suspect_is_sent_alone_so_that_nobody_else_is_blamed(clock):
    pool = EndpointPool(parse_urls("h1"), RetryPolicy(in_flight=3), clock)
    pool.admit([SAID])
    [endpoint], guilty, innocent = pool.endpoints, Attempts(), Attempts()
    for _ in range(SUSPECT):
        outages = endpoint.outages
        for tries in (guilty, innocent):
            assert pool.take(tries) is endpoint
        for tries in (guilty, innocent):
            pool.note_failure(endpoint, outages, Broken("died"), tries)
        pool.note_probe(endpoint, SAID)
    other = Attempts()
    assert pool.take(other) is endpoint
    assert pool.take(guilty) is None and pool.take(Attempts()) is None, "it is kept free for the suspect"
    pool.note_answer(endpoint, other)
    assert pool.take(innocent) is None and pool.take(guilty) is endpoint and pool.take(Attempts()) is None
    pool.note_failure(endpoint, endpoint.outages, Broken("died"), guilty)
    pool.note_probe(endpoint, SAID)
    assert pool.take(innocent) is endpoint and pool.take(Attempts()) is None
    pool.note_answer(endpoint, innocent)
    assert (guilty.broken, innocent.broken) == (SUSPECT + 1, SUSPECT)
    assert pool.take(Attempts()) is endpoint and pool.take(guilty) is None
    pool.forget(guilty)  # whose caller has left
    assert pool.take(Attempts()) is endpoint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ensemble_id": "b" * 64}, "ensemble_id bbbbbbbbbbbb, not aaaaaaaaaaaa"),
        ({"precision": "fp64", "threads": 8}, "precision fp64, not fp32; threads 8, not 2"),
        ({"atomsieve": "1.1"}, "atomsieve 1.1, not 1.0"),
        ({"backend": "onnx"}, "backend onnx, not native"),
        ({"device": "cuda:0"}, "device cuda:0, not cpu"),
        ({"wire": WIRE + 1}, "speaks version"),
    ],
)
def test_servers_that_are_not_alike_are_refused_by_name(change, said):
    pool = EndpointPool(parse_urls("h1,h2"), RetryPolicy())
    with pytest.raises(UsageError, match=f"grpc://h2:8001.*{said}"):
        pool.admit([SAID, SAID | change])


def test_the_number_of_a_gpu_does_not_matter():
    url = parse_urls("h1")[0]
    assert explain_mismatch(url, SAID | {"device": "cuda:1"}, SAID | {"device": "cuda:0"}, url) is None


def test_who_does_not_answer_is_left_out_and_taken_in_later(caplog):
    pool = EndpointPool(parse_urls("h1,h2"), RetryPolicy())
    with caplog.at_level(logging.WARNING, "atomsieve"):
        pool.admit([Unavailable("h1: nobody"), SAID])
    assert "left out for now: h1: nobody" in caplog.text
    assert [e.up for e in pool.endpoints] == [False, True]
    assert pool.note_probe(pool.endpoints[0], SAID) and pool.endpoints[0].up


@pytest.mark.parametrize("error", [Denied("token"), Rejected("no such model")])
def test_what_no_waiting_mends_is_an_error_at_once(error):
    pool = EndpointPool(parse_urls("h1,h2"), RetryPolicy())
    with pytest.raises(type(error)):
        pool.admit([SAID, error])


def test_nobody_left_is_an_error_at_once(pool, caplog):
    for endpoint in [pool.take(Attempts()) for _ in pool.endpoints]:
        pool.note_failure(endpoint, 0, Unavailable("gone"), Attempts())
    with caplog.at_level(logging.WARNING, "atomsieve"):
        assert pool.note_probe(pool.endpoints[0], SAID | {"ensemble_id": "b" * 64})
    assert "served in another way than before: ensemble_id bbbbbbbbbbbb" in caplog.text
    assert pool.take(Attempts()) is None, "two may come back"
    pool.note_probe(pool.endpoints[1], Denied("wrong token"))
    pool.note_probe(pool.endpoints[2], SAID | {"precision": "bf16"})
    with pytest.raises(Unavailable, match=r"no endpoint is left: .*wrong token.*bf16"):
        pool.take(Attempts())


def test_strange_policies_are_refused():
    for wrong in ({"deadline": 0}, {"deadline": float("nan")}, {"patience": -1}, {"in_flight": 0}, {"longest": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", "-")):
            RetryPolicy(**wrong)
