"""RemotePredictor: an ensemble that servers hold, called as one that is here."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.predict.prediction import Prediction
from atomsieve.serve.described import Arrays, Described, Job
from atomsieve.serve.pool import TEMPORARY, Endpoint, Policy, Pool, Tries, description_of, parse_urls
from atomsieve.serve.transport import Credentials, EndpointError, Transport, Url
from atomsieve.serve.wire import INPUTS
from atomsieve.structures.batch import StructureBatch

EMPTY: Arrays = {
    name: np.zeros((1, 0, *tensor.trailing), tensor.dtype) for name, tensor in INPUTS.items() if not tensor.optional
}
"""A request without structures."""


def ask(url: Url, model: str, credentials: Credentials | None, seconds: float) -> Mapping[str, Any]:
    """Return the description that an endpoint gives of a model, by a true inference.

    Raises
    ------
    EndpointError
        if there is none.
    """
    with Transport(url, credentials, connections=1, seconds=seconds) as transport:
        found = transport.infer(model, EMPTY, ["description"], seconds=seconds)
    return description_of(found["description"], url)


class Closed(AtomSieveError):  # noqa: N818 - a request, not an error
    """The connection was given up while a request was on its way."""


class Crew:
    """Threads that carry requests to endpoints.

    They are daemons: a program that ends does not wait for answers. Over HTTP each has connections of its own, since
    that client must not be shared; over gRPC all share one per endpoint.
    """

    def __init__(self, pool: Pool, model: str, credentials: Credentials | None) -> None:
        self.pool, self.model, self.credentials = pool, model, credentials
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Future[Arrays], Callable[[], Arrays], Job]] = deque()
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
        """Give everything up at once, whatever is on its way."""
        self._closed.set()
        with self._changed:
            while self._waiting:
                self._waiting.popleft()[0].cancel()
            shared, self._shared = list(self._shared.values()), {}
            self._changed.notify_all()
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
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(self._carry(arrays(), job, own))
                    except BaseException as error:  # whatever it is, it belongs to whoever waits
                        future.set_exception(error)
                    del future, arrays, job
        finally:
            for transport in own.values():
                transport.close()

    def _carry(self, arrays: Arrays, job: Job, own: dict[Url, Transport]) -> Arrays:
        """Send one request until it is answered."""
        tries, policy = Tries(), self.pool.policy
        while True:
            endpoint, outages = self._take(tries)
            try:
                answer = self._transport(endpoint.url, own).infer(
                    self.model, arrays, job.outputs, job.parameters, seconds=policy.deadline
                )
            except TEMPORARY as error:
                if endpoint.url in own:  # a connection that failed may still be sent an answer that is late
                    own.pop(endpoint.url).close()
                self._check_open()
                with self._changed:
                    if self.pool.failed(endpoint, outages, error, tries):
                        self._start(self._recover, endpoint)
                    self._changed.notify_all()
                    self.pool.check(tries, error)
            except BaseException:
                self._answered(endpoint)
                raise
            else:
                self._answered(endpoint)
                return answer

    def _answered(self, endpoint: Endpoint) -> None:
        with self._changed:
            self.pool.answered(endpoint)
            self._changed.notify_all()

    def _take(self, tries: Tries) -> tuple[Endpoint, int]:
        """Wait for an endpoint that can take a request."""
        with self._changed:
            while True:
                self._check_open()
                endpoint = self.pool.take(tries)
                if endpoint is not None:
                    return endpoint, endpoint.outages
                self._changed.wait(0.5)  # no longer, since patience runs out without anything happening

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Closed("the predictor was closed while a request was on its way")

    def _transport(self, url: Url, own: dict[Url, Transport]) -> Transport:
        def new(connections: int) -> Transport:
            return Transport(url, self.credentials, connections=connections, seconds=self.pool.policy.deadline)

        if not url.grpc:
            if url not in own:
                own[url] = new(1)
            return own[url]
        with self._changed:
            self._check_open()
            if url not in self._shared:
                self._shared[url] = new(self.pool.policy.in_flight)
            return self._shared[url]

    def _recover(self, endpoint: Endpoint) -> None:
        """Ask an endpoint that is out until it is back, and as it was."""
        while not self._closed.wait(self.pool.pause(endpoint)):
            found: Mapping[str, Any] | EndpointError
            try:
                found = ask(endpoint.url, self.model, self.credentials, self.pool.policy.probe)
            except EndpointError as error:
                found = error
            with self._changed:
                done = self.pool.probed(endpoint, found)
                self._changed.notify_all()
            if done:
                return


class RemotePredictor(Described):
    """An ensemble that servers hold, with the interface of `atomsieve.predict.Predictor`; made by `connect`.

    Threads may share it. Copies share its connections, a pickle connects again (it holds the token).
    """

    def __init__(self, crew: Crew, head: str | None, *, alone: bool, given: dict[str, Any]) -> None:
        super().__init__(crew.pool.description, head, alone=alone)
        self._crew, self._given = crew, given
        self.model = crew.model
        self._close = weakref.finalize(self, crew.close)

    @staticmethod
    def connect(
        endpoints: str | Sequence[str],
        model: str = "gfm",
        head: str | None = None,
        *,
        credentials: Credentials | None = None,
        deadline: float = 60.0,
        patience: float = 300.0,
        in_flight: int = 4,
        alone: bool = False,
    ) -> RemotePredictor:
        """Connect to endpoints that serve the same ensemble alike.

        endpoints : `grpc://h1:8001,h2:8001`, or a list; grpcs, http and https too.
        model : its name there. head : used when a call names none; None takes the server's default.
        credentials : token and TLS files.
        deadline : seconds for one answer. patience : seconds for all tries of a request, from its first failure on;
            meanwhile it is sent again, elsewhere or when a server is back.
        in_flight : requests on their way to one endpoint at once.
        alone : have every request computed apart from those of other clients, so that the same call gives the same
            bits whatever else the server does.

        Raises
        ------
        UsageError
            for what is no endpoint, an unknown head, or endpoints that do not serve alike.
        EndpointError
            if none answers, the model is unknown, or the token is wrong.
        """
        policy = Policy(deadline=deadline, patience=patience, in_flight=in_flight)
        pool = Pool(parse_urls(endpoints), policy)
        pool.admit(_ask_all([e.url for e in pool.endpoints], model, credentials, min(policy.probe, deadline)))
        given = {
            "endpoints": [str(e.url) for e in pool.endpoints], "model": model, "credentials": credentials,
            "deadline": deadline, "patience": patience, "in_flight": in_flight, "alone": alone,
        }  # fmt: skip
        return RemotePredictor(Crew(pool, model, credentials), head, alone=alone, given=given)

    @property
    def endpoints(self) -> list[str]:
        """The endpoints, as URLs."""
        return list(self._given["endpoints"])

    @property
    def in_flight(self) -> int:
        """Requests that are on their way at once, to all endpoints together."""
        return int(self._given["in_flight"]) * len(self._given["endpoints"])

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
        max_structure_atoms: int | None = None,
        build: Any = None,
    ) -> Prediction:
        """Evaluate a batch for one head, as `atomsieve.predict.Predictor` does; `build` is not used.

        A large batch is cut into several requests, which are on their way together. A structure beyond the limits of
        the server gets the status TOO_LARGE.

        Raises
        ------
        UsageError
            for an unknown head or property.
        EndpointError
            if a request is rejected or denied, or patience has run out.
        """
        sent = self.submit(batch, want, head, max_structure_atoms)
        try:
            return sent.result()
        except BaseException:  # Ctrl-C too
            sent.cancel()
            raise

    def submit(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
        max_structure_atoms: int | None = None,
    ) -> Sent:
        """Send a batch and return at once; parameters and errors as of a call."""
        job = self._job(batch, want, head, max_structure_atoms)
        return Sent(job, [self._crew.submit(_Tensors(job, piece), job) for piece in job.pieces])

    def close(self) -> None:
        """Give the connections up at once, whatever is on its way."""
        self._close()

    def __enter__(self) -> RemotePredictor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> RemotePredictor:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return reconnect, (self._given, self.head, self.ensemble_id)


class _Tensors:
    """Makes the tensors of a request when its turn comes, so that those waiting take no memory."""

    def __init__(self, job: Job, piece: NDArray[np.int64]) -> None:
        self._job, self._piece = job, piece

    def __call__(self) -> Arrays:
        return self._job.arrays(self._piece)


class Sent:
    """A batch on its way."""

    def __init__(self, job: Job, futures: list[Future[Arrays]]) -> None:
        self._job, self._futures = job, futures

    def result(self, seconds: float | None = None) -> Prediction:
        """Wait for the answer.

        Raises
        ------
        TimeoutError
            if it is not there after so long; it may be asked for again. Errors of a call, too.
        """
        finished, open_ = wait(self._futures, seconds, "FIRST_EXCEPTION")
        for future in self._futures:
            if future in finished:
                future.result()  # raises the error of one that failed, without waiting for the others
        if open_:
            raise TimeoutError
        return self._job.prediction([future.result() for future in self._futures])

    def cancel(self) -> None:
        """Take back what was not sent yet."""
        for future in self._futures:
            future.cancel()


def _ask_all(
    urls: Sequence[Url], model: str, credentials: Credentials | None, seconds: float
) -> list[Mapping[str, Any] | EndpointError]:
    """Ask all endpoints at once what they are."""
    found: dict[Url, Mapping[str, Any] | EndpointError | BaseException] = {}

    def one(url: Url) -> None:
        try:
            found[url] = ask(url, model, credentials, seconds)
        except BaseException as error:  # told to whoever waits
            found[url] = error

    threads = [threading.Thread(target=one, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers: list[Mapping[str, Any] | EndpointError] = []
    for url in urls:
        answer = found[url]
        if isinstance(answer, BaseException) and not isinstance(answer, EndpointError):
            raise answer
        answers.append(answer)
    return answers


def reconnect(given: dict[str, Any], head: str, identity: str) -> RemotePredictor:
    """Connect as `given` to `RemotePredictor.connect` before, and only to the ensemble `identity`."""
    predictor = RemotePredictor.connect(**given, head=head)
    if predictor.ensemble_id != identity:
        with suppress(Exception):
            predictor.close()
        raise UsageError(
            f"{', '.join(given['endpoints'])} now serve another ensemble ({predictor.ensemble_id[:12]}, was "
            f"{identity[:12]}); connect anew"
        )
    return predictor
