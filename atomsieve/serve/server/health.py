"""Health check by inference: a structure of the test vector is sent to each model, and the answer compared.

A server reports a model as ready although its process has died, so readiness is not used. A faulty model is reloaded;
if that does not help, the verdict is that the server must be restarted.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError
from atomsieve.remote.test_vector import compare_test_vector, read_test_vector, round_error
from atomsieve.remote.transport import DeadlineExceeded, Transport, Unavailable
from atomsieve.serve.logs import Log
from atomsieve.serve.model.settings import GFM, SETTINGS_FILE, Settings
from atomsieve.serve.server import reaper

PATIENCE = 3
"""Probes in a row without an answer in time (or refused as unavailable) after which a model is reloaded."""
LOADING = 300.0
"""Seconds that a model may take to load."""
STUB = "triton_python_backend_stub"
ALL_VERSIONS = re.compile(r"^version_policy\s*:?\s*\{\s*all\b", re.MULTILINE)
"""In a model's configuration: every version is served, not the newest alone."""


@dataclass(frozen=True)
class Probe:
    """Request to a model, and the answer that it must give.

    model : its name. precision : of its computation. vector : the test vector; small : one structure of one head.
    version : of the request, "" for the newest.
    """

    model: str
    precision: str
    vector: Mapping[str, Any]
    small: Mapping[str, Any]
    version: str = ""

    @property
    def name(self) -> str:
        """Model and version for people."""
        return f"{self.model} version {self.version}" if self.version else self.model

    def ask(self, transport: Transport, seconds: float, *, whole: bool = False) -> float:
        """Send the request and compare; return the largest error relative to the allowed one.

        Raises
        ------
        AtomSieveError
            if there is no answer, or a wrong one.
        """

        def answer(arrays: dict[str, Any], head: str, names: list[str]) -> Mapping[str, Any]:
            parameters = {"head": head}
            return transport.infer(self.model, arrays, names, parameters, seconds=seconds, version=self.version)

        return compare_test_vector(self.vector if whole else self.small, answer, self.precision, ("status", "energy"))


def load_probes(repository: Path, models: Sequence[str]) -> list[Probe]:
    """Return the probes of the models of a repository that answer requests for an ensemble, of each version one."""
    found = []
    for model in models:
        versions = [p for p in (repository / model).iterdir() if p.name.isdigit() and (p / SETTINGS_FILE).is_file()]
        versions.sort(key=lambda p: int(p.name))
        if not ALL_VERSIONS.search((repository / model / "config.pbtxt").read_text()):
            versions = versions[-1:]
        for folder in versions:
            vector = read_test_vector(folder / GFM)
            version = folder.name if len(versions) > 1 else ""
            precision = Settings.read(folder).precision
            found.append(Probe(model, precision, vector, first_structure(vector), version=version))
    return found


