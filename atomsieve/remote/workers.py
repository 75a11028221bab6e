"""Threads that carry requests to endpoints, and ask those that are out whether they are back."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.remote.endpoints import TEMPORARY, Endpoint, Policy, Pool, Tries, description_of
from atomsieve.remote.requests import Arrays, Job
from atomsieve.remote.transport import Broken, Credentials, DeadlineExceeded, EndpointError, Transport, Url
from atomsieve.remote.wire import INPUTS

EMPTY: Arrays = {
    name: np.zeros((1, 0, *tensor.trailing), tensor.dtype) for name, tensor in INPUTS.items() if not tensor.optional
}
"""A request without structures."""
Found = Mapping[str, Any] | EndpointError
"""What an endpoint says of itself, or why it says nothing."""


class Closed(AtomSieveError):  # noqa: N818 - a request, not an error
    """The connection was given up while a request was on its way."""

    def __init__(self, message: str = "the predictor was closed while a request was on its way; connect again") -> None:
        super().__init__(message)


def ask(url: Url, model: str, credentials: Credentials | None, seconds: float) -> Found:
    """Return the description that an endpoint gives of a model, by a true inference over a connection of its own."""
    try:
        with Transport(url, credentials, connections=1) as transport:
            found = transport.infer(model, EMPTY, ["description"], seconds=seconds)
        return description_of(found["description"], url)
    except EndpointError as error:
        return error


def ask_all(urls: Sequence[Url], model: str, credentials: Credentials | None, policy: Policy) -> list[Found]:
    """Ask all endpoints at once what they are; without any answer so far, those that are late get the whole deadline.

    Raises
    ------
    AtomSieveError
        for what is wrong here, not there, such as files for TLS.
    """
    asked: dict[Future[Found], Url] = {Future(): url for url in urls}

    def one(future: Future[Found], url: Url) -> None:
        try:
            future.set_result(ask(url, model, credentials, policy.deadline))
        except BaseException as error:  # told to whoever waits
            future.set_exception(error)

    for future, url in asked.items():
        threading.Thread(target=one, args=(future, url), daemon=True).start()
    done, late = wait(asked, min(policy.probe, policy.deadline))
    while late and all(isinstance(future.result(), EndpointError) for future in done):
        more, late = wait(late, None, "FIRST_COMPLETED")
        done |= more
    return [f.result() if f in done else DeadlineExceeded(f"{url}: no answer yet") for f, url in asked.items()]


class Crew:
    """Threads that carry requests to endpoints.

    They are daemons: a program that ends does not wait for answers. Over HTTP each has connections of its own, since
    that client must not be shared; over gRPC all share one per endpoint.
    """

    def __init__(self, pool: Pool, model: str, credentials: Credentials | None) -> None:
        self.pool, self.model, self.credentials = pool, model, credentials
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Future[Arrays], Callable[[], Arrays], Job]] = deque()
        self._running: set[Future[Arrays]] = set()
        self._shared: dict[Url, Transport] = {}
        self._closed = threading.Event()
        self._threads = 0
        self.process = os.getpid()
        for endpoint in pool.endpoints:
            if not endpoint.up:
                self._start(self._recover, endpoint)

    def submit(self, arrays: Callable[[], Arrays], job: Job) -> Future[Arrays]:
        """Queue a request; `arrays` makes its tensors when its turn comes."""
        if os.getpid() != self.process:
            raise UsageError(
                "this predictor was connected by another process, and connections do not outlive a fork; connect in "
                "each process, or start processes by 'spawn'"
            )
        future: Future[Arrays] = Future()
        with self._changed:
            if self._closed.is_set():
                raise Closed("this predictor is closed; connect again")
            self._waiting.append((future, arrays, job))
            if self._threads < len(self.pool.endpoints) * self.pool.policy.in_flight:
                self._threads += 1
                self._start(self._work)
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Give everything up at once: whoever waits gets `Closed`, also for what is on its way.

        A thread that waits for an answer over HTTP ends with it, or at its deadline; nobody waits for that thread.
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
        """Carry one request after another."""
        own: dict[Url, Transport] = {}
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed.is_set() or self._waiting)
                    if self._closed.is_set():
                        return
                    future, arrays, job = self._waiting.popleft()
                    if not future.set_running_or_notify_cancel():
                        continue
                    self._running.add(future)
                answer: Arrays | BaseException
                try:
                    answer = self._carry(arrays(), job, own)
                except BaseException as error:  # whatever it is, it belongs to whoever waits
                    answer = error
                self._tell(future, answer)
                del future, arrays, job, answer
        finally:
            for transport in own.values():
                transport.close()

    def _tell(self, future: Future[Arrays], answer: Arrays | BaseException) -> None:
        with self._changed:
            if future not in self._running:  # `close` has told it already
                return
            self._running.discard(future)
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _carry(self, arrays: Arrays, job: Job, own: dict[Url, Transport]) -> Arrays:
        """Send one request until it is answered."""
        tries = Tries()
        while True:
            endpoint, outages, seconds = self._take(tries)
            try:
                transport = self._transport(endpoint.url, own)
                answer = transport.infer(self.model, arrays, job.outputs, job.parameters, seconds=seconds)
            except TEMPORARY as error:
                self._drop(transport, error, own)
                self._check_open()
                with self._changed:
                    if self.pool.failed(endpoint, outages, error, tries):
                        self._start(self._recover, endpoint)
                    self._changed.notify_all()
                    self.pool.check(tries, error)
            except BaseException as error:
                note = self.pool.answered if isinstance(error, EndpointError) else self.pool.left
                self._settle(note, endpoint, tries)
                raise
            else:
                self._settle(self.pool.answered, endpoint, tries)
                return answer

    def _settle(self, note: Callable[[Endpoint, Tries], None], endpoint: Endpoint, tries: Tries) -> None:
        with self._changed:
            note(endpoint, tries)
            self._changed.notify_all()

    def _take(self, tries: Tries) -> tuple[Endpoint, int, float]:
        """Wait for an endpoint that can take a request; return its outages so far and its deadline, too."""
        with self._changed:
            while True:
                self._check_open()
                try:
                    endpoint = self.pool.take(tries)
                except BaseException:
                    self.pool.forget(tries)
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
        """Use a connection that failed no more: it may be dead without knowing, or be sent an answer that is late.

        One that is shared is not closed, since others may wait for answers over it; it ends with the last of them.
        """
        if own.get(transport.url) is transport:
            own.pop(transport.url).close()
        with self._changed:
            if self._shared.get(transport.url) is transport and not isinstance(error, Broken):
                del self._shared[transport.url]

    def _recover(self, endpoint: Endpoint) -> None:
        """Ask an endpoint that is out until it is back, and as it was."""
        while not self._closed.wait(self.pool.pause(endpoint)):
            try:
                found = ask(endpoint.url, self.model, self.credentials, self.pool.probe(endpoint))
            except Exception as error:  # without this thread the endpoint would never be asked again
                found = Broken(f"{endpoint.url}: cannot be asked ({type(error).__name__}: {error})")
            with self._changed:
                done = self.pool.probed(endpoint, found)
                self._changed.notify_all()
            if done:
                return
