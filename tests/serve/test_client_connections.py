"""Connections that are cut, fall silent, drip or lead to somebody else: clients notice, and ask again."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.remote.async_predictor import AsyncRemotePredictor
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.predictor import RemotePredictor
from atomsieve.remote.transport import DeadlineExceeded, Transport, Unavailable
from atomsieve.remote.url import parse_url
from atomsieve.remote.workers import Closed
from tests.helpers import copper_oxides
from tests.serve.spoiled import proxy

LONG = 100  # seconds, for what comes at once unless something is wrong


@contextmanager
def stub(*pieces, pause=0.0):
    """A server that reads something and sends `pieces` to everybody; yields its address."""
    over = threading.Event()

    def serve(client):
        with client, suppress(OSError):
            client.recv(1 << 16)
            for piece in pieces:
                client.sendall(piece)
                if over.wait(pause):
                    return
            client.recv(1 << 16)

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        over.set()
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


WHERE = {
    "head": lambda data: data[:20],
    "body": lambda data: data[: data.index(b"\r\n\r\n") + 9],
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("where", WHERE)
def test_an_answer_that_is_cut_is_asked_for_again(server, local, where):
    batch = copper_oxides(3)
    with proxy(server.options.http) as between, RemotePredictor.connect(f"http://{between.address}") as remote:
        between.cut = WHERE[where]
        np.testing.assert_allclose(remote(batch).energy, local(batch).energy, rtol=1e-9)
        assert between.cut is None and [e.outages for e in remote._workers.pool.endpoints] == [1]


def test_a_connection_that_falls_silent_is_replaced(server, local):
    batch = copper_oxides(3)
    with proxy(server.options.grpc) as between:
        url = f"grpc://{between.address}"
        with RemotePredictor.connect(url, deadline=2, patience=LONG) as remote:
            for _ in range(2):
                np.testing.assert_allclose(remote(batch).energy, local(batch).energy, rtol=1e-9)
                between.freeze()

        async def main():
            async with await AsyncRemotePredictor.connect(url, deadline=2, patience=LONG) as remote:
                for _ in range(2):
                    np.testing.assert_allclose((await remote(batch)).energy, local(batch).energy, rtol=1e-9)
                    between.freeze()

        asyncio.run(main())


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_closing_tells_all_who_wait(server, way):
    with proxy(getattr(server.options, way)) as between:
        remote = RemotePredictor.connect(f"{way}://{between.address}", in_flight=2)
        remote(copper_oxides(1))
        between.frozen = 10**9
        sent = [remote.submit(copper_oxides(1)) for _ in range(5)]
        end = time.monotonic() + LONG
        while len(remote._workers._running) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        remote.close()
        for one in sent:
            with pytest.raises(Closed):
                one.result(LONG)
        with pytest.raises(Closed, match="connect again"):
            remote.submit(copper_oxides(1))


def test_closing_tells_all_tasks_that_wait(server):
    async def main():
        with proxy(server.options.grpc) as between:
            remote = await AsyncRemotePredictor.connect(f"grpc://{between.address}", in_flight=2)
            between.frozen = 10**9
            tasks = [asyncio.create_task(remote(copper_oxides(1))) for _ in range(5)]
            mine = asyncio.create_task(remote(copper_oxides(1)))
            await asyncio.sleep(0.1)
            mine.cancel()
            await remote.close()
            found = await asyncio.gather(*tasks, mine, return_exceptions=True)
            assert [type(error) for error in found] == [Closed] * 5 + [asyncio.CancelledError]
            with pytest.raises(Closed, match="connect again"):
                await remote(copper_oxides(1))

    asyncio.run(main())


def test_what_was_sent_keeps_its_predictor(server, local):
    sent = RemotePredictor.connect(server.grpc).submit(copper_oxides(2))
    gc.collect()
    np.testing.assert_allclose(sent.result(LONG).energy, local(copper_oxides(2)).energy, rtol=1e-9)


def test_a_fork_does_not_close_the_connections_of_its_parent(server):
    with RemotePredictor.connect(server.grpc) as remote:
        mine, remote._workers.process = remote._workers.process, 1
        remote._workers.close()
        remote._workers.process = mine
        assert len(remote(copper_oxides(1)).energy) == 1


def test_who_answers_something_else_is_no_server(server):
    with pytest.raises(Unavailable, match=r"no endpoint answers: http://.* speaks no HTTP .*check the addresses"):
        RemotePredictor.connect(f"http://127.0.0.1:{server.options.grpc}")
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>"
    nothing = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
    for answer in (page, nothing):
        with stub(answer) as address, pytest.raises(Unavailable, match="its answer cannot be read"):
            RemotePredictor.connect(f"http://{address}")


def test_a_server_that_drips_is_late():
    drops = [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", *[b"x"] * 400]
    with stub(*drops, pause=0.05) as address, pytest.raises(DeadlineExceeded, match="no answer in time"):
        Transport(parse_url(f"http://{address}")).metadata(seconds=0.3)


def test_a_server_that_takes_connections_and_says_nothing_is_called_busy():
    with stub(pause=LONG) as address, pytest.raises(DeadlineExceeded, match="it is busy, or hangs"):
        RemotePredictor.connect(f"http://{address}", deadline=0.5)


def test_files_for_tls_are_named(tmp_path):
    (tmp_path / "junk.pem").write_text("junk")
    for scheme in ("grpcs", "https"):
        for name in ("gone.pem", "junk.pem"):
            for files in ({"ca": tmp_path / name}, {"cert": tmp_path / name}):
                with pytest.raises(UsageError, match=rf"{name} cannot be used as TLS c"):
                    RemotePredictor.connect(f"{scheme}://127.0.0.1:9", credentials=Credentials(**files))
