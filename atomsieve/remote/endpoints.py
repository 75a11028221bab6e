"""Rules for several endpoints: which one gets a request, when to retry, when one is taken out and readmitted.

Nothing here waits, sends or uses threads; the blocking client and the asyncio client share these rules.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atomsieve.errors import UsageError
from atomsieve.remote.transport import Broken, DeadlineExceeded, Denied, EndpointError, Unavailable
from atomsieve.remote.url import Url
from atomsieve.remote.wire import WIRE

log = logging.getLogger(__name__)

TEMPORARY = (Unavailable, Broken, DeadlineExceeded)
"""Failures after which the same request may succeed, later or elsewhere."""
ALIKE = (
    "ensemble_id",
    "precision",
    "backend",
    "artefact",
    "device",
    "default_head",
    "threads",
    "budget",
    "limits",
    "atomsieve",
)
"""Fields of a description in which all endpoints must agree, because they decide the last bits of an answer."""
SUSPECT, MOST_BROKEN = 2, 6
"""How often a server that was sound before fails in a request until it is sent alone, and until it is given up."""
MOST_EASED = 3
"""How often the deadline of a busy endpoint is doubled."""
STEADY = 16
"""Answers in a row after which an endpoint that was busy gets one more request at once."""


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a client is; times in seconds.

    Attributes
    ----------
    deadline : for one answer; an endpoint that turns out to be sound, but busy, gets up to eight times as much.
    patience : for all attempts of a request, from its first failure, or the latest answer to any request, on.
    probe : for the description of an endpoint; it doubles, up to the deadline.
    shortest, longest : pauses before an endpoint that failed is asked again; they double, and vary by half.
    in_flight : requests on their way to one endpoint at once.
    """

    deadline: float = 60.0
    patience: float = 300.0
    probe: float = 10.0
    shortest: float = 0.1
    longest: float = 5.0
    in_flight: int = 4

    def __post_init__(self) -> None:
        for name in ("deadline", "probe", "shortest", "longest"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
        if not self.patience >= 0:
            raise UsageError(f"patience must be 0 seconds or more, got {self.patience}")
        if self.in_flight < 1:
            raise UsageError(f"in-flight must be at least 1, got {self.in_flight}")


@dataclass(eq=False)
class Endpoint:
    """State of one endpoint, as a client sees it.

    url : its address. room : requests that may be in flight at once. in_flight : requests in flight. up : it may get
    requests. outages : how often it was taken out. failures : in a row. error : the latest. refused : why it is out
    for good. late : it was taken out because an answer missed its deadline. eased : how often its deadline was doubled.
    steady : answers in a row. suspect : the request that it is reserved for, if any.
    """

    url: Url
    room: int = 1
    in_flight: int = 0
    up: bool = False
    outages: int = 0
    failures: int = 0
    error: EndpointError | None = None
    refused: str | None = None
    late: bool = False
    eased: int = 0
    steady: int = 0
    suspect: Attempts | None = None


@dataclass(eq=False)
class Attempts:
    """Attempts to get one request answered.

    since : time of its first failure, or since when it waits for an endpoint. number : of attempts. broken : failures
    of servers that worked before.
    """

    since: float | None = None
    number: int = 0
    broken: int = 0


class EndpointPool:
    """The endpoints of a client. Not thread-safe: callers hold a lock.

    Attributes
    ----------
    endpoints : in the order given. description : that all of them gave. policy : as given.
    """

    def __init__(self, urls: Sequence[Url], policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoints = [Endpoint(url, policy.in_flight) for url in urls]
        self.policy = policy
        self.description: Mapping[str, Any] = {}
        self._clock = clock
        self._turn = 0
        self._heard = float("-inf")

    # -- at the start ----------------------------------------------------------------------------------------------

    def admit(self, found: Sequence[Mapping[str, Any] | EndpointError]) -> None:
        """Record the first answer of each endpoint: its description, or why there is none.

        Raises
        ------
        AtomSieveError
            if no endpoint answers, one denies or rejects the question, or two are not served alike.
        """
        for error in found:
            if isinstance(error, EndpointError) and not isinstance(error, TEMPORARY):
                raise error
        answered = [e for e, a in zip(self.endpoints, found, strict=True) if not isinstance(a, EndpointError)]
        if not answered:
            reasons = "; ".join(map(str, found))
            if any(isinstance(error, DeadlineExceeded) for error in found):
                raise DeadlineExceeded(
                    f"no endpoint answers: {reasons}; it is busy, or hangs: raise the deadline, or see to the server"
                )
            raise Unavailable(f"no endpoint answers: {reasons}; check the addresses, and that the servers run")
        for endpoint, answer in zip(self.endpoints, found, strict=True):
            if isinstance(answer, EndpointError):
                endpoint.error, endpoint.outages = answer, 1
                log.warning("left out for now: %s", answer)
                continue
            refused = explain_mismatch(endpoint.url, answer, self.description, answered[0].url)
            if refused is not None:
                raise UsageError(f"{refused}; name only endpoints that serve alike")
            self.description = self.description or answer
            endpoint.up = True

    # -- while requests run ----------------------------------------------------------------------------------------

    def take(self, attempts: Attempts) -> Endpoint | None:
        """Return the endpoint for a request, the one with the fewest in flight; None if the request has to wait.

        Raises
        ------
        AtomSieveError
            if none will come back, or patience has run out.
        """
        alone = attempts.broken >= SUSPECT
        mine = [e for e in self.endpoints if e.up and e.suspect in (None, attempts)]
        able = [e for e in mine if e.in_flight < (1 if alone else e.room)]
        if not able:
            if alone and mine and not any(e.suspect is attempts for e in self.endpoints):
                min(mine, key=lambda e: e.in_flight).suspect = attempts  # which gets no others until this was there
            if not any(e.up for e in self.endpoints):
                self._still_patient(attempts)
            return None
        self._turn += 1
        n = len(self.endpoints)
        endpoint = min(able, key=lambda e: (e.in_flight, (self.endpoints.index(e) + self._turn) % n))
        self.forget(attempts)
        endpoint.suspect = attempts if alone else None
        endpoint.in_flight += 1
        attempts.number += 1
        return endpoint

    def deadline(self, endpoint: Endpoint) -> float:
        """Return how long an endpoint may take for an answer; seconds."""
        return self.policy.deadline * 2.0**endpoint.eased

    def note_answer(self, endpoint: Endpoint, attempts: Attempts | None = None) -> None:
        """Note that a request was answered, or rejected as wrong."""
        self.release(endpoint, attempts)
        self._heard = self._clock()
        endpoint.failures = 0
        endpoint.steady += 1
        if endpoint.steady % STEADY == 0:
            endpoint.room = min(endpoint.room + 1, self.policy.in_flight)

    def release(self, endpoint: Endpoint, attempts: Attempts | None = None) -> None:
        """Note that a request is no longer in flight."""
        endpoint.in_flight -= 1
        self.forget(attempts)

    def forget(self, attempts: Attempts | None) -> None:
        """Reserve no endpoint for a request any more."""
        for endpoint in self.endpoints:
            if attempts is not None and endpoint.suspect is attempts:
                endpoint.suspect = None

    def note_failure(self, endpoint: Endpoint, outages: int, error: EndpointError, attempts: Attempts) -> bool:
        """Note that a request failed; return whether this took its endpoint out, so that it must be probed.

        outages : of the endpoint when the request was sent; one outage fails many requests, and is one.
        """
        self.release(endpoint, attempts)
        attempts.broken += isinstance(error, Broken)
        if not endpoint.up or endpoint.outages != outages:
            return False
        endpoint.up, endpoint.error, endpoint.late = False, error, isinstance(error, DeadlineExceeded)
        endpoint.outages += 1
        endpoint.failures += 1
        endpoint.steady = 0
        log.info("taken out: %s", error)
        return True

    def check(self, attempts: Attempts, error: EndpointError) -> None:
        """Return if a request that has just failed is to be tried again.

        Raises
        ------
        EndpointError
            if not.
        """
        if attempts.broken >= MOST_BROKEN:
            raise Broken(f"{error}; it failed so {attempts.broken} times, so this request is taken to be the cause")
        self._still_patient(attempts, error)

    def _still_patient(self, attempts: Attempts, error: EndpointError | None = None) -> None:
        refused = [e.refused for e in self.endpoints if e.refused is not None]
        if len(refused) == len(self.endpoints):
            raise Unavailable(f"no endpoint is left: {'; '.join(refused)}")
        now = self._clock()
        attempts.since = now if attempts.since is None else attempts.since
        if now - max(attempts.since, self._heard) > self.policy.patience:
            latest = error or next(e.error for e in self.endpoints if e.error is not None)
            raise type(latest)(
                f"{latest}; given up after a patience of {self.policy.patience:g} s and "
                f"{_format_tries(attempts.number)}; see to the server, or raise the patience"
            )

    # -- those that are out ----------------------------------------------------------------------------------------

    def pause_seconds(self, endpoint: Endpoint) -> float:
        """Return how long to wait before an endpoint is asked (again) whether it is back; seconds."""
        usual = min(self.policy.longest, self.policy.shortest * 2.0 ** min(max(endpoint.failures - 1, 0), 30))
        return usual * (0.5 + random.random())  # noqa: S311 - so that clients do not come back all at once

    def probe_seconds(self, endpoint: Endpoint) -> float:
        """Return how long a probe of an endpoint that is out may take; seconds."""
        usual = self.policy.probe
        return min(usual * 2.0 ** min(max(endpoint.failures - 1, 0), 30), max(usual, self.deadline(endpoint)))

    def note_probe(self, endpoint: Endpoint, found: Mapping[str, Any] | EndpointError) -> bool:
        """Note the answer of an endpoint that was out to a probe; return whether probing ends."""
        if isinstance(found, Denied):
            endpoint.refused = str(found)
        elif isinstance(found, EndpointError):
            endpoint.error = found
            endpoint.failures += 1
            return False
        else:
            endpoint.refused = explain_mismatch(endpoint.url, found, self.description, None)
        endpoint.up = endpoint.refused is None
        if endpoint.up and endpoint.late and endpoint.eased < MOST_EASED:  # sound, so it had too much to do
            endpoint.eased += 1
            endpoint.room = max(1, endpoint.room // 2)
            self._heard = self._clock()
            log.info(
                "%s is busy: %d requests at once, %g s for an answer",
                endpoint.url,
                endpoint.room,
                self.deadline(endpoint),
            )
        log.log(logging.INFO if endpoint.up else logging.WARNING, endpoint.refused or f"{endpoint.url} is back")
        return True


def explain_mismatch(url: Url, found: Mapping[str, Any], known: Mapping[str, Any], other: Url | None) -> str | None:
    """Return why an endpoint must not be used with the others, None if it may.

    found : its description. known : the description that it must match. other : the endpoint that gave `known`; None
    if it is an earlier description of the same endpoints.
    """
    if found.get("wire") != WIRE:
        return f"{url} speaks version {found.get('wire')} of the protocol, this client speaks {WIRE}"
    if not known:
        return None
    said = format_differences(found, known)
    if not said:
        return None
    return f"{url} {f'is not served as {other} is' if other else 'is served in another way than before'}: {said}"


def format_differences(found: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return the fields of `ALIKE` in which two descriptions differ, with values; empty if there are none."""
    return "; ".join(
        f"{name} {_short(found.get(name))}, not {_short(known.get(name))}"
        for name in ALIKE
        if _comparable(name, found) != _comparable(name, known)
    )


def _comparable(name: str, description: Mapping[str, Any]) -> Any:
    value = description.get(name)
    return str(value).partition(":")[0] if name == "device" else value  # which GPU it is does not matter


def _format_tries(number: int) -> str:
    return f"{number} {'try' if number == 1 else 'tries'}"


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def parse_description(values: Any, url: Url) -> Mapping[str, Any]:
    """Parse the description that an endpoint sent as JSON bytes [B].

    Raises
    ------
    Broken
        if it is no JSON object.
    """
    try:
        found = json.loads(bytes(values))
    except ValueError as error:
        raise Broken(f"{url}: its description is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise Broken(f"{url}: its description is no JSON object")
    return found
