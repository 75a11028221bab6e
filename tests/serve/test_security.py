"""Who gets in, and who does not: secrets, TLS, certificates of clients, a proxy; what the list of processes shows."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import string
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.remote.credentials import Credentials, read_token
from atomsieve.remote.transport import Denied, EndpointError, Transport, Unavailable
from atomsieve.remote.url import parse_url
from atomsieve.remote.wire import request_arrays
from atomsieve.serve.server.access import check_exposure, conceal_secrets, is_answered_by, is_loopback
from atomsieve.serve.server.process import ServerOptions, find_free_ports
from atomsieve.serve.server.start import Listening, server_options
from tests.helpers import copper_oxides
from tests.serve.supervised import Supervised

TOKEN = "+a/long~token.with_every-kind=of=character=="
NGINX = shutil.which("nginx") or str(Path(__file__).parents[2] / ".venv/nginx/usr/sbin/nginx")
REQUEST = request_arrays(copper_oxides(3))


def infer(url, credentials, **more):
    with Transport(parse_url(url), credentials, seconds=20) as transport:
        return transport.infer("gfm", REQUEST, ["energy"], {"head": "metal"}, seconds=20, **more)["energy"]


# -- without a token: still nobody but the supervisor controls the server ---------------------------------------------


@pytest.mark.parametrize("over_http", [False, True], ids=["grpc", "http"])
def test_a_stranger_cannot_control_the_server(server, over_http):
    with server.transport(http=over_http) as stranger:
        client, call = stranger._client, partial(stranger._call, seconds=60)
        for forbidden in (
            lambda: call(client.load_model, "gfm"),
            lambda: call(client.unload_model, "gfm"),
            lambda: call(client.get_model_repository_index),
            lambda: call(client.get_system_shared_memory_status),
            lambda: call(client.register_system_shared_memory, "mine", "/mine", 64),
            lambda: call(client.unregister_system_shared_memory),
            lambda: call(client.get_trace_settings),
            lambda: call(client.update_trace_settings, settings={"trace_file": "/tmp/mine"}),
            lambda: call(client.get_log_settings),
            lambda: call(client.update_log_settings, {"log_file": "/tmp/mine"}),
        ):
            with pytest.raises((Denied, Unavailable), match=r"(?i)restricted|forbidden|expecting"):
                forbidden()
        assert client.is_server_live() and client.is_server_ready() and stranger.is_ready("gfm")
        assert stranger.metadata()["name"] == "triton"
    guess = Credentials(admin="0" * 48)
    url = parse_url(server.http if over_http else server.grpc)
    with Transport(url, guess) as stranger, pytest.raises((Denied, Unavailable)):
        stranger.load("gfm")
    with server.transport(http=over_http, admin=True) as admin:
        assert admin.models() == ["gfm"]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/..%2f..%2fetc/infer",
        "/v2/models/../../etc/passwd",
        "/v2/models/gfm/versions/..%2f1/infer",
        "/v2/models/gfm/versions/-1/infer",
        "/v2/models/gfm/versions/99999999999999999999/infer",
        "/v2/models/%00/infer",
        "/v2/models/gfm/versions/1%00/infer",
        "/v2/models/gfm%0d%0aX:1/infer",
        "/../../../../etc/passwd",
    ],
)
def test_names_and_versions_lead_nowhere_else(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.options.http, timeout=20)
    try:
        connection.putrequest("POST", path, skip_host=False)
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"{}")
        answer = connection.getresponse()
        assert 400 <= answer.status < 500
        assert b"root:" not in answer.read()
    finally:
        connection.close()


# -- with a token, TLS and certificates of clients --------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return pytest.importorskip("trustme").CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """PEM files of a server and of a client, and a token file."""
    folder = tmp_path_factory.mktemp("secrets")
    for name, certificate in (
        ("server", authority.issue_cert("localhost", "127.0.0.1")),
        ("client", authority.issue_cert("client@example.org")),
    ):
        (folder / f"{name}.key").write_bytes(certificate.private_key_pem.bytes())
        (folder / f"{name}.pem").write_bytes(b"".join(c.bytes() for c in certificate.cert_chain_pems))
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "token").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def guarded(served_gfm, files, tmp_path_factory):
    """A server with TLS, certificates of clients, a token, and plain HTTP on this machine for a proxy."""
    folder = tmp_path_factory.mktemp("guarded")
    [port] = find_free_ports(1)
    options = [
        "--precision",
        "fp64",
        "--threads",
        "1",
        "--check-seconds",
        "1",
        "--token-file",
        files / "token",
        "--tls-cert",
        files / "server.pem",
        "--tls-key",
        files / "server.key",
        "--tls-client-ca",
        files / "ca.pem",
        "--http-port",
        port,
        "--listen",
        "0.0.0.0",
    ]
    running = Supervised(folder / "run", served_gfm, *options, scheme="grpcs")
    running.http = port
    running.until("ready")
    yield running
    running.close()


def test_tls_with_certificates_of_clients_and_a_token(guarded, files, local):
    whole = Credentials(token=TOKEN, ca=files / "ca.pem", cert=files / "client.pem", key=files / "client.key")
    truth = local(copper_oxides(3), {"energy"}, head="metal").energy
    url = guarded.url
    np.testing.assert_allclose(infer(url, whole), truth, rtol=1e-9)
    with Transport(parse_url(url), whole) as transport, pytest.raises((Denied, Unavailable)):
        transport.load("gfm")  # a user is not the supervisor
    for lacking in (
        Credentials(token=TOKEN, ca=files / "ca.pem"),  # no certificate
        Credentials(ca=whole.ca, cert=whole.cert, key=whole.key),  # no token
        Credentials(token=TOKEN + "x", ca=whole.ca, cert=whole.cert, key=whole.key),
        Credentials(token=TOKEN[:-1], ca=whole.ca, cert=whole.cert, key=whole.key),
        Credentials(token=TOKEN, cert=whole.cert, key=whole.key),  # trusts nobody who vouches for this server
    ):
        with pytest.raises(EndpointError):
            infer(url, lacking)
    with pytest.raises(EndpointError):
        infer(url.replace("grpcs", "grpc"), Credentials(token=TOKEN))
    with pytest.raises(Denied):
        infer(f"http://127.0.0.1:{guarded.http}", Credentials())
    np.testing.assert_allclose(infer(f"http://127.0.0.1:{guarded.http}", Credentials(token=TOKEN)), truth, rtol=1e-9)


def test_health_stays_open_and_plain_http_stays_here(guarded):
    connection = http.client.HTTPConnection("127.0.0.1", guarded.http, timeout=20)
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().status == 200
    connection.close()
    listening = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{guarded.http:04X} " in listening and f"00000000:{guarded.http:04X} " not in listening
    assert f"00000000:{guarded.grpc:04X} " in listening or f":{guarded.grpc:04X} " in Path("/proc/net/tcp6").read_text()


def test_no_secret_is_shown_by_the_list_of_processes_or_the_log(guarded):
    shown = b"".join(
        Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (guarded.server(), *guarded.stubs(), guarded.process.pid)
    )
    assert TOKEN.encode() not in shown and b"atomsieve-admin=****" in shown
    text = guarded.log_file.read_text() + guarded.said()
    assert TOKEN not in text
    assert not guarded.records("secret_visible")
    assert any("metrics page" in r["text"] for r in guarded.records("exposed"))


def test_https_through_the_proxy_of_the_example(guarded, files, local, tmp_path):
    if not os.access(NGINX, os.X_OK):
        pytest.skip("no nginx on the PATH or in .venv/nginx; `make venv` fetches one where it can")
    [port] = find_free_ports(1)
    template = Path(__file__).parents[2] / "containers/nginx/nginx.conf"
    values = {
        "LISTEN": f"127.0.0.1:{port}",
        "SERVER_NAME": "localhost",
        "CERTIFICATE": files / "server.pem",
        "KEY": files / "server.key",
        "UPSTREAM": f"127.0.0.1:{guarded.http}",
        "STATE": tmp_path,
        "RATE": "20r/s",
        "BURST": "20",
        "MAX_BODY": "1m",
    }
    text = template.read_text()
    for name, value in values.items():
        text = text.replace("${" + name + "}", str(value))
    code = "\n".join(line for line in text.splitlines() if not line.strip().startswith("#"))
    assert "${" not in code
    (tmp_path / "nginx.conf").write_text(text)
    line = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr", "-g", "daemon off;"]
    proxy = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        url, known = f"https://127.0.0.1:{port}", Credentials(token=TOKEN, ca=files / "ca.pem")
        context = ssl.create_default_context(cafile=str(files / "ca.pem"))

        def ask(method, path, body=None, **headers):
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
            try:
                connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
                return connection.getresponse().status
            finally:
                connection.close()

        deadline = time.monotonic() + 120
        while True:
            try:
                assert ask("GET", "/v2/health/ready") == 200
                break
            except ConnectionRefusedError:
                assert proxy.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        truth = local(copper_oxides(3), {"energy"}, head="metal").energy
        np.testing.assert_allclose(infer(url, known), truth, rtol=1e-9)
        with pytest.raises(Denied):
            infer(url, Credentials(ca=files / "ca.pem"))
        with pytest.raises(EndpointError):  # whose certificate is that?
            infer(url, Credentials(token=TOKEN))
        for path in (
            "/v2/repository/index",
            "/v2/repository/models/gfm/load",
            "/v2/logging",
            "/v2/trace/setting",
            "/v2/systemsharedmemory/status",
            "/metrics",
            "/",
            "/v2/models/../../etc/passwd",
            "/v2/models/..%2f..%2fetc/infer",
        ):
            assert ask("POST", path, "{}") == 404, path
        assert ask("DELETE", "/v2/models/gfm") == 403 and ask("GET", "/v2/models/gfm/infer") == 403
        assert ask("GET", "/v2/models/gfm", atomsieve_admin="guess") == 403
        assert ask("POST", "/v2/models/gfm/infer", "x" * 2**21) == 413
        assert ask("POST", "/v2/models/gfm/infer", "x", Content_Encoding="gzip") == 415
        statuses = [ask("GET", "/v2") for _ in range(60)]
        assert 429 in statuses and max(statuses) < 500
    finally:
        proxy.terminate()
        proxy.communicate(timeout=60)


# -- what the command line refuses ------------------------------------------------------------------------------------


def test_a_token_file_must_be_private_and_the_token_long(tmp_path):
    path = tmp_path / "token"
    with pytest.raises(UsageError, match=r"No such file.*openssl rand"):
        read_token(path)
    path.write_text(string.ascii_letters)
    path.chmod(0o644)
    with pytest.raises(UsageError, match=f"everybody on this machine may read .*chmod 600 {path}"):
        read_token(path)
    path.chmod(0o640)
    assert read_token(path) == string.ascii_letters
    for bad, says in (
        ("short", "has 5 characters"),
        ("two words that are long", "one word"),
        ("ü" * 20, "other kinds"),
        ("with,comma,and:colon,x", "one word"),
    ):
        path.write_text(bad)
        with pytest.raises(UsageError, match=says):
            read_token(path)


def test_other_machines_are_let_in_only_on_request(tmp_path):
    here = ServerOptions(tmp_path, ("gfm",))
    assert check_exposure(here, insecure=False) == []
    for address in ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1"):
        assert is_loopback(address)
    for address in ("0.0.0.0", "10.1.2.3", "example.org", "[::]", "::"):
        options = ServerOptions(tmp_path, ("gfm",), address=address)
        with pytest.raises(UsageError, match=r"lets other machines in.*--token-file"):
            check_exposure(options, insecure=False)
        assert "everybody" in check_exposure(options, insecure=True)[0]
    with_token = ServerOptions(tmp_path, ("gfm",), address="0.0.0.0", token="t" * 20)
    assert "unencrypted" in check_exposure(with_token, insecure=False)[0]
    assert any("every IPv6 address" in text for text in check_exposure(with_token, insecure=False))
    elsewhere = replace(with_token, address="10.1.2.3")
    assert not any("IPv6" in text for text in check_exposure(elsewhere, insecure=False))
    assert any("received whole" in text for text in check_exposure(with_token, insecure=False))
    pem = tmp_path / "any.pem"
    pem.touch()
    for address in ("127.0.0.1", "0.0.0.0"):  # plain HTTP would let in whom gRPC asks for a certificate
        both = ServerOptions(tmp_path, ("gfm",), address=address, tls_cert=pem, tls_key=pem, tls_client_ca=pem)
        with pytest.raises(UsageError, match="asks for no certificate, so --tls-client-ca guards gRPC alone"):
            check_exposure(both, insecure=False)
        for sound in (replace(both, token="t" * 20), replace(both, http=0), replace(both, http_private=True)):
            assert not any("everybody" in text for text in check_exposure(sound, insecure=False))
        check_exposure(both, insecure=True)
    assert server_options(tmp_path, ["gfm"], Listening())[0].http == 8000
    assert server_options(tmp_path, ["gfm"], Listening("0.0.0.0", insecure=True))[0].http == 0
    assert server_options(tmp_path, ["gfm"], Listening("0.0.0.0", http=8000, insecure=True))[0].http == 8000
    with pytest.raises(UsageError, match="--tls-cert and --tls-key together"):
        check_exposure(ServerOptions(tmp_path, ("gfm",), tls_cert=tmp_path), insecure=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_is_known_to_be_the_servers(host):
    """Before a secret is sent anywhere, the supervisor makes sure that nobody else listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    with socket.socket(family) as mine:
        try:
            mine.bind((host, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        port = mine.getsockname()[1]
        assert not is_answered_by(reached, port, [os.getpid()])  # nobody listens
        mine.listen()
        assert is_answered_by(reached, port, [os.getpid(), 1])
        assert not is_answered_by(reached, port, [os.getppid()]) and not is_answered_by(reached, port, [])
        if host == "127.0.0.1":
            assert not is_answered_by("127.0.0.2", port, [os.getpid()])


def test_concealing_hides_the_secret_and_only_that():
    process = subprocess.Popen(["sh", "-c", "sleep 300; true", "x", "key=s3cret-s3cret", "rest"])
    try:
        line = Path(f"/proc/{process.pid}/cmdline")
        deadline = time.monotonic() + 120
        while b"key=s3cret-s3cret" not in line.read_bytes():  # the new program is not there at once
            assert time.monotonic() < deadline
        assert conceal_secrets(process.pid, ["s3cret-s3cret", ""])
        assert line.read_bytes().split(b"\0")[3:6] == [b"x", b"key=*************", b"rest"]
    finally:
        process.kill()
        process.wait()
    assert not conceal_secrets(process.pid, ["s3cret"])


def test_options_never_print_secrets(tmp_path):
    options = ServerOptions(tmp_path, ("gfm",), admin="hidden-admin", token="hidden-token")
    assert "hidden" not in repr(options) and "hidden" not in repr(Credentials(token="hidden", admin="hidden"))
    assert "hidden" not in json.dumps(str(options))
