"""`atomsieve serve start` as users run it, in a process of its own, and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atomsieve.remote.credentials import Credentials
from atomsieve.remote.transport import Transport
from atomsieve.remote.url import parse_url
from atomsieve.serve.server import reaper
from atomsieve.serve.server.process import find_free_ports
from tests.serve.triton import installation


class Supervised:
    """A running command; `options` are added to its line."""

    def __init__(
        self, folder: Path, *options: str, scheme: str = "grpc", credentials: Credentials | None = None
    ) -> None:
        installation()
        self.grpc, self.http, self.metrics = find_free_ports(3)
        self.url, self.credentials = f"{scheme}://127.0.0.1:{self.grpc}", credentials or Credentials()
        folder.mkdir(exist_ok=True)
        self.log_file, self.output = folder / "log.json", folder / "out.txt"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        ports = ["--grpc-port", self.grpc, "--metrics-port", self.metrics]
        if "--http-port" not in options and scheme == "grpc":
            ports += ["--http-port", self.http]
        line = [sys.executable, "-m", "atomsieve", "serve", "start", *options, *ports, "--log-file", self.log_file]
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                list(map(str, line)),
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)},
            )

    def records(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the records of the log, those of one event if it is named."""
        text = self.log_file.read_text() if self.log_file.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # the last line may be on its way
        found = [json.loads(line) for line in whole.splitlines()]  # every line must be JSON
        return [r for r in found if event in (None, r["event"])]

    def until(self, event: str, count: int = 1, seconds: float = 300.0) -> dict[str, Any]:
        """Wait until an event happened so often; return its record."""
        self.wait_for(lambda: len(self.records(event)) >= count, f"{count} x {event}", seconds)
        return self.records(event)[count - 1]

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            ended = self.process.poll() is not None and not condition()
            assert not ended and time.monotonic() < deadline, f"no {what}; it said:\n{self.said()}"
            time.sleep(0.05)

    def said(self) -> str:
        noise = ('"event": "batch"', '"event": "server"', '"event": "working"')
        lines = self.output.read_text().splitlines()
        return "\n".join(line for line in lines if not any(word in line for word in noise))[-6000:]

    def server(self) -> int:
        """Return the process of the server."""
        return int(self.records("starting")[-1]["pid"])

    def stubs(self) -> list[int]:
        return [pid for pid in reaper.list_processes(self.server()) if pid != self.server()]

    def transport(self) -> Transport:
        return Transport(parse_url(self.url), self.credentials)

    def close(self) -> None:
        """End it and all that it started."""
        if self.process.poll() is not None:
            return
        servers = [int(record["pid"]) for record in self.records("starting")][-1:]
        self.process.kill()  # the reaper ends the rest
        self.process.wait()
        deadline = time.monotonic() + 60
        while any(map(reaper.list_processes, servers)) and time.monotonic() < deadline:
            time.sleep(0.05)
