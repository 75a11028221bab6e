"""Health by true inference: a structure of the test vector is sent to each model, and the answer compared.

A server calls a model ready whose process has died, so readiness is never asked. What is found wrong is put right here
if loading the model anew does it; if not, the verdict is that the server must be started again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError
from atomsieve.serve import keeper
from atomsieve.serve.logs import Log
from atomsieve.serve.settings import FILE, GFM, Settings, beside
from atomsieve.serve.transport import DeadlineExceeded, Transport, Unavailable
from atomsieve.serve.vector import compare, stored_vector

PATIENCE = 3
"""Probes in a row without an answer in time (or refused as unavailable) after which a model is loaded anew."""
LOADING = 300.0
"""Seconds that a model may take to load."""
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Probe:
    """What a model is asked, and what it must answer.

    model : its name. precision : that it computes in. vector : the test vector; small : one structure of one head.
    parts : models that it consists of, and that are loaded anew with it.
    """

    model: str
    precision: str
    vector: Mapping[str, Any]
    small: Mapping[str, Any]
    parts: tuple[str, ...] = ()

    def ask(self, transport: Transport, seconds: float, *, whole: bool = False) -> float:
        """Ask and compare; return the largest error relative to what is allowed.

        Raises
        ------
        AtomSieveError
            if there is no answer, or a wrong one.
        """

        def answer(arrays: dict[str, Any], head: str, names: list[str]) -> Mapping[str, Any]:
            return transport.infer(self.model, arrays, names, {"head": head}, seconds=seconds, priority=1)

        return compare(self.vector if whole else self.small, answer, self.precision, ("status", "energy"))


def probes(repository: Path, models: Sequence[str]) -> list[Probe]:
    """Return the probes of the models of a repository that answer requests for an ensemble."""
    found = []
    for model in models:
        versions = [p for p in (repository / model).iterdir() if p.name.isdigit() and (p / FILE).is_file()]
        if versions:
            newest = max(versions, key=lambda p: int(p.name))
            vector = stored_vector(newest / GFM)
            found.append(Probe(model, Settings.read(newest).precision, vector, first_structure(vector)))
            *parts, pipeline = beside(model)
            if pipeline in models:
                found.append(replace(found[-1], model=pipeline, parts=tuple(parts)))
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
    """Asks the models of one running server again and again.

    Parameters
    ----------
    connect : opens a connection with the admin's secret, on which an answer may take so many seconds.
    probes : what is asked. log : where events go.
    pid : of the server. every : seconds between checks. seconds : for an answer.

    Attributes
    ----------
    ready : is set when every model has answered its whole test vector.
    verdict : why the server must be started again, None if it need not.
    passed : checks of all models without a fault. reloads : models that were loaded anew.
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
    ) -> None:
        super().__init__(daemon=True, name="health")
        self._connect, self._probes, self._log, self._pid = connect, probes, log, pid
        self._transport = connect(seconds)
        self._every, self._seconds = every, seconds
        self._silent: dict[str, int] = {}
        self._life = time.monotonic()
        self._ended = threading.Event()
        self.ready = threading.Event()
        self.verdict: str | None = None
        self.passed = self.reloads = 0

    def life(self) -> None:
        """Note that a model has shown a sign of life: one at work on a long request is not hung."""
        self._life = time.monotonic()

    def end(self) -> None:
        """Check no more."""
        self._ended.set()

    def run(self) -> None:
        """Check until the end, or until the server must be started again."""
        try:
            if self._begin():
                while not self._ended.wait(self._every) and self.verdict is None:
                    if sum(map(self._check, self._probes)) == len(self._probes):
                        self.passed += 1
        except Exception as error:  # a fault here must not end the watch silently
            self.verdict = f"the check failed ({type(error).__name__}: {error})"
        finally:
            self._transport.close()

    def _begin(self) -> bool:
        """Compare whole test vectors when all models are loaded; return whether that went well."""
        for probe in self._probes:
            try:
                error = probe.ask(self._transport, self._seconds, whole=True)
            except AtomSieveError as fault:
                if not self._ended.is_set():
                    self.verdict = f"{probe.model} does not answer as it must ({fault})"
                return False
            self._log.event("checked", model=probe.model, error_of_allowed=round(error, 6))
        self.ready.set()
        return True

    def _check(self, probe: Probe) -> bool:
        """Ask a model; put it right if it fails. Return whether all was well."""
        asked, name = time.monotonic(), probe.model
        try:
            probe.ask(self._transport, self._seconds)
        except (DeadlineExceeded, Unavailable) as error:
            if self._ended.is_set():
                return False
            late = isinstance(error, DeadlineExceeded)
            alive = late and self._life >= asked
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
        """Load a model anew and ask it; if that fails, the server must be started again."""
        began = time.monotonic()
        self._silent[probe.model] = 0
        self._log.event("reloading", "warning", model=probe.model, text=why)
        every = (probe.model, *probe.parts)
        for model in every:
            self._kill_stubs(model)
        try:
            with self._connect(LOADING) as transport:
                # a server does not load what it has and whose files are as they were
                for model in every:
                    transport.unload(model, seconds=LOADING)
                for model in reversed(every):
                    transport.load(model, seconds=LOADING)
            probe.ask(self._transport, self._seconds, whole=True)
        except AtomSieveError as error:
            if not self._ended.is_set():
                self.verdict = f"{probe.model} fails after it was loaded anew ({error})"
            return
        self.reloads += 1
        self._log.event("reloaded", model=probe.model, seconds=round(time.monotonic() - began, 2))

    def _kill_stubs(self, model: str) -> None:
        """End what is left of the processes of a model: loading it anew would wait for one that hangs."""
        for pid in keeper.members(self._pid):
            with contextlib.suppress(OSError, IndexError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if words[0].endswith(STUB) and Path(words[1]).parent.parent.name == model:
                    self._log.event("killed", "warning", model=model, pid=pid, text="before it is loaded anew")
                    os.kill(pid, signal.SIGKILL)
