"""A real tritonserver for tests, on free ports of this machine."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.transport import EndpointError, Transport
from atomsieve.remote.url import parse_url
from atomsieve.serve.installation import assemble_backends, find_server
from atomsieve.serve.server.process import (
    ServerOptions,
    TritonProcess,
    find_free_ports,
    server_command,
    server_environment,
)


def installation():
    """Return the tritonserver of this machine, or skip the test; fail it where the Makefile has installed one."""
    try:
        return find_server()
    except AtomSieveError as error:
        if os.environ.get("ATOMSIEVE_NEEDS_TRITON"):
            pytest.fail(str(error))
        pytest.skip(str(error))


class RunningServer:
    """A started server; `lines` is what it has written so far."""

    def __init__(self, repository: Path, models: tuple[str, ...] = ("gfm",), **options: Any) -> None:
        server = installation()
        grpc, http, metrics = find_free_ports(3)
        plain = ServerOptions(
            repository, models, grpc=grpc, http=http, metrics=metrics, admin=secrets.token_hex(16), exit_seconds=10
        )
        self.options = replace(plain, **options)
        self.lines: list[str] = []
        self._scratch = TemporaryDirectory()
        self._line = server_command(server, self.options, assemble_backends(server, Path(self._scratch.name)))
        self._env = server_environment(server, threads=1)
        self.start()

    def start(self) -> None:
        """Start it, or start it again on the same ports; return when all models answer."""
        self.process = TritonProcess(self._line, self._env, self.lines.append)
        deadline = time.monotonic() + 300  # a shared machine may be slow
        with self.transport(admin=True) as transport:
            while True:
                assert self.process.exit_code is None, self.log()
                try:
                    for model in self.options.models:
                        assert transport.is_ready(model)
                    self.process.note_memory()
                    return
                except (EndpointError, AssertionError):
                    assert time.monotonic() < deadline, self.log()
                    time.sleep(0.1)

    @property
    def grpc(self) -> str:
        return f"grpc{'s' if self.options.tls_cert else ''}://127.0.0.1:{self.options.grpc}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.options.http}"

    def transport(self, *, http: bool = False, admin: bool = False) -> Transport:
        secret = self.options.admin if admin else None
        credentials = Credentials(token=self.options.token, admin=secret, ca=self.options.tls_cert)
        return Transport(parse_url(self.http if http else self.grpc), credentials)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of the served models with this event."""
        found = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [line for line in found if line["event"] == name]

    def log(self) -> str:
        return "\n".join(self.lines[-40:])

    def stop(self) -> int:
        code = self.process.stop(15)
        return code

    def close(self) -> None:
        self.process.kill()
        self._scratch.cleanup()


def until_at_work(server: RunningServer, long: threading.Thread) -> None:
    """Start a thread that sends a long request; return when the model is at work on it: what comes now must wait."""

    def signs() -> int:
        return sum('"event": "working"' in line for line in list(server.lines))

    before = signs()
    long.start()
    while signs() == before:
        assert long.is_alive(), "the long request was answered before it was seen at work"
        time.sleep(0.02)
