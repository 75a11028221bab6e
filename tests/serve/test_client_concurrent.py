"""Many clients at once: everybody gets the own answer, requests are gathered, and a slow client holds nobody up."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from atomsieve.remote.credentials import Credentials
from atomsieve.remote.predictor import RemotePredictor
from atomsieve.remote.transport import DeadlineExceeded
from tests.helpers import copper_oxides

CLIENTS, CALLS = 32, 4


def counters(server) -> dict[str, float]:
    """Return the metrics of the served model, added up over their other labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.options.metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(\w+)\{([^}]*)\} ([\d.e+-]+)$", text, re.MULTILINE):
        if 'model="gfm"' in labels:
            found[name] = found.get(name, 0.0) + float(value)
    return found


def settled(server, since: dict[str, float] | None = None, n: int = 0) -> dict[str, float]:
    """Return the counters when they stand still, and count `n` requests more than `since`.

    The server counts some time after it has answered. Requests that were refused before are counted by it alone.
    """
    since = since or {}
    keys = ("nv_inference_request_success", "atomsieve_requests_total")
    end, found = time.monotonic() + 60, counters(server)
    while time.monotonic() < end:
        time.sleep(0.3)
        before, found = found, counters(server)
        if before == found and (n == 0 or all(found.get(k, 0.0) - since.get(k, 0.0) >= n for k in keys)):
            break
    return found


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_clients_at_once_get_their_own_answers_and_are_gathered(server, local, way):
    batches = [[copper_oxides(1 + (c + k) % 3, seed=100 * c + k) for k in range(CALLS)] for c in range(CLIENTS)]
    together = threading.Barrier(CLIENTS)
    predictors = [RemotePredictor.connect(getattr(server, way), head="metal") for _ in range(CLIENTS)]
    before = settled(server)

    def client(c: int):
        found = []
        for batch in batches[c]:
            together.wait()
            found.append(predictors[c](batch))
        return found

    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = list(threads.map(client, range(CLIENTS)))
    counted = {name: value - before.get(name, 0.0) for name, value in settled(server, before, CLIENTS * CALLS).items()}
    for predictor in predictors:
        predictor.close()
    for own, found in zip(batches, answers, strict=True):
        for batch, answer in zip(own, found, strict=True):
            truth = local(batch, head="metal")
            for name, values in truth.arrays().items():
                np.testing.assert_allclose(getattr(answer, name), values, rtol=1e-9, atol=1e-9, err_msg=name)
    n, everything = CLIENTS * CALLS, [batch for own in batches for batch in own]
    assert counted["nv_inference_request_success"] == counted["atomsieve_requests_total"] == n
    assert counted["nv_inference_exec_count"] == counted["atomsieve_batches_total"] < n, "nothing was gathered"
    assert counted["atomsieve_evaluations_total"] < n
    assert counted["atomsieve_structures_total"] == sum(map(len, everything))
    assert counted["atomsieve_atoms_total"] == sum(batch.n_atoms for batch in everything)
    assert counted.get("atomsieve_errors_total", 0) == 0


def test_requests_alone_have_the_bits_of_a_quiet_server(server):
    batch = copper_oxides(6, seed=9)
    with RemotePredictor.connect(server.grpc, alone=True) as alone, RemotePredictor.connect(server.grpc) as others:
        quiet = alone(batch)
        with ThreadPoolExecutor(8) as threads:
            noise = [threads.submit(others, copper_oxides(3, seed=k)) for k in range(40)]
            found = [alone(batch) for _ in range(10)]
            for n in noise:
                n.result()
    for again in found:
        for name, values in quiet.arrays().items():
            np.testing.assert_array_equal(getattr(again, name), values, err_msg=name)


def test_half_a_request_holds_nobody_up(server, local):
    head = b"POST /v2/models/gfm/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"{" * 500
    with socket.create_connection(("127.0.0.1", server.options.http)) as slow:
        slow.sendall(head)
        with socket.create_connection(("127.0.0.1", server.options.grpc)) as mute:
            mute.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            batch = copper_oxides(2)
            for url in (server.http, server.grpc):
                with RemotePredictor.connect(url, deadline=30) as remote:
                    np.testing.assert_allclose(remote(batch).energy, local(batch).energy, rtol=1e-9)


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_a_deadline_that_passes_is_said_so(server, way):
    with RemotePredictor.connect(getattr(server, way), patience=0.3) as remote:
        pool = remote._workers.pool
        pool.policy = type(pool.policy)(deadline=1e-4, patience=0.3)
        with pytest.raises(DeadlineExceeded, match=r"given up after a patience of 0.3 s and \d+ tr"):
            remote(copper_oxides(60, seed=1))


def test_threads_may_share_a_predictor(server, local):
    with RemotePredictor.connect(f"{server.grpc},{server.http}", in_flight=2) as remote:
        batches = [copper_oxides(2, seed=k) for k in range(30)]
        with ThreadPoolExecutor(10) as threads:
            answers = list(threads.map(remote, batches))
        assert [e.in_flight for e in remote._workers.pool.endpoints] == [0, 0]
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer.energy, local(batch).energy, rtol=1e-9)


def test_secrets_are_not_shown(server):
    remote = RemotePredictor.connect(server.grpc, credentials=Credentials(token="secret-word"))
    assert "secret-word" not in f"{remote!r} {remote._given!r} {remote.describe()!r}"
    remote.close()
