"""Several endpoints as one: which gets a request, when to try again, who is taken out, when it comes back.

Nothing here waits, sends or knows of threads: clients that block and clients of asyncio share these rules.
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
from atomsieve.remote.transport import Broken, DeadlineExceeded, Denied, EndpointError, Unavailable, Url, parse_url
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
"""Of a description: what endpoints must agree in, as it decides what is answered, down to the last bits."""
SUSPECT, MOST_BROKEN = 2, 6
"""How often a server that was sound before fails in a request until it is sent alone, and until it is given up."""
MOST_EASED = 3
"""How often the deadline of a busy endpoint is doubled."""
STEADY = 16
"""Answers in a row after which an endpoint that was busy gets one more request at once."""


@dataclass(frozen=True)
class Policy:
    """How patient a client is; times in seconds.

    Attributes
    ----------
    deadline : for one answer; an endpoint that turns out to be sound, but busy, gets up to eight times as much.
    patience : for all tries of a request, from its first failure, or the latest answer to any request, on.
    probe : for the answer of an endpoint that is asked what it is; it doubles, up to the deadline.
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


def parse_urls(text: str | Sequence[str]) -> list[Url]:
    """Read endpoints: `grpc://h1:8001,h2:8001`, where a scheme holds for those that follow without one.

    Raises
    ------
    UsageError
        for what is no endpoint, none at all, or one that is named twice.
    """
    urls: list[Url] = []
    scheme = "grpc"
    for part in text.split(",") if isinstance(text, str) else text:
        url = parse_url(part, scheme)
        if url in urls:
            raise UsageError(f"endpoint {url} is named twice")
        urls.append(url)
        scheme = url.scheme
    if not urls:
        raise UsageError("no endpoint given; give grpc://host:8001 (or grpcs, http, https)")
    return urls


