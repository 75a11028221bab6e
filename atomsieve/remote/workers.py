"""Threads that send requests to endpoints, and probe endpoints that are out until they are back."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.endpoints import TEMPORARY, Attempts, Endpoint, EndpointPool, RetryPolicy, parse_description
from atomsieve.remote.requests import Arrays, RemoteCall
from atomsieve.remote.transport import Broken, DeadlineExceeded, EndpointError, Transport
from atomsieve.remote.url import Url
from atomsieve.remote.wire import INPUTS

EMPTY_REQUEST: Arrays = {
    name: np.zeros((1, 0, *tensor.trailing), tensor.dtype) for name, tensor in INPUTS.items() if not tensor.optional
}
"""A request without structures."""
DescriptionOrError = Mapping[str, Any] | EndpointError
"""Description of an endpoint, or why there is none."""


class Closed(AtomSieveError):  # noqa: N818 - a request, not an error
    """The predictor was closed while a request was in flight."""

    def __init__(self, message: str = "the predictor was closed while a request was on its way; connect again") -> None:
        super().__init__(message)


def request_description(url: Url, model: str, credentials: Credentials | None, seconds: float) -> DescriptionOrError:
    """Return the description of a model at an endpoint, by an inference over a new connection."""
    try:
        with Transport(url, credentials, connections=1) as transport:
            found = transport.infer(model, EMPTY_REQUEST, ["description"], seconds=seconds)
        return parse_description(found["description"], url)
    except EndpointError as error:
        return error


def request_descriptions(
    urls: Sequence[Url], model: str, credentials: Credentials | None, policy: RetryPolicy
) -> list[DescriptionOrError]:
    """Request the descriptions of all endpoints at once; if none answers in time, late ones get the whole deadline.

    Raises
    ------
    AtomSieveError
        for faults of this client, such as unreadable TLS files.
    """
    asked: dict[Future[DescriptionOrError], Url] = {Future(): url for url in urls}

    def one(future: Future[DescriptionOrError], url: Url) -> None:
        try:
            future.set_result(request_description(url, model, credentials, policy.deadline))
        except BaseException as error:  # raised where the result is awaited
            future.set_exception(error)

    for future, url in asked.items():
        threading.Thread(target=one, args=(future, url), daemon=True).start()
    done, late = wait(asked, min(policy.probe, policy.deadline))
    while late and all(isinstance(future.result(), EndpointError) for future in done):
        more, late = wait(late, None, "FIRST_COMPLETED")
        done |= more
    return [f.result() if f in done else DeadlineExceeded(f"{url}: no answer yet") for f, url in asked.items()]


class WorkerThreads:
    """Threads that send requests to endpoints.

    They are daemons: a program that ends does not wait for answers. Over HTTP each thread has its own connections,
    since that client is not thread-safe; over gRPC all threads share one connection per endpoint.
    """

    def __init__(self, pool: EndpointPool, model: str, credentials: Credentials | None) -> None:
        self.pool, self.model, self.credentials = pool, model, credentials
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Future[Arrays], Callable[[], Arrays], RemoteCall]] = deque()
        self._running: set[Future[Arrays]] = set()
        self._shared: dict[Url, Transport] = {}
        self._closed = threading.Event()
        self._threads = 0
        self.process = os.getpid()
        for endpoint in pool.endpoints:
            if not endpoint.up:
                self._start(self._recover, endpoint)

    def submit(self, arrays: Callable[[], Arrays], call: RemoteCall) -> Future[Arrays]:
        """Queue a request; `arrays` makes its tensors when it is sent."""
        if os.getpid() != self.process:
            raise UsageError(
                "this predictor was connected by another process, and connections do not outlive a fork; connect in "
                "each process, or start processes by 'spawn'"
            )
        future: Future[Arrays] = Future()
        with self._changed:
            if self._closed.is_set():
                raise Closed("this predictor is closed; connect again")
            self._waiting.append((future, arrays, call))
            if self._threads < len(self.pool.endpoints) * self.pool.policy.in_flight:
                self._threads += 1
                self._start(self._work)
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Close at once: every waiting or sent request fails with `Closed`.

        A thread that waits for an answer over HTTP ends with the answer or at its deadline; it is not joined.
        """
        if os.getpid() != self.process:
            return  # a fork has the connections and locks of its parent, which uses them still
        self._closed.set()
        with self._changed:
            given_up = [future for future, *_ in self._waiting if future.set_running_or_notify_cancel()]
            given_up += self._running
            self._waiting.clear()
            self._running.clear()
            shared, self._shared = list(self._shared.values()), {}
            self._changed.notify_all()
        for future in given_up:
            future.set_exception(Closed())
        for transport in shared:
            transport.close()

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=work, args=args, daemon=True, name=f"atomsieve-{self.model}").start()

    def _work(self) -> None:
        """Send one request after another."""
        own: dict[Url, Transport] = {}
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed.is_set() or self._waiting)
                    if self._closed.is_set():
                        return
                    future, arrays, call = self._waiting.popleft()
                    if not future.set_running_or_notify_cancel():
                        continue
                    self._running.add(future)
                answer: Arrays | BaseException
                try:
                    answer = self._carry(arrays(), call, own)
                except BaseException as error:  # raised where the result is awaited
                    answer = error
                self._resolve(future, answer)
                del future, arrays, call, answer
        finally:
            for transport in own.values():
                transport.close()

    def _resolve(self, future: Future[Arrays], answer: Arrays | BaseException) -> None:
        with self._changed:
            if future not in self._running:  # `close` has resolved it already
                return
            self._running.discard(future)
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _carry(self, arrays: Arrays, call: RemoteCall, own: dict[Url, Transport]) -> Arrays:
        """Send one request until it is answered."""
        attempts = Attempts()
        while True:
            endpoint, outages, seconds = self._take(attempts)
            try:
                transport = self._transport(endpoint.url, own)
                answer = transport.infer(self.model, arrays, call.outputs, call.parameters, seconds=seconds)
            except TEMPORARY as error:
                self._drop(transport, error, own)
                self._check_open()
                with self._changed:
                    if self.pool.note_failure(endpoint, outages, error, attempts):
                        self._start(self._recover, endpoint)
                    self._changed.notify_all()
                    self.pool.check(attempts, error)
            except BaseException as error:
                note = self.pool.note_answer if isinstance(error, EndpointError) else self.pool.release
                self._note_outcome(note, endpoint, attempts)
                raise
            else:
                self._note_outcome(self.pool.note_answer, endpoint, attempts)
                return answer

    def _note_outcome(self, note: Callable[[Endpoint, Attempts], None], endpoint: Endpoint, attempts: Attempts) -> None:
        with self._changed:
            note(endpoint, attempts)
            self._changed.notify_all()

    def _take(self, attempts: Attempts) -> tuple[Endpoint, int, float]:
        """Wait for an endpoint that can take a request; return it, its outages so far and its deadline in seconds."""
        with self._changed:
            while True:
                self._check_open()
                try:
                    endpoint = self.pool.take(attempts)
                except BaseException:
                    self.pool.forget(attempts)
                    raise
                if endpoint is not None:
                    return endpoint, endpoint.outages, self.pool.deadline(endpoint)
                self._changed.wait(0.5)  # no longer, since patience runs out without anything happening

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Closed

    def _transport(self, url: Url, own: dict[Url, Transport]) -> Transport:
        if not url.grpc:
            if url not in own:
                own[url] = Transport(url, self.credentials, connections=1)
            return own[url]
        with self._changed:
            self._check_open()
            if url not in self._shared:
                self._shared[url] = Transport(url, self.credentials)
            return self._shared[url]

    def _drop(self, transport: Transport, error: EndpointError, own: dict[Url, Transport]) -> None:
        """Stop using a connection that failed: it may be dead, or a late answer may arrive over it.

        A shared connection is not closed, since other threads may wait for answers over it; the last one closes it.
        """
        if own.get(transport.url) is transport:
            own.pop(transport.url).close()
        with self._changed:
            if self._shared.get(transport.url) is transport and not isinstance(error, Broken):
                del self._shared[transport.url]

    def _recover(self, endpoint: Endpoint) -> None:
        """Probe an endpoint that is out until it is back with the same description, or refused for good."""
        while not self._closed.wait(self.pool.pause_seconds(endpoint)):
            try:
                found = request_description(
                    endpoint.url, self.model, self.credentials, self.pool.probe_seconds(endpoint)
                )
            except Exception as error:  # without this thread the endpoint would never be probed again
                found = Broken(f"{endpoint.url}: cannot be asked ({type(error).__name__}: {error})")
            with self._changed:
                done = self.pool.note_probe(endpoint, found)
                self._changed.notify_all()
            if done:
                return
