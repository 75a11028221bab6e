"""The environment that the images have, built into a plain folder once, and a server that runs from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from atomsieve.native import kernels
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.transport import Transport
from atomsieve.remote.url import parse_url
from atomsieve.serve.server.process import find_free_ports
from tests.helpers import tiny_gfm
from tests.serve.triton import installation

CONTAINERS = Path(__file__).resolve().parents[2] / "containers"
TOKEN = "a-token-of-the-tests-0123456789"


def run(line, **variables):
    """Run a program outside the repository, with its output in the message of a failure."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | variables
    done = subprocess.run([str(word) for word in line], cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """The folder that build_plain.sh makes of this checkout, with the packages of this environment."""
    if kernels() is None:
        pytest.skip("no compiled kernels here, so that a wheel would need minutes or cannot be built")
    prefix = tmp_path_factory.mktemp("plain") / "atomsieve"
    run(
        [CONTAINERS / "build_plain.sh", prefix],
        PYTHON=sys.executable,
        ATOMSIEVE_REUSE=sysconfig.get_path("purelib"),
        ATOMSIEVE_REUSE_KERNELS="1",
    )
    return prefix


@dataclass
class Deployed:
    """A server started as an image starts it."""

    prefix: Path
    token_file: Path
    grpc: int
    metrics: int
    process: subprocess.Popen[bytes]
    log: Path

    def environment(self) -> dict[str, str]:
        return variables(self.prefix, self.token_file) | {"ATOMSIEVE_URL": f"grpc://127.0.0.1:{self.grpc}"}

    def transport(self) -> Transport:
        return Transport(parse_url(f"grpc://127.0.0.1:{self.grpc}"), Credentials(token=TOKEN))

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.log.read_text().splitlines() if line.startswith("{")]


def variables(prefix: Path, token_file: Path) -> dict[str, str]:
    """Return what an image sets for its scripts."""
    return {
        "PATH": f"{prefix}/bin:{os.environ['PATH']}",
        "ATOMSIEVE_TOKEN_FILE": str(token_file),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def deployed(plain, tmp_path_factory):
    """A server of a small ensemble, started by the script that is the images' command, from the plain folder."""
    installation()
    folder = tmp_path_factory.mktemp("deployed")
    tiny_gfm(folder / "gfm")
    repository, token_file = folder / "models", folder / "token"
    run([plain / "bin/atomsieve", "serve", "repository", folder / "gfm", "--out", repository, "--threads", "1"])
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    grpc, http, metrics = find_free_ports(3)
    log = folder / "log"
    env = os.environ | variables(plain, token_file) | {"ATOMSIEVE_REPOSITORY": str(repository)}
    line = [CONTAINERS / "steps/serve.sh", "--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics]
    with log.open("wb") as file:
        process = subprocess.Popen([str(word) for word in line], cwd="/", env=env, stdout=file, stderr=file)
    found = Deployed(plain, token_file, grpc, metrics, process, log)
    try:
        deadline = time.monotonic() + 300
        while "ready" not in found.events():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(240)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert code == 0, "a server that is asked to end drains and says so"
