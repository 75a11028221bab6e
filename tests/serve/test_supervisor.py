"""A watched server comes back by itself, ends gently, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from atomsieve.remote.credentials import Credentials
from atomsieve.remote.transport import DeadlineExceeded, EndpointError, Unavailable
from atomsieve.remote.wire import request_arrays
from atomsieve.serve.logs import Log
from atomsieve.serve.model.settings import Settings
from atomsieve.serve.repository.layout import RepositoryModel
from atomsieve.serve.server import reaper
from atomsieve.serve.server.health import PATIENCE, Health, find_stubs
from tests.helpers import copper_oxides
from tests.serve.repositories import write_model
from tests.serve.supervised import Supervised

QUICK = ("--check-seconds", "0.3", "--answer-seconds", "2", "--threads", "1")


HANGS = """

class Hangs(TritonPythonModel):
    def execute(self, requests):
        import time
        from pathlib import Path

        while Path({hangs!r}).exists():
            time.sleep(30)
        return super().execute(requests)


TritonPythonModel = Hangs
"""


def energies(supervised, batch, model="gfm", version=""):
    """Ask until there is an answer: on a slow machine a model may be loaded anew once more than a test asks for."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with supervised.transport() as transport:
                found = transport.infer(model, request_arrays(batch), ["energy"], {"head": "metal"}, version=version)
            return found["energy"]
        except EndpointError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def supervised(request, tmp_path):
    started = []

    def start(*options, **more):
        started.append(Supervised(tmp_path / str(len(started)), *map(str, options), **more))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_killed_and_hung_parts_come_back_until_restarts_run_out(supervised, served_gfm, local, tmp_path):
    hangs = tmp_path / "hangs"
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models", RepositoryModel("gfm", served_gfm, Settings(precision="fp64", threads=1)))
    code = tmp_path / "models/gfm/1/model.py"
    code.write_text(code.read_text() + HANGS.format(hangs=str(hangs)))
    running = supervised("--repository", tmp_path / "models", *QUICK, "--max-restarts", 1)
    batch = copper_oxides(3)
    truth = local(batch, {"energy"}, head="metal").energy
    running.until("ready")
    np.testing.assert_allclose(energies(running, batch), truth, rtol=1e-9)
    memory = reaper.list_regions(reaper.list_processes(running.server()))
    assert memory

    [stub] = running.stubs()
    os.kill(stub, signal.SIGKILL)
    said = running.until("failed")["text"]  # by whoever noticed first: the list of processes, or an inference
    assert "1 of 1 processes of gfm have died" in said or "is not healthy" in said
    running.until("reloaded")
    np.testing.assert_allclose(energies(running, batch), truth, rtol=1e-9)

    hangs.touch()
    reloaded = len(running.records("reloaded"))
    running.wait_for(lambda: any(r["in_a_row"] == 3 for r in running.records("no_answer")), "third silence")
    hangs.unlink()
    running.until("killed")
    running.until("reloaded", reloaded + 1)
    np.testing.assert_allclose(energies(running, batch), truth, rtol=1e-9)
    assert len(running.records("ready")) == 1  # the server itself was not started again

    memory |= reaper.list_regions(reaper.list_processes(running.server()))
    dead = running.server()
    os.kill(dead, signal.SIGKILL)
    assert "SIGKILL" in running.until("restarting")["text"]
    running.until("ready", 2)
    assert running.server() != dead and not reaper.list_processes(dead)
    np.testing.assert_allclose(energies(running, batch), truth, rtol=1e-9)
    assert not [path for path in memory if Path(path).exists()]

    memory = reaper.list_regions(reaper.list_processes(running.server()))
    os.kill(running.server(), signal.SIGKILL)
    assert running.process.wait(120) == 1
    assert "the server failed 2 times in a row, --max-restarts is 1: it was killed by SIGKILL" in running.said()
    assert not [path for path in memory if Path(path).exists()]
    assert not list(running.temporary.iterdir())


