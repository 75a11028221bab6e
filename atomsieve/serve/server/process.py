"""A tritonserver on this machine: where it is, its command line, its environment, its process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atomsieve.remote.credentials import ADMIN_KEY, TOKEN_KEY
from atomsieve.serve.installation import Installation
from atomsieve.serve.server import reaper

OPEN_TO_TOKEN = ("inference", "metadata", "model-config", "statistics")
CLOSED = ("model-repository", "shared-memory", "trace", "logging")
"""Protocols for the supervisor alone: loading of models, shared memory, logs and traces."""
REAPER = Path(__file__).with_name("reaper.py")


@dataclass(frozen=True)
class ServerOptions:
    """Options with which a server is started.

    Attributes
    ----------
    repository : the model repository; models : those to load.
    address : where it listens; http_address : where HTTP does, None for the same.
    grpc, http, metrics : ports, 0 for none at all (metrics, http).
    http_private : HTTP is for the supervisor alone: every request over it needs the admin's secret.
    admin : secret that guards what only the supervisor may do. token : secret that every request must carry, or None.
    tls_cert, tls_key, tls_client_ca : PEM files for TLS on gRPC; with a client CA, clients must show a certificate.
    exit_seconds : how long running requests may take after SIGTERM.
    verbose : log level of the server, 0 to 2.
    gpu : watch GPUs too; looking for them takes seconds where there is none.
    """

    repository: Path
    models: tuple[str, ...]
    address: str = "127.0.0.1"
    http_address: str | None = None
    http_private: bool = False
    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002
    admin: str = field(default="", repr=False)
    token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    exit_seconds: int = 30
    verbose: int = 0
    gpu: bool = False


def server_command(server: Installation, options: ServerOptions, backends: Path) -> list[str]:
    """Return the command line of the server."""
    o = options
    line = [
        str(server.binary),
        f"--model-repository={o.repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",  # for which every Python model would be started twice
        *(f"--load-model={name}" for name in o.models),
        "--exit-on-error=true",
        f"--exit-timeout-secs={o.exit_seconds}",
        f"--grpc-address={o.address}",
        f"--grpc-port={o.grpc}",
        f"--log-verbose={o.verbose}",
        "--log-format=ISO8601",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
    ]
    http = o.http_address or o.address
    line += [f"--http-address={http}", f"--http-port={o.http}"] if o.http else ["--allow-http=false"]
    line += (
        [f"--metrics-address={o.address}", f"--metrics-port={o.metrics}"] if o.metrics else ["--allow-metrics=false"]
    )
    if o.metrics and not o.gpu:
        line.append("--allow-gpu-metrics=false")
    for secret, key, protocols in ((o.token, TOKEN_KEY, OPEN_TO_TOKEN), (o.admin, ADMIN_KEY, CLOSED)):
        if secret:
            line.append(f"--grpc-restricted-protocol={','.join(protocols)}:{key}={secret}")
            if o.http and not o.http_private:
                line.append(f"--http-restricted-api={','.join(protocols)}:{key}={secret}")
    if o.http and o.http_private:
        line.append(f"--http-restricted-api={','.join(('health', *OPEN_TO_TOKEN, *CLOSED))}:{ADMIN_KEY}={o.admin}")
    if o.tls_cert is not None:
        line += ["--grpc-use-ssl=true", f"--grpc-server-cert={o.tls_cert}", f"--grpc-server-key={o.tls_key}"]
        if o.tls_client_ca is not None:
            line += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={o.tls_client_ca}"]
    return line


def server_environment(
    server: Installation, threads: int | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of the server: its libraries, and this Python for its stubs.

    The allocator's settings are those of this process: the `atomsieve` command sets them at its start.
    """
    found = dict(os.environ if environ is None else environ)
    if threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    libraries = [
        *map(str, server.libraries),
        sysconfig.get_config_var("LIBDIR") or "",
        found.get("LD_LIBRARY_PATH", ""),
    ]
    found["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    # not resolved: the stub takes the virtual environment from the python3 that it finds first
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", "")])
    return found


def find_free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that are free at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


class TritonProcess:
    """A running tritonserver in its own process group; it ends if this process is killed.

    Parameters
    ----------
    line, env : from `command` and `environment`.
    sink : is called with each line that it writes.
    scratch : folders that are removed if this process is killed.

    Attributes
    ----------
    lost : lines at which the sink failed.
    """

    def __init__(
        self, line: Sequence[str], env: dict[str, str], sink: Callable[[str], None], scratch: Sequence[Path] = ()
    ) -> None:
        self._process = subprocess.Popen(
            list(line),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._regions: set[str] = set()
        self._gone = False
        self.lost = 0
        self._reader = threading.Thread(target=self._pump, args=(sink,), daemon=True)
        try:
            self._reader.start()
            self._reaper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(REAPER), str(self.pid), *map(str, scratch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:  # a server without a supervisor must not stay
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            raise

    def note_memory(self) -> None:
        """Note the shared memory of its models, to remove leftovers in the end; close it to other users."""
        self._regions |= reaper.list_regions(reaper.list_processes(self.pid))
        for region in self._regions:  # tensors lie there, and the server lets everybody read them
            with contextlib.suppress(OSError):
                os.chmod(region, 0o600)

    def _pump(self, sink: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                if "successfully loaded" in line:  # while it is there: who dies at once cannot be asked any more
                    self.note_memory()
                sink(line.rstrip("\n"))
            except Exception:  # reading goes on: a full pipe would block every model at its next line
                self.lost += 1

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to finish running requests and to end."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, None if it still runs after so long."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it and its stubs at once."""
        if self._gone:
            return
        self.note_memory()
        if self.exit_code is None or reaper.list_processes(self.pid):  # else the number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + 5
        while reaper.list_processes(self.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        reaper.remove_regions(self._regions)
        if self._reaper.stdin is not None and not self._reaper.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._reaper.communicate(b"done")
        self._reader.join(5)
        self._gone = True

    def stop(self, seconds: float) -> int:
        """Terminate, wait, and kill remaining processes; return the exit code."""
        self.terminate()
        deadline = time.monotonic() + seconds
        while self.exit_code is None and time.monotonic() < deadline:
            time.sleep(0.05)
        code = self.exit_code
        self.kill()
        return -signal.SIGKILL if code is None else code
