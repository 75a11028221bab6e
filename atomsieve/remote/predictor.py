"""RemotePredictor: an ensemble on servers, with the interface of a local predictor."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from atomsieve.errors import UsageError
from atomsieve.predict.interface import AnyPredictor, Capabilities
from atomsieve.predict.prediction import Prediction
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.endpoints import EndpointPool, RetryPolicy
from atomsieve.remote.requests import Arrays, RemoteCall, ServedEnsemble
from atomsieve.remote.url import parse_urls
from atomsieve.remote.workers import WorkerThreads, request_descriptions
from atomsieve.structures.batch import StructureBatch


class RemotePredictor(ServedEnsemble):
    """An ensemble on servers, with the interface of `atomsieve.predict.Predictor`; made by `connect`.

    Threads may share it. Copies share its connections, a pickle connects again (it holds the token).
    """

    def __init__(self, workers: WorkerThreads, head: str | None, *, alone: bool, given: dict[str, Any]) -> None:
        super().__init__(workers.pool.description, head, alone=alone)
        self._workers, self._given = workers, given
        self.model = workers.model
        self._close = weakref.finalize(self, workers.close)

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
        deadline : seconds for one answer; a server that works but is busy gets up to eight times as much, and fewer
            requests at once.
        patience : seconds for all attempts of a request, from its first failure or the latest answer to any request;
            meanwhile it is sent again, to another server or when one is back.
        in_flight : requests to one endpoint at once.
        alone : have every request computed separately, so that the same call gives the same bits whatever else the
            server computes.

        Raises
        ------
        UsageError
            for a malformed endpoint, an unknown head, a file for TLS, or endpoints that do not serve alike.
        EndpointError
            if none answers, the model is unknown, or the token is wrong.
        """
        policy = RetryPolicy(deadline=deadline, patience=patience, in_flight=in_flight)
        pool = EndpointPool(parse_urls(endpoints), policy)
        pool.admit(request_descriptions([e.url for e in pool.endpoints], model, credentials, policy))
        given = {
            "endpoints": [str(e.url) for e in pool.endpoints],
            "model": model,
            "credentials": credentials,
            "deadline": deadline,
            "patience": patience,
            "in_flight": in_flight,
            "alone": alone,
        }
        return RemotePredictor(WorkerThreads(pool, model, credentials), head, alone=alone, given=given)

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the servers; several requests may be in flight."""
        return replace(
            super().capabilities,
            asynchronous=True,
            endpoints=tuple(self._given["endpoints"]),
            patience=float(self._given["patience"]),
        )

    def costliest(self) -> AnyPredictor:
        """Return itself."""
        return self

    def lost_endpoints(self) -> dict[str, str]:
        """Return the endpoints that do not answer now, by URL, and why."""
        return {str(e.url): e.refused or str(e.error) for e in self._workers.pool.endpoints if not e.up}

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
        max_structure_atoms: int | None = None,
        build: Any = None,
    ) -> Prediction:
        """Evaluate a batch for one head, as `atomsieve.predict.Predictor` does; `build` is not used.

        A large batch is cut into several requests that are in flight together. A structure beyond the limits of
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
    ) -> PendingPrediction:
        """Send a batch and return at once; parameters and errors as of a call."""
        call = self._plan_call(batch, want, head, max_structure_atoms)
        # tensors are made when a request is sent, so that waiting requests take no memory
        futures = [self._workers.submit(partial(call.arrays, piece), call) for piece in call.pieces]
        return PendingPrediction(self, call, futures)

    def close(self) -> None:
        """Close at once: calls in flight raise `atomsieve.remote.workers.Closed`."""
        self._close()

    def __enter__(self) -> RemotePredictor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> RemotePredictor:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return reconnect, (self._given, self.head, self.ensemble_id)


class PendingPrediction:
    """The prediction of a submitted batch. It keeps its predictor connected."""

    def __init__(self, predictor: RemotePredictor, call: RemoteCall, futures: list[Future[Arrays]]) -> None:
        self._predictor, self._call, self._futures = predictor, call, futures

    def result(self, seconds: float | None = None) -> Prediction:
        """Wait for the answer.

        Raises
        ------
        TimeoutError
            after `seconds` without the answer; `result` may be called again. Errors of a call, too.
        """
        finished, open_ = wait(self._futures, seconds, "FIRST_EXCEPTION")
        for future in self._futures:
            if future in finished:
                future.result()  # raises the error of one that failed, without waiting for the others
        if open_:
            raise TimeoutError
        return self._call.prediction([future.result() for future in self._futures])

    def cancel(self) -> None:
        """Cancel the requests that were not sent yet."""
        for future in self._futures:
            future.cancel()


def reconnect(given: dict[str, Any], head: str, identity: str) -> RemotePredictor:
    """Repeat `RemotePredictor.connect` with the arguments `given`, and accept the ensemble `identity` alone."""
    predictor = RemotePredictor.connect(**given, head=head)
    if predictor.ensemble_id != identity:
        with suppress(Exception):
            predictor.close()
        raise UsageError(
            f"{', '.join(given['endpoints'])} now serve another ensemble ({predictor.ensemble_id[:12]}, was "
            f"{identity[:12]}); connect anew"
        )
    return predictor