def test_an_end_that_is_asked_for_lets_running_requests_finish(supervised, served_gfm, local, tmp_path):
    """With TLS, too: then the supervisor asks over plain HTTP of this machine, which is closed to everybody else."""
    authority = pytest.importorskip("trustme").CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    trust = Credentials(ca=tmp_path / "ca.pem")
    options = ("--precision", "fp64", *QUICK, *tls, "--answer-seconds", 30)
    running = supervised(served_gfm, *options, scheme="grpcs", credentials=trust)
    long, found = copper_oxides(6000), {}
    running.until("ready")
    assert "http://127.0.0.1" not in running.said().replace(f"http://127.0.0.1:{running.metrics}", "")
    words = Path(f"/proc/{running.server()}/cmdline").read_text().split("\0")
    [private] = [int(w.partition("=")[2]) for w in words if w.startswith("--http-port=")]
    for path in ("/v2/health/ready", "/v2/models/gfm", "/v2/repository/index", "/v2"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{private}{path}", timeout=20)
        assert refused.value.code in (403, 405), path

    def ask(protocol):
        try:
            with running.transport() as transport:
                found[protocol] = transport.infer("gfm", request_arrays(long), ["energy"], {"head": "metal"})["energy"]
        except EndpointError as error:
            found[protocol] = error

    asking = threading.Thread(target=ask, args=("grpc",))
    asking.start()
    running.until("working")
    with running.transport() as transport:
        running.process.send_signal(signal.SIGTERM)
        running.until("draining")
        error, deadline = None, time.monotonic() + 60
        while error is None and time.monotonic() < deadline:  # it takes the server a moment to hear of it
            try:
                transport.infer("gfm", request_arrays(long.slice(0, 1)), ["energy"], {"head": "metal"})
            except EndpointError as refusal:
                error = refusal
    assert isinstance(error, Unavailable)
    asking.join()
    np.testing.assert_allclose(found["grpc"], local(long, {"energy"}, head="metal").energy, rtol=1e-9)
    assert running.process.wait(120) == 0
    assert not reaper.list_processes(running.server())
    assert running.records("stopped")[0]["exit_code"] == 0


def test_a_second_signal_ends_at_once_and_a_server_that_cannot_start_says_why(supervised, tmp_path):
    program = tmp_path / "home" / "bin" / "tritonserver"
    program.parent.mkdir(parents=True)
    (tmp_path / "home/backends").mkdir()
    program.write_text("#!/bin/sh\necho 'error: creating server: no such thing'\nexit 3\n")
    program.chmod(0o755)
    models = tmp_path / "models/gfm"
    models.mkdir(parents=True)
    (models / "config.pbtxt").touch()
    running = supervised("--repository", models.parent, "--tritonserver", program)
    assert running.process.wait(120) == 1
    assert "the server does not start: it ended with exit code 3: error: creating server" in running.said()

    program.write_text("#!/bin/sh\ntrap '' TERM\necho here\nwhile true; do sleep 0.1; done\n")
    stubborn = supervised("--repository", models.parent, "--tritonserver", program)
    stubborn.until("output")
    stubborn.process.send_signal(signal.SIGTERM)
    stubborn.until("draining")
    stubborn.process.send_signal(signal.SIGINT)
    assert stubborn.process.wait(120) == 1
    assert "second signal" in stubborn.records("stopped")[0]["text"]
    assert not reaper.list_processes(stubborn.server())

    stuck = supervised("--repository", models.parent, "--tritonserver", program, "--start-seconds", 1)
    assert stuck.process.wait(120) == 1
    assert "did not all answer within 1 s; say more with --start-seconds" in stuck.said()


@dataclass(frozen=True)
class Silent:
    """A probe of a model that gives no answer, while another model (`busy`) says that it is at work."""

    model: str
    busy: str
    health: list[Health]

    @property
    def name(self):
        return self.model

    def ask(self, transport, seconds, *, whole=False):
        self.health[0].life(self.busy)
        raise DeadlineExceeded("no answer")


@pytest.mark.parametrize(("busy", "reloaded"), [("b", True), ("a", False)])
def test_a_sign_of_life_is_that_of_one_model(monkeypatch, busy, reloaded):
    """Work of another model is no excuse for silence."""
    found = []
    probe = Silent("a", busy, found)
    health = Health(lambda seconds: None, [probe], Log(io.StringIO()), os.getpid(), every=1, seconds=1)
    found.append(health)
    anew = []
    monkeypatch.setattr(health, "_reload", lambda probe, why: anew.append(probe.model))
    for _ in range(PATIENCE):
        assert not health._check(probe)
    assert anew == (["a"] if reloaded else [])


def test_each_copy_and_version_is_watched_and_an_end_after_a_death_is_an_end(supervised, served_gfm, local, tmp_path):
    (tmp_path / "models").mkdir()
    for name, version, copies in (("gfm", 1, 1), ("gfm", 2, 1), ("pair", 1, 2)):
        served = RepositoryModel(name, served_gfm, Settings(precision="fp64", threads=1))
        write_model(tmp_path / "models", served, version=version, instances=copies)
    running = supervised("--repository", tmp_path / "models", *QUICK, "--drain-seconds", 600)
    running.until("ready")
    assert {r["model"] for r in running.records("checked")} == {"gfm version 1", "gfm version 2", "pair"}
    batch = copper_oxides(3)
    truth = local(batch, {"energy"}, head="metal").energy
    # the checks find a dead process by counting; but a client that was first makes the server wait for ever in the end
    of = find_stubs(running.server())
    older = [p for p in of if "/gfm/1/" in Path(f"/proc/{p}/cmdline").read_text()]
    pair = [p for p in of if of[p] == "pair"]
    assert len(older) == 1 and len(pair) == 2
    os.kill(older[0], signal.SIGKILL)
    os.kill(pair[0], signal.SIGKILL)
    with contextlib.suppress(EndpointError), running.transport() as transport:
        transport.infer("gfm", request_arrays(batch), ["energy"], {"head": "metal"}, version="1", seconds=2)
    running.until("reloaded", 2)
    assert {r["text"] for r in running.records("failed")} >= {
        "1 of 2 processes of gfm have died",
        "1 of 2 processes of pair have died",
    }
    for model, version in (("gfm", "1"), ("gfm", "2"), ("pair", "")):
        np.testing.assert_allclose(energies(running, batch, model, version), truth, rtol=1e-9)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(300) == 0  # and not only when the time for draining has passed
    [stopped] = running.records("stopped")
    assert "its models had ended" in stopped.get("text", "") or stopped["exit_code"] == 0


def test_nothing_outlives_a_supervisor_that_was_killed(tmp_path):
    region = Path(reaper.SHM) / f"{reaper.REGION}test-{os.getpid()}"
    child = tmp_path / "server.py"
    child.write_text(
        textwrap.dedent(f"""
        import mmap, os, signal, sys, time
        with open({str(region)!r}, "w+b") as file:
            file.truncate(4096)
            kept = mmap.mmap(file.fileno(), 4096)
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("up", flush=True)
        time.sleep(600)
    """)
    )
    parent = tmp_path / "parent.py"
    parent.write_text(
        textwrap.dedent(f"""
        import os, sys, time
        from pathlib import Path
        from atomsieve.serve.server.process import TritonProcess
        process = TritonProcess([sys.executable, {str(child)!r}], dict(os.environ), lambda line: None,
                                [Path({str(tmp_path / "scratch")!r})])
        print(process.pid, flush=True)
        time.sleep(600)
    """)
    )
    (tmp_path / "scratch").mkdir()
    supervisor = subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True)
    try:
        assert supervisor.stdout is not None
        group = int(supervisor.stdout.readline())
        eventually(lambda: len(reaper.list_processes(group)) == 2 and region.exists())
    finally:
        supervisor.kill()
        supervisor.wait()
    eventually(lambda: not reaper.list_processes(group))
    eventually(lambda: not region.exists())
    eventually(lambda: not (tmp_path / "scratch").exists())


def eventually(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
