"""Supervisor of a server: start, health checks by inference, restarts, and a graceful end."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from atomsieve.errors import EXIT_DONE, EXIT_ERROR, AtomSieveError
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.transport import Transport
from atomsieve.remote.url import Url
from atomsieve.serve.installation import Installation, assemble_backends
from atomsieve.serve.logs import Log, parse_model_name
from atomsieve.serve.server import reaper
from atomsieve.serve.server.access import conceal_secrets, is_answered_by
from atomsieve.serve.server.health import Health, find_stubs, load_probes
from atomsieve.serve.server.process import ServerOptions, TritonProcess, server_command, server_environment

LONGEST_BACKOFF = 60.0
STEADY = 60.0
"""After so many seconds without a fault, the count of restarts begins again."""
AFTER_DRAIN = 5.0
"""Seconds after the time for running requests in which the server may unload its models."""
GRACE = 3.0
"""Seconds for the last answers to leave, when a draining server has ended its models."""
WAITED = re.compile(r"Timeout \d+: (Found [1-9].*?)\"?$")
"""Message of a draining server about the requests that it waits for."""
STEP = 0.05
"""Seconds between looks at whether a signal came."""
STARTING = 600.0
"""Seconds that a server may take until all its models answer."""


class ServerSupervisor:
    """Runs a server in the foreground until it is asked to end.

    Parameters
    ----------
    server, options : the program and how it is started; running requests get `options.exit_seconds` at the end. The
        admin's secret is a new one at every start.
    log : gets events and all output of the server.
    check_seconds : between checks of health. answer_seconds : that a check waits. start_seconds : until all models
        answer.
    max_restarts : in a row. on_ready : called when all models have answered their test vectors, at every start.
    backoff : seconds before the first restart; doubled each time. scratch : folders to be removed if this process is
    killed. threads : of each model. environ : of the server, None for that of this process.
    """

    def __init__(
        self,
        server: Installation,
        options: ServerOptions,
        log: Log,
        *,
        check_seconds: float = 10.0,
        answer_seconds: float = 30.0,
        start_seconds: float = STARTING,
        max_restarts: int = 5,
        threads: int | None = None,
        environ: Mapping[str, str] | None = None,
        on_ready: Callable[[], None] = lambda: None,
        backoff: float = 1.0,
        scratch: Sequence[Path] = (),
    ) -> None:
        self._server, self._options, self._log = server, options, log
        self._check, self._answer, self._most, self._backoff = check_seconds, answer_seconds, max_restarts, backoff
        self._start = start_seconds
        self._environ = environ
        self._threads, self._on_ready, self._scratch = threads, on_ready, tuple(scratch)
        self._probes = load_probes(options.repository, options.models)
        self._asked = 0
        self._last: list[str] = []
        self._health: Health | None = None

    def run(self) -> int:
        """Start and supervise the server; return the exit code of the command.

        Raises
        ------
        AtomSieveError
            if it does not start, or dies again and again.
        """
        restarts = 0
        with self._signals(), TemporaryDirectory(prefix="atomsieve-backends-") as scratch:
            backends = assemble_backends(self._server, Path(scratch))
            env = server_environment(self._server, self._threads, self._environ)
            while True:
                self._health, self._last = None, []
                self._options = replace(self._options, admin=secrets.token_hex(24))
                self._log.hide(self._options.admin)
                line = server_command(self._server, self._options, backends)
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
        """Watch a server until it fails, and return why; None if the end was asked for."""
        self._log.event("starting", pid=process.pid, models=",".join(self._options.models))
        began, concealed, announced, reloads = time.monotonic(), False, False, -1
        while not self._wait(0.1):
            if (code := process.exit_code) is not None:
                process.kill()  # which also reads its last lines
                return self._obituary(code)
            if not concealed and self._last:  # it has read its command line
                concealed = True
                if not conceal_secrets(process.pid, [self._options.admin, self._options.token or ""]):
                    self._log.event(
                        "secret_visible",
                        "warning",
                        text="other users of this machine can read the server's secrets in the list of processes",
                    )
            if not announced and time.monotonic() - began > self._start:
                return f"its models did not all answer within {self._start:g} s; say more with --start-seconds"
            if self._health is None:
                if self._reaches(process):
                    self._health = self._begin(process)
            elif self._health.verdict is not None:
                return self._health.verdict
            elif self._health.ready.is_set() and not announced:
                announced = True
                self._log.event("ready", models=",".join(self._options.models))
                if not self._probes:
                    self._log.event(
                        "unchecked",
                        "warning",
                        text="no model of this repository has a test vector, as "
                        "those of `atomsieve serve repository` do: none is checked",
                    )
                self._on_ready()
            elif self._health.reloads != reloads:  # a reloaded model has new memory
                reloads = self._health.reloads
                process.note_memory()
        return None

    def _begin(self, process: TritonProcess) -> Health:
        o, url = self._options, self._url()

        def connect(seconds: float) -> Transport:
            return Transport(url, Credentials(token=o.token, admin=o.admin), seconds=seconds)

        health = Health(
            connect,
            self._probes,
            self._log,
            process.pid,
            every=self._check,
            seconds=self._answer,
            loading=self._start,
            reaches=lambda: self._reaches(process),
        )
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
        # where nothing computes any more, it may wait in vain for a model that was reloaded after its process had died
        in_vain = self._health is not None and self._health.reloads > 0 and not self._has_models_inside()
        idle: float | None = None
        while process.exit_code is None and self._asked < 2 and (now := time.monotonic()) - began < limit:
            idle = (now if idle is None else idle) if in_vain and not find_stubs(process.pid) else None
            if idle is not None and now - idle > GRACE:
                break
            time.sleep(STEP)
        code, seconds = process.exit_code, round(time.monotonic() - began, 2)
        if code is None and self._asked < 2 and idle is not None:
            self._log.event("stopped", seconds=seconds, text="killed: its models had ended, and it still waited")
            return EXIT_DONE
        if self._asked > 1:
            self._log.event("stopped", "warning", seconds=seconds, text="at once, as a second signal asked")
            return EXIT_ERROR
        if code is None:
            self._log.event("stopped", "error", seconds=seconds, text="killed: it did not end in time")
            return EXIT_ERROR
        if code:
            waited = [found[1] for line in self._last if (found := WAITED.search(line))][-1:]
            text = "; ".join(["requests may have been cut off", *waited])
            self._log.event("stopped", "error", seconds=seconds, exit_code=code, text=text)
            return EXIT_ERROR
        self._log.event("stopped", seconds=seconds, exit_code=code)
        return EXIT_DONE

    def _has_models_inside(self) -> bool:
        """Return whether some models run inside the server, not as separate processes."""
        o = self._options
        own = re.compile(r'^\s*(backend\s*:\s*"(?!python")|platform\s*:\s*"(?!ensemble"))', re.MULTILINE)
        return any(own.search((o.repository / name / "config.pbtxt").read_text()) for name in o.models)

    def _obituary(self, code: int) -> str:
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}"
        errors = [line for line in self._last if " E " in line[:40] or "error" in line.lower()]
        return f"it ended with exit code {code}" + (f": {errors[-1][:400]}" if errors else "")

    def _line(self, line: str) -> None:
        self._last = [*self._last[-50:], line]
        if self._health is not None and (model := parse_model_name(line)) is not None:
            self._health.life(model)
        self._log.server_line(line)

    def _url(self) -> Url:
        """Return the address for checks: HTTP on this machine where gRPC requires certificates."""
        o = self._options
        if o.tls_cert is not None:
            return Url("http", "127.0.0.1", o.http)
        return Url("grpc", {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(o.address, o.address), o.grpc)  # noqa: S104

    def _reaches(self, process: TritonProcess) -> bool:
        """Return whether the server itself listens where the supervisor connects."""
        url = self._url()
        return is_answered_by(url.host, url.port, reaper.list_processes(process.pid))

    # -- signals -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Within this context, SIGTERM and SIGINT ask for an end."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked += 1  # nothing else: a lock held by the interrupted code would deadlock

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self, seconds: float) -> bool:
        """Wait; return whether the end was asked for."""
        deadline = time.monotonic() + seconds
        while self._asked == 0 and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, STEP))
        return self._asked > 0
