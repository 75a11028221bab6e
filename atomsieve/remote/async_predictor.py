"""AsyncRemotePredictor: the same client for asyncio, over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from atomsieve.errors import UsageError, require
from atomsieve.predict.prediction import Prediction
from atomsieve.remote.endpoints import TEMPORARY, Endpoint, Policy, Pool, Tries, description_of, parse_urls
from atomsieve.remote.requests import Arrays, Described, Job
from atomsieve.remote.transport import (
    PURPOSE,
    Broken,
    Credentials,
    DeadlineExceeded,
    EndpointError,
    Url,
    answer_arrays,
    grpc_options,
    kind_of,
    request_options,
)
from atomsieve.remote.workers import EMPTY, Closed, Found
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
            raise kind_of(self.url, error) from error
        finally:
            self._users -= 1
            if self._retired and not self._users:
                await self.close()
        return answer_arrays(self.url, found, outputs)

    async def retire(self) -> None:
        """Give the connection up as soon as nobody waits for an answer over it."""
        self._retired = True
        if not self._users:
            await self.close()

    async def close(self) -> None:
        """Give the connection up; requests that are on their way are cancelled."""
        await self._client.close()


class AsyncRemotePredictor(Described):
    """`RemotePredictor` for one event loop: `await AsyncRemotePredictor.connect(...)`, `await predictor(batch)`.

    Many calls may be under way at once; `in_flight` requests of all of them are sent to each endpoint at a time.
    """

    def __init__(
        self, pool: Pool, model: str, head: str | None, credentials: Credentials | None, *, alone: bool
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
        policy = Policy(deadline=deadline, patience=patience, in_flight=in_flight)
        pool = Pool(parse_urls(endpoints), policy)
        pool.admit(await _ask_all([e.url for e in pool.endpoints], model, credentials, policy))
        return AsyncRemotePredictor(pool, model, head, credentials, alone=alone)

    async def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
        max_structure_atoms: int | None = None,
    ) -> Prediction:
        """Evaluate a batch for one head; see `RemotePredictor`. Cancelling the task takes its requests back."""
        if self._closed:
            raise Closed("this predictor is closed; connect again")
        job = self._job(batch, want, head, max_structure_atoms)
        tasks = [self._start(self._in_turn(job, piece)) for piece in job.pieces]
        try:
            return job.prediction(await asyncio.gather(*tasks))
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and not (caller and caller.cancelling()):
                raise Closed from None
            raise
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Give everything up at once: calls that are on their way raise `atomsieve.remote.workers.Closed`."""
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

    async def _in_turn(self, job: Job, piece: NDArray[Any]) -> Arrays:
        async with self._room:
            return await self._carry(job, piece)

    async def _carry(self, job: Job, piece: NDArray[Any]) -> Arrays:
        """Send one request until it is answered."""
        tries, arrays, pool = Tries(), job.arrays(piece), self._pool
        while True:
            endpoint = await self._take(tries)
            outages, url = endpoint.outages, endpoint.url
            try:
                if url not in self._transports:
                    self._transports[url] = AsyncTransport(url, self._credentials)
                transport = self._transports[url]
                answer = await transport.infer(
                    self.model, arrays, job.outputs, job.parameters, seconds=pool.deadline(endpoint)
                )
            except TEMPORARY as error:
                if pool.failed(endpoint, outages, error, tries):
                    self._start(self._recover(endpoint))
                if self._transports.get(url) is transport and not isinstance(error, Broken):
                    del self._transports[url]  # it may be dead without knowing
                    await transport.retire()
                await self._notify()
                pool.check(tries, error)
            except BaseException as error:
                (pool.answered if isinstance(error, EndpointError) else pool.left)(endpoint, tries)
                await self._notify()
                raise
            else:
                pool.answered(endpoint, tries)
                await self._notify()
                return answer

    async def _take(self, tries: Tries) -> Endpoint:
        """Wait for an endpoint that can take a request."""
        try:
            async with self._changed:
                while (endpoint := self._pool.take(tries)) is None:
                    with contextlib.suppress(TimeoutError):  # patience runs out without anything happening
                        await asyncio.wait_for(self._changed.wait(), 0.5)
            return endpoint
        except BaseException:
            self._pool.forget(tries)
            raise

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _recover(self, endpoint: Endpoint) -> None:
        """Ask an endpoint that is out until it is back, and as it was."""
        done = False
        while not done:
            await asyncio.sleep(self._pool.pause(endpoint))
            try:
                found = await _ask(endpoint.url, self.model, self._credentials, self._pool.probe(endpoint))
            except Exception as error:  # without this task the endpoint would never be asked again
                found = Broken(f"{endpoint.url}: cannot be asked ({type(error).__name__}: {error})")
            done = self._pool.probed(endpoint, found)
            await self._notify()


async def _ask(url: Url, model: str, credentials: Credentials | None, seconds: float) -> Found:
    """Return the description that an endpoint gives of a model, over a connection of its own, or why it gives none."""
    transport = AsyncTransport(url, credentials)
    try:
        found = await transport.infer(model, EMPTY, ["description"], seconds=seconds)
        return description_of(found["description"], url)
    except EndpointError as error:
        return error
    finally:
        await transport.close()


async def _ask_all(urls: Sequence[Url], model: str, credentials: Credentials | None, policy: Policy) -> list[Found]:
    """Ask all endpoints at once what they are, as `atomsieve.remote.workers.ask_all` does."""
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
