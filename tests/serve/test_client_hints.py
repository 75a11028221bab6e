"""What clients say of an endpoint that is there, but is not what its URL says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from atomsieve.errors import UsageError
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.transport import Rejected, Transport, Unavailable
from atomsieve.remote.url import parse_url, parse_urls

trustme, grpc = pytest.importorskip("trustme"), pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """URLs of an empty gRPC server with TLS, one with another's name, one that asks for a certificate, one without
    TLS, and an HTTP server; and the CA."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    server = grpc.server(ThreadPoolExecutor(2))
    roots, ports = authority.cert_pem.bytes(), {}
    for kind, name, asks in (
        ("tls", "127.0.0.1", False),
        ("named", "elsewhere.test", False),
        ("asks", "127.0.0.1", True),
    ):
        issued = authority.issue_cert(name)
        pair = (issued.private_key_pem.bytes(), b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        shown = grpc.ssl_server_credentials([pair], roots if asks else None, asks)
        ports[kind] = server.add_secure_port("127.0.0.1:0", shown)
    ports["plain"] = server.add_insecure_port("127.0.0.1:0")
    server.start()
    web = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    Thread(target=web.serve_forever, daemon=True).start()
    ports["web"] = web.server_address[1]
    yield ports, folder
    web.shutdown()
    web.server_close()
    server.stop(None).wait()


def ask(places, scheme, kind, ca=None):
    ports, folder = places
    credentials = Credentials(ca=None if ca is None else folder / ca)
    with Transport(replace(parse_url("h"), scheme=scheme, host="127.0.0.1", port=ports[kind]), credentials) as there:
        there.metadata()


@pytest.mark.parametrize(
    ("scheme", "kind", "ca", "says"),
    [
        ("grpcs", "tls", None, "not trusted; name the CA .* --tls-ca"),
        ("grpcs", "tls", "other.pem", "not trusted; name the CA .* --tls-ca"),
        ("https", "tls", None, "not trusted; name the CA .* --tls-ca"),
        ("grpcs", "named", "ca.pem", "its certificate is for another name"),
        ("https", "named", "ca.pem", "its certificate is for another name"),
        ("grpcs", "asks", "ca.pem", "asks for a client's certificate"),
        ("grpcs", "plain", "ca.pem", "does not speak TLS; use grpc://"),
        ("https", "web", "ca.pem", "does not speak TLS; use http://"),
        ("grpc", "tls", None, "it speaks TLS .use grpcs://"),
        ("grpc", "web", None, "speaks no gRPC"),
    ],
)
def test_what_is_wrong_is_said(places, scheme, kind, ca, says):
    with pytest.raises(Unavailable, match=says):
        ask(places, scheme, kind, ca)


def test_what_is_right_gets_through(places):
    for scheme, kind, ca in (("grpcs", "tls", "ca.pem"), ("grpc", "plain", None)):
        with pytest.raises(Rejected, match="Method not found"):  # of an empty server
            ask(places, scheme, kind, ca)


@pytest.mark.parametrize("text", ["grpc://127.0.0.1:8001,8301", "8001"])
def test_a_port_is_no_host(text):
    with pytest.raises(UsageError, match=r"'\d+' is no endpoint; give grpc://host:8001"):
        parse_urls(text)


def test_a_model_for_graphs_and_one_that_is_not_there():
    from atomsieve.remote.diagnostics import add_advice

    assert "takes ready graphs" in add_advice("unexpected inference output 'description' for model 'gfm_graph'")
    assert "--model" in add_advice("Request for unknown model: 'x' is not found")
    assert add_advice("any other") == "any other"
