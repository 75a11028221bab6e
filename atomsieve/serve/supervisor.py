"""A server under watch: started, checked by true inference, put right, started again, ended gently."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from atomsieve.errors import EXIT_DONE, EXIT_ERROR, AtomSieveError
from atomsieve.serve.exposure import conceal
from atomsieve.serve.health import Health, probes
from atomsieve.serve.logs import Log
from atomsieve.serve.server import (
    Installation,
    ServerOptions,
    TritonProcess,
    assemble_backends,
    command,
    environment,
)
from atomsieve.serve.transport import Credentials, Transport, Url

LONGEST_BACKOFF = 60.0
STEADY = 60.0
"""A server that was well for so many seconds begins a new count of restarts."""
AFTER_DRAIN = 5.0
"""Seconds after the time for running requests in which the server may put its models away."""


class Supervisor:
    """Runs a server in the foreground until it is asked to end.

    Parameters
    ----------
    server, options : the program and how it is started; running requests get `options.exit_seconds` at the end.
    log : where events and all that the server writes go.
    check_seconds : between checks of health. answer_seconds : that a check waits.
    max_restarts : in a row. on_ready : called when all models have answered their test vectors, at every start.
    backoff : seconds before the first restart; doubled each time. scratch : folders to be removed if this process is
    killed.
    """

    def __init__(
        self,
        server: Installation,
        options: ServerOptions,
        log: Log,
        *,
        check_seconds: float = 10.0,
        answer_seconds: float = 30.0,
        max_restarts: int = 5,
        threads: int | None = None,
        on_ready: Callable[[], None] = lambda: None,
        backoff: float = 1.0,
        scratch: Sequence[Path] = (),
    ) -> None:
        self._server, self._options, self._log = server, options, log
        self._check, self._answer, self._most, self._backoff = check_seconds, answer_seconds, max_restarts, backoff
        self._threads, self._on_ready, self._scratch = threads, on_ready, tuple(scratch)
        self._probes = probes(options.repository, options.models)
        self._asked = 0
        self._wake = threading.Event()
        self._last: list[str] = []
        self._health: Health | None = None

    def run(self) -> int:
        """Start the server and watch it; return the exit code of the command.

        Raises
        ------
        AtomSieveError
            if it does not start, or dies again and again.
        """
        restarts = 0
        with self._signals(), TemporaryDirectory(prefix="atomsieve-backends-") as scratch:
            line = command(self._server, self._options, assemble_backends(self._server, Path(scratch)))
            env = environment(self._server, self._threads)
            while True:
                self._health, self._last = None, []
                process = TritonProcess(line, env, self._line, (*self._scratch, Path(scratch)))
                began = time.monotonic()
                try:
                    reason = self._watch(process)
                    if reason is None:
                        return self._drain(process)
                finally:
                    if self._health is not None:
                        self._health.end()
                    process.kill()
                ready = self._health is not None and self._health.ready.is_set()
                if not ready and restarts == 0:
                    raise AtomSieveError(f"the server does not start: {reason}")
                restarts = 0 if ready and time.monotonic() - began > STEADY else restarts
                if restarts >= self._most:
                    raise AtomSieveError(
                        f"the server failed {restarts + 1} times in a row, --max-restarts is {self._most}: {reason}"
                    )
                pause = min(self._backoff * 2**restarts, LONGEST_BACKOFF)
                restarts += 1
                self._log.event("restarting", "error", text=reason, restart=restarts, most=self._most, pause=pause)
                if self._wait(pause):
                    return EXIT_DONE

    # -- one server --------------------------------------------------------------------------------------------------

    def _watch(self, process: TritonProcess) -> str | None:
        """Watch a server until it fails, and say why; None if it shall end."""
        self._log.event("starting", pid=process.pid, models=",".join(self._options.models))
        concealed, said, reloads = False, False, -1
        while not self._wait(0.1):
            if (code := process.exit_code) is not None:
                process.kill()  # which also waits for its last words
                return self._obituary(code)
            if not concealed and self._last:  # it has read its command line
                concealed = True
                if not conceal(process.pid, [self._options.admin, self._options.token or ""]):
                    self._log.event("secret_visible", "warning", text="other users of this machine can read the "
                                    "server's secrets in the list of processes")  # fmt: skip
            if self._health is None:
                if _listens(self._url()):
                    self._health = self._begin(process)
            elif self._health.verdict is not None:
                return self._health.verdict
            elif self._health.ready.is_set() and not said:
                said = True
                self._log.event("ready", models=",".join(self._options.models))
                self._on_ready()
            elif self._health.reloads != reloads:  # a model that was loaded anew has new memory
                reloads = self._health.reloads
                process.note_memory()
        return None

    def _begin(self, process: TritonProcess) -> Health:
        o, url = self._options, self._url()

        def connect(seconds: float) -> Transport:
            return Transport(url, Credentials(token=o.token, admin=o.admin), seconds=seconds)

        health = Health(connect, self._probes, self._log, process.pid, every=self._check, seconds=self._answer)
        health.start()
        return health

    def _drain(self, process: TritonProcess) -> int:
        """Let running requests finish, then end; a second signal ends at once."""
        if self._health is not None:
            self._health.end()
        began, limit = time.monotonic(), self._options.exit_seconds + AFTER_DRAIN
        self._log.event("draining", seconds=self._options.exit_seconds, text="running requests finish")
        process.note_memory()
        process.terminate()
        while process.exit_code is None and self._asked < 2 and time.monotonic() - began < limit:
            self._wake.clear()
            self._wake.wait(0.05)
        code, seconds = process.exit_code, round(time.monotonic() - began, 2)
        if self._asked > 1:
            self._log.event("stopped", "warning", seconds=seconds, text="at once, as a second signal asked")
            return EXIT_ERROR
        if code is None:
            self._log.event("stopped", "error", seconds=seconds, text="killed: it did not end in time")
            return EXIT_ERROR
        self._log.event("stopped", seconds=seconds, exit_code=code)
        return EXIT_DONE

    def _obituary(self, code: int) -> str:
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}"
        said = [line for line in self._last if " E " in line[:40] or "error" in line.lower()]
        return f"it ended with exit code {code}" + (f": {said[-1][:400]}" if said else "")

    def _line(self, line: str) -> None:
        self._last = [*self._last[-50:], line]
        if self._health is not None and line.startswith("{"):
            self._health.life()
        self._log.server_line(line)

    def _url(self) -> Url:
        """Return where the supervisor asks: over HTTP on this machine where gRPC asks for certificates."""
        o = self._options
        if o.tls_cert is not None:
            return Url("http", "127.0.0.1", o.http)
        return Url("grpc", {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(o.address, o.address), o.grpc)  # noqa: S104

    # -- signals -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """While this lasts, SIGTERM and SIGINT ask for an end."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked += 1
            self._wake.set()

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self, seconds: float) -> bool:
        """Wait; return whether the end was asked for."""
        return self._wake.wait(seconds) or self._asked > 0


def _listens(url: Url) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((url.host.strip("[]"), url.port), timeout=1):
        return True
    return False