def find_stubs(server: int) -> dict[int, str]:
    """Return the processes of models that a server has, with the names of their models."""
    found = {}
    for pid in reaper.list_processes(server):
        with contextlib.suppress(OSError, IndexError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[0].endswith(STUB):
                found[pid] = Path(words[1]).parent.parent.name
    return found


def first_structure(vector: Mapping[str, Any]) -> dict[str, Any]:
    """Return a test vector of the first structure of its first head."""
    head, stored = next(iter(vector["heads"].items()))
    atoms = stored["ptr"][1]
    small = {
        "ptr": stored["ptr"][:2],
        **{name: stored[name][:atoms] for name in ("numbers", "positions", "forces")},
        **{name: stored[name][:1] for name in ("cell", "pbc")},
        "energy_members": [member[:1] for member in stored["energy_members"]],
    }
    return {**vector, "heads": {head: small}}


class Health(threading.Thread):
    """Thread that checks the models of one running server at intervals.

    Parameters
    ----------
    connect : opens a connection with the admin's secret, on which an answer may take so many seconds.
    probes : requests to send. log : where events go.
    pid : of the server. every : seconds between checks. seconds : for an answer of a loaded model; loading : for the
        first answer, and for loading.
    reaches : returns whether the server itself listens on its port.

    Attributes
    ----------
    ready : is set when every model has answered its whole test vector.
    verdict : why the server must be restarted, None if it need not.
    passed : checks of all models without a fault. reloads : models that were reloaded.
    """

    def __init__(
        self,
        connect: Callable[[float], Transport],
        probes: Sequence[Probe],
        log: Log,
        pid: int,
        *,
        every: float,
        seconds: float,
        loading: float = LOADING,
        reaches: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(daemon=True, name="health")
        self._connect, self._probes, self._log, self._pid = connect, probes, log, pid
        self._transport = connect(seconds)
        self._every, self._seconds, self._loading, self._reaches = every, seconds, loading, reaches
        self._silent: dict[str, int] = {}
        self._life: dict[str, float] = {}
        self._stubs: Counter[str] = Counter()
        self._ended = threading.Event()
        self.ready = threading.Event()
        self.verdict: str | None = None
        self.passed = self.reloads = 0

    def life(self, model: str) -> None:
        """Note a sign of life of a model: one that works on a long request does not hang."""
        self._life[model] = time.monotonic()

    def end(self) -> None:
        """Stop checking."""
        self._ended.set()

    def run(self) -> None:
        """Check until `end` is called, or the server must be restarted."""
        try:
            if self._begin():
                while not self._ended.wait(self._every) and self.verdict is None:
                    # if the server is gone, another user's program may listen on its port; it must not see a secret
                    if self._reaches() and all([*self._count(), *map(self._check, self._probes)]):
                        self.passed += 1
        except Exception as error:  # a fault here must not end the checks silently
            self.verdict = f"the check failed ({type(error).__name__}: {error})"
        finally:
            self._transport.close()

    def _begin(self) -> bool:
        """Compare whole test vectors when all models are loaded; return whether that went well."""
        with self._connect(self._loading) as patient:
            for probe in self._probes:
                try:
                    error = probe.ask(patient, self._loading, whole=True)
                except AtomSieveError as fault:
                    if not self._ended.is_set():
                        self.verdict = f"{probe.name} does not answer as it must ({fault})"
                    return False
                self._log.event("checked", model=probe.name, error_of_allowed=round_error(error))
        self._stubs = Counter(find_stubs(self._pid).values())
        self.ready.set()
        return True

    def _count(self) -> Iterator[bool]:
        """Reload models of which a process has died; a request reaches only one of several copies."""
        there = Counter(find_stubs(self._pid).values())
        for probe in {p.model: p for p in self._probes}.values():
            model = probe.model
            if not self._ended.is_set() and there[model] < self._stubs[model] and self.verdict is None:
                why = f"{self._stubs[model] - there[model]} of {self._stubs[model]} processes of {model} have died"
                self._log.event("failed", "error", model=model, text=why)
                self._reload(probe, why)
                yield False

    def _check(self, probe: Probe) -> bool:
        """Probe a model, and reload it if it fails; return whether it passed."""
        asked, name = time.monotonic(), probe.name
        if self._ended.is_set() or self.verdict is not None:
            return False
        try:
            probe.ask(self._transport, self._seconds)
        except (DeadlineExceeded, Unavailable) as error:
            if self._ended.is_set():
                return False
            late = isinstance(error, DeadlineExceeded)
            alive = late and self._life.get(probe.model, 0.0) >= asked
            self._silent[name] = 0 if alive else self._silent.get(name, 0) + 1
            self._log.event("no_answer", "warning", model=name, text=str(error), in_a_row=self._silent[name])
            if self._silent[name] >= PATIENCE:
                self._reload(probe, str(error))
        except AtomSieveError as error:
            if not self._ended.is_set():
                self._log.event("failed", "error", model=name, text=str(error))
                self._reload(probe, str(error))
        else:
            self._silent[name] = 0
            return True
        return False

    def _reload(self, probe: Probe, why: str) -> None:
        """Reload a model and probe it; if that fails, the server must be restarted."""
        began = time.monotonic()
        self._silent[probe.name] = 0
        self._log.event("reloading", "warning", model=probe.model, text=why)
        self._kill_stubs(probe.model)
        try:
            with self._connect(self._loading) as transport:
                # a server does not load a model again whose files are unchanged
                transport.unload(probe.model, seconds=self._loading)
                transport.load(probe.model, seconds=self._loading)
                for one in self._probes:
                    if one.model == probe.model:  # each version
                        one.ask(transport, self._loading, whole=True)
        except AtomSieveError as error:
            if not self._ended.is_set():
                self.verdict = f"{probe.model} fails after it was loaded anew ({error})"
            return
        self._stubs[probe.model] = Counter(find_stubs(self._pid).values())[probe.model]
        self.reloads += 1
        self._log.event("reloaded", model=probe.model, seconds=round(time.monotonic() - began, 2))

    def _kill_stubs(self, model: str) -> None:
        """Kill the processes of a model: a reload would wait for one that hangs."""
        for pid, name in find_stubs(self._pid).items():
            if name == model:
                self._log.event("killed", "warning", model=model, pid=pid, text="before it is loaded anew")
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