@dataclass(eq=False)
class Endpoint:
    """What a client knows of one endpoint.

    url : where. room : requests that may be on their way at once. in_flight : those that are. up : it may be asked.
    outages : how often it was taken out. failures : in a row. error : the latest. refused : why it is left out for
    good. late : it was taken out since an answer did not come in time. eased : how often its deadline was doubled.
    steady : answers in a row. suspect : the tries of a request that it gets alone.
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
    suspect: Tries | None = None


@dataclass(eq=False)
class Tries:
    """The tries of one request. since : of its first failure, or of its waiting for an endpoint. broken : failures
    of servers that were sound before.
    """

    since: float | None = None
    number: int = 0
    broken: int = 0


class Pool:
    """The endpoints of a client. Callers see to it that one thread at a time is in here.

    Attributes
    ----------
    endpoints : in the order given. description : what they all said of themselves. policy : as given.
    """

    def __init__(self, urls: Sequence[Url], policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoints = [Endpoint(url, policy.in_flight) for url in urls]
        self.policy = policy
        self.description: Mapping[str, Any] = {}
        self._clock = clock
        self._turn = 0
        self._heard = float("-inf")

    # -- at the start ----------------------------------------------------------------------------------------------

    def admit(self, found: Sequence[Mapping[str, Any] | EndpointError]) -> None:
        """Take what each endpoint said when it was first asked: its description, or why there is none.

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
            said = "; ".join(map(str, found))
            if any(isinstance(error, DeadlineExceeded) for error in found):
                raise DeadlineExceeded(
                    f"no endpoint answers: {said}; it is busy, or hangs: raise the deadline, or see to the server"
                )
            raise Unavailable(f"no endpoint answers: {said}; check the addresses, and that the servers run")
        for endpoint, answer in zip(self.endpoints, found, strict=True):
            if isinstance(answer, EndpointError):
                endpoint.error, endpoint.outages = answer, 1
                log.warning("left out for now: %s", answer)
                continue
            refused = different(endpoint.url, answer, self.description, answered[0].url)
            if refused is not None:
                raise UsageError(f"{refused}; name only endpoints that serve alike")
            self.description = self.description or answer
            endpoint.up = True

    # -- while requests run ----------------------------------------------------------------------------------------

    def take(self, tries: Tries) -> Endpoint | None:
        """Return the endpoint for a request, the one with the fewest on their way; None if it has to wait.

        Raises
        ------
        AtomSieveError
            if none will come back, or patience has run out.
        """
        alone = tries.broken >= SUSPECT
        mine = [e for e in self.endpoints if e.up and e.suspect in (None, tries)]
        able = [e for e in mine if e.in_flight < (1 if alone else e.room)]
        if not able:
            if alone and mine and not any(e.suspect is tries for e in self.endpoints):
                min(mine, key=lambda e: e.in_flight).suspect = tries  # which gets no others until this was there
            if not any(e.up for e in self.endpoints):
                self._still_patient(tries)
            return None
        self._turn += 1
        n = len(self.endpoints)
        endpoint = min(able, key=lambda e: (e.in_flight, (self.endpoints.index(e) + self._turn) % n))
        self.forget(tries)
        endpoint.suspect = tries if alone else None
        endpoint.in_flight += 1
        tries.number += 1
        return endpoint

    def deadline(self, endpoint: Endpoint) -> float:
        """Return how long an endpoint may take for an answer; seconds."""
        return self.policy.deadline * 2.0**endpoint.eased

    def answered(self, endpoint: Endpoint, tries: Tries | None = None) -> None:
        """Note that a request was answered, or refused for what it is."""
        self.left(endpoint, tries)
        self._heard = self._clock()
        endpoint.failures = 0
        endpoint.steady += 1
        if endpoint.steady % STEADY == 0:
            endpoint.room = min(endpoint.room + 1, self.policy.in_flight)

    def left(self, endpoint: Endpoint, tries: Tries | None = None) -> None:
        """Note that nobody waits for a request any longer."""
        endpoint.in_flight -= 1
        self.forget(tries)

    def forget(self, tries: Tries | None) -> None:
        """Keep no endpoint free for a request."""
        for endpoint in self.endpoints:
            if tries is not None and endpoint.suspect is tries:
                endpoint.suspect = None

    def failed(self, endpoint: Endpoint, outages: int, error: EndpointError, tries: Tries) -> bool:
        """Note that a request failed; return whether its endpoint was taken out by this, and must be probed.

        outages : of the endpoint when the request was sent; one outage fails many requests, and is one.
        """
        self.left(endpoint, tries)
        tries.broken += isinstance(error, Broken)
        if not endpoint.up or endpoint.outages != outages:
            return False
        endpoint.up, endpoint.error, endpoint.late = False, error, isinstance(error, DeadlineExceeded)
        endpoint.outages += 1
        endpoint.failures += 1
        endpoint.steady = 0
        log.info("taken out: %s", error)
        return True

    def check(self, tries: Tries, error: EndpointError) -> None:
        """Return if a request that has just failed is to be tried again.

        Raises
        ------
        EndpointError
            if not.
        """
        if tries.broken >= MOST_BROKEN:
            raise Broken(f"{error}; it failed so {tries.broken} times, so this request is taken to be the cause")
        self._still_patient(tries, error)

    def _still_patient(self, tries: Tries, error: EndpointError | None = None) -> None:
        refused = [e.refused for e in self.endpoints if e.refused is not None]
        if len(refused) == len(self.endpoints):
            raise Unavailable(f"no endpoint is left: {'; '.join(refused)}")
        now = self._clock()
        tries.since = now if tries.since is None else tries.since
        if now - max(tries.since, self._heard) > self.policy.patience:
            latest = error or next(e.error for e in self.endpoints if e.error is not None)
            raise type(latest)(
                f"{latest}; given up after a patience of {self.policy.patience:g} s and {_tries(tries.number)}; see to "
                "the server, or raise the patience"
            )

    # -- those that are out ----------------------------------------------------------------------------------------

    def pause(self, endpoint: Endpoint) -> float:
        """Return how long to wait before an endpoint is asked (again) whether it is back; seconds."""
        usual = min(self.policy.longest, self.policy.shortest * 2.0 ** min(max(endpoint.failures - 1, 0), 30))
        return usual * (0.5 + random.random())  # noqa: S311 - so that clients do not come back all at once

    def probe(self, endpoint: Endpoint) -> float:
        """Return how long an endpoint that is out may take to say that it is back; seconds."""
        usual = self.policy.probe
        return min(usual * 2.0 ** min(max(endpoint.failures - 1, 0), 30), max(usual, self.deadline(endpoint)))

    def probed(self, endpoint: Endpoint, found: Mapping[str, Any] | EndpointError) -> bool:
        """Note what an endpoint that was out said of itself; return whether that ends the asking."""
        if isinstance(found, Denied):
            endpoint.refused = str(found)
        elif isinstance(found, EndpointError):
            endpoint.error = found
            endpoint.failures += 1
            return False
        else:
            endpoint.refused = different(endpoint.url, found, self.description, None)
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


def different(url: Url, found: Mapping[str, Any], known: Mapping[str, Any], other: Url | None) -> str | None:
    """Return how a description differs from the one that is known, None if it does not.

    other : whose the known one is; None for that of the same endpoint, or of its fellows, at the start.
    """
    if found.get("wire") != WIRE:
        return f"{url} speaks version {found.get('wire')} of the protocol, this client speaks {WIRE}"
    if not known:
        return None
    said = differences(found, known)
    if not said:
        return None
    return f"{url} {f'is not served as {other} is' if other else 'is served in another way than before'}: {said}"


def differences(found: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return in what a description is not like another one that it must be like; empty if it is."""
    return "; ".join(
        f"{name} {_short(found.get(name))}, not {_short(known.get(name))}"
        for name in ALIKE
        if _comparable(name, found) != _comparable(name, known)
    )


def _comparable(name: str, description: Mapping[str, Any]) -> Any:
    value = description.get(name)
    return str(value).partition(":")[0] if name == "device" else value  # which GPU it is does not matter


def _tries(number: int) -> str:
    return f"{number} {'try' if number == 1 else 'tries'}"


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def description_of(values: Any, url: Url) -> Mapping[str, Any]:
    """Return the description that an endpoint sent as bytes [B].

    Raises
    ------
    Broken
        if it is none.
    """
    try:
        found = json.loads(bytes(values))
    except ValueError as error:
        raise Broken(f"{url}: its description is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise Broken(f"{url}: its description is no JSON object")
    return found
