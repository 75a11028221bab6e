"""AsyncRemotePredictor: the same client for asyncio, over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from atomsieve.errors import UsageError, require
from atomsieve.predict.prediction import Prediction
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.endpoints import TEMPORARY, Attempts, Endpoint, EndpointPool, RetryPolicy, parse_description
from atomsieve.remote.requests import Arrays, RemoteCall, ServedEnsemble
from atomsieve.remote.transport import (
    PURPOSE,
    Broken,
    DeadlineExceeded,
    EndpointError,
    answer_arrays,
    classify_error,
    grpc_options,
    request_options,
)
from atomsieve.remote.url import Url, parse_urls
from atomsieve.remote.workers import EMPTY_REQUEST, Closed, DescriptionOrError
from atomsieve.structures.batch import StructureBatch

T = TypeVar("T")


class AsyncTransport:
    """A connection to one endpoint over gRPC, for the tasks of one event loop."""

    def __init__(self, url: Url, credentials: Credentials | None = None) -> None:
        if not url.grpc:
            raise UsageError(f"{url}: the client of asyncio speaks gRPC alone; give grpc:// or grpcs://")
        self.url, credentials = url, credentials or Credentials()
        credentials.check_files()
        self._headers = credentials.headers(url)
        self._module = require("tritonclient.grpc", "serve", PURPOSE)
        client = require("tritonclient.grpc.aio", "serve", PURPOSE).InferenceServerClient
        self._client = client(url.target, **grpc_options(url, credentials))
        self._users, self._retired = 0, False

    async def infer(
        self,
        model: str,
        arrays: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        *,
        seconds: float = 60.0,
    ) -> Arrays:
        """Send tensors and return outputs, as `atomsieve.remote.transport.Transport.infer` does."""
        from tritonclient.utils import InferenceServerException

        asked = request_options(self._module, arrays, outputs, parameters, seconds)
        self._users += 1
        try:
            found = await self._client.infer(model, **asked, client_timeout=seconds, headers=self._headers)
        except InferenceServerException as error:
            raise classify_error(self.url, error) from error
        finally:
            self._users -= 1
            if self._retired and not self._users:
                await self.close()
        return answer_arrays(self.url, found, outputs)

    async def retire(self) -> None:
        """Close the connection as soon as no request is in flight over it."""
        self._retired = True
        if not self._users:
            await self.close()

    async def close(self) -> None:
        """Close the connection; requests in flight are cancelled."""
        await self._client.close()


class AsyncRemotePredictor(ServedEnsemble):
    """`RemotePredictor` for one event loop: `await AsyncRemotePredictor.connect(...)`, `await predictor(batch)`.

    Many calls may run at once; each endpoint gets `in_flight` requests of them at a time.
    """

    def __init__(
        self, pool: EndpointPool, model: str, head: str | None, credentials: Credentials | None, *, alone: bool
    ) -> None:
        super().__init__(pool.description, head, alone=alone)
        self.model = model
        self._pool, self._credentials = pool, credentials
        self._transports: dict[Url, AsyncTransport] = {}
        self._changed = asyncio.Condition()
        self._room = asyncio.Semaphore(pool.policy.in_flight * len(pool.endpoints))
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        for endpoint in pool.endpoints:
            if not endpoint.up:
                self._start(self._recover(endpoint))

    @staticmethod
    async def connect(
        endpoints: str | Sequence[str],
        model: str = "gfm",
        head: str | None = None,
        *,
        credentials: Credentials | None = None,
        deadline: float = 60.0,
        patience: float = 300.0,
        in_flight: int = 16,
        alone: bool = False,
    ) -> AsyncRemotePredictor:
        """Connect to endpoints that serve the same ensemble alike; parameters and errors as of `RemotePredictor`."""
        policy = RetryPolicy(deadline=deadline, patience=patience, in_flight=in_flight)
        pool = EndpointPool(parse_urls(endpoints), policy)
        pool.admit(await _ask_all([e.url for e in pool.endpoints], model, credentials, policy))
        return AsyncRemotePredictor(pool, model, head, credentials, alone=alone)

    async def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
        max_structure_atoms: int | None = None,
    ) -> Prediction:
        """Evaluate a batch for one head; see `RemotePredictor`. Cancelling the task cancels its requests."""
        if self._closed:
            raise Closed("this predictor is closed; connect again")
        call = self._plan_call(batch, want, head, max_structure_atoms)
        tasks = [self._start(self._in_turn(call, piece)) for piece in call.pieces]
        try:
            return call.prediction(await asyncio.gather(*tasks))
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and not (caller and caller.cancelling()):
                raise Closed from None
            raise
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Close at once: calls in flight raise `atomsieve.remote.workers.Closed`."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        transports, self._transports = list(self._transports.values()), {}
        await asyncio.gather(*(t.close() for t in transports))

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def __aenter__(self) -> AsyncRemotePredictor:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _in_turn(self, call: RemoteCall, piece: NDArray[Any]) -> Arrays:
        async with self._room:
            return await self._carry(call, piece)

    async def _carry(self, call: RemoteCall, piece: NDArray[Any]) -> Arrays:
        """Send one request until it is answered."""
        attempts, arrays, pool = Attempts(), call.arrays(piece), self._pool
        while True:
            endpoint = await self._take(attempts)
            outages, url = endpoint.outages, endpoint.url
            try:
                if url not in self._transports:
                    self._transports[url] = AsyncTransport(url, self._credentials)
                transport = self._transports[url]
                answer = await transport.infer(
                    self.model, arrays, call.outputs, call.parameters, seconds=pool.deadline(endpoint)
                )
            except TEMPORARY as error:
                if pool.note_failure(endpoint, outages, error, attempts):
                    self._start(self._recover(endpoint))
                if self._transports.get(url) is transport and not isinstance(error, Broken):
                    del self._transports[url]  # it may be dead
                    await transport.retire()
                await self._notify()
                pool.check(attempts, error)
            except BaseException as error:
                (pool.note_answer if isinstance(error, EndpointError) else pool.release)(endpoint, attempts)
                await self._notify()
                raise
            else:
                pool.note_answer(endpoint, attempts)
                await self._notify()
                return answer

    async def _take(self, attempts: Attempts) -> Endpoint:
        """Wait for an endpoint that can take a request."""
        try:
            async with self._changed:
                while (endpoint := self._pool.take(attempts)) is None:
                    with contextlib.suppress(TimeoutError):  # patience runs out without anything happening
                        await asyncio.wait_for(self._changed.wait(), 0.5)
            return endpoint
        except BaseException:
            self._pool.forget(attempts)
            raise

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _recover(self, endpoint: Endpoint) -> None:
        """Probe an endpoint that is out until it is back with the same description, or refused for good."""
        done = False
        while not done:
            await asyncio.sleep(self._pool.pause_seconds(endpoint))
            try:
                found = await _ask(endpoint.url, self.model, self._credentials, self._pool.probe_seconds(endpoint))
            except Exception as error:  # without this task the endpoint would never be probed again
                found = Broken(f"{endpoint.url}: cannot be asked ({type(error).__name__}: {error})")
            done = self._pool.note_probe(endpoint, found)
            await self._notify()


async def _ask(url: Url, model: str, credentials: Credentials | None, seconds: float) -> DescriptionOrError:
    """Return the description of a model at an endpoint, over a new connection, or why there is none."""
    transport = AsyncTransport(url, credentials)
    try:
        found = await transport.infer(model, EMPTY_REQUEST, ["description"], seconds=seconds)
        return parse_description(found["description"], url)
    except EndpointError as error:
        return error
    finally:
        await transport.close()


async def _ask_all(
    urls: Sequence[Url], model: str, credentials: Credentials | None, policy: RetryPolicy
) -> list[DescriptionOrError]:
    """Request the descriptions of all endpoints at once, as `atomsieve.remote.workers.request_descriptions` does."""
    tasks = [asyncio.create_task(_ask(url, model, credentials, policy.deadline)) for url in urls]
    try:
        done, late = await asyncio.wait(tasks, timeout=min(policy.probe, policy.deadline))
        while late and all(isinstance(task.result(), EndpointError) for task in done):
            more, late = await asyncio.wait(late, return_when="FIRST_COMPLETED")
            done |= more
        pairs = zip(tasks, urls, strict=True)
        return [task.result() if task in done else DeadlineExceeded(f"{url}: no answer yet") for task, url in pairs]
    finally:
        for task in tasks:
            task.cancel()
