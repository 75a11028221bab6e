"""AsyncRemotePredictor: the same client for asyncio, over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from atomsieve.errors import UsageError, require
from atomsieve.predict.prediction import Prediction
from atomsieve.serve.described import Arrays, Described, Job
from atomsieve.serve.pool import TEMPORARY, Endpoint, Policy, Pool, Tries, description_of, parse_urls
from atomsieve.serve.remote import EMPTY
from atomsieve.serve.transport import (
    PURPOSE,
    Credentials,
    EndpointError,
    Url,
    answer_arrays,
    grpc_options,
    kind_of,
    request_options,
)
from atomsieve.structures.batch import StructureBatch


class AsyncTransport:
    """A connection to one endpoint over gRPC, for the tasks of one event loop."""

    def __init__(self, url: Url, credentials: Credentials | None = None) -> None:
        if not url.grpc:
            raise UsageError(f"{url}: the client of asyncio speaks gRPC alone; give grpc:// or grpcs://")
        self.url, credentials = url, credentials or Credentials()
        self._headers = credentials.headers(url)
        self._module = require("tritonclient.grpc", "serve", PURPOSE)
        client = require("tritonclient.grpc.aio", "serve", PURPOSE).InferenceServerClient
        self._client = client(url.target, **grpc_options(url, credentials))

    async def infer(
        self,
        model: str,
        arrays: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        *,
        seconds: float = 60.0,
    ) -> Arrays:
        """Send tensors and return outputs, as `atomsieve.serve.transport.Transport.infer` does."""
        from tritonclient.utils import InferenceServerException

        asked = request_options(self._module, arrays, outputs, parameters, seconds)
        try:
            found = await self._client.infer(model, **asked, client_timeout=seconds, headers=self._headers)
        except InferenceServerException as error:
            raise kind_of(self.url, error) from error
        return answer_arrays(self.url, found, outputs)

    async def close(self) -> None:
        """Give the connection up."""
        await self._client.close()


class AsyncRemotePredictor(Described):
    """`RemotePredictor` for one event loop: `await AsyncRemotePredictor.connect(...)`, `await predictor(batch)`.

    Many calls may be under way at once; `in_flight` requests of all of them are sent to each endpoint at a time.
    """

    def __init__(
        self, pool: Pool, transports: Mapping[Url, AsyncTransport], model: str, head: str | None, *, alone: bool
    ) -> None:
        super().__init__(pool.description, head, alone=alone)
        self.model = model
        self._pool, self._transports = pool, transports
        self._changed = asyncio.Condition()
        self._room = asyncio.Semaphore(pool.policy.in_flight * len(pool.endpoints))
        self._recovering = {asyncio.create_task(self._recover(e)) for e in pool.endpoints if not e.up}

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
        transports = {e.url: AsyncTransport(e.url, credentials) for e in pool.endpoints}
        try:
            seconds = min(policy.probe, deadline)
            pool.admit(await asyncio.gather(*(_ask(t, model, seconds) for t in transports.values())))
            return AsyncRemotePredictor(pool, transports, model, head, alone=alone)
        except BaseException:
            await asyncio.gather(*(t.close() for t in transports.values()))
            raise

    async def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str] = ("energy", "forces", "spread"),
        head: str | None = None,
        max_structure_atoms: int | None = None,
    ) -> Prediction:
        """Evaluate a batch for one head; see `RemotePredictor`. Cancelling the task takes its requests back."""
        job = self._job(batch, want, head, max_structure_atoms)
        tasks = [asyncio.create_task(self._in_turn(job, piece)) for piece in job.pieces]
        try:
            return job.prediction(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Give the connections up."""
        for task in self._recovering:
            task.cancel()
        await asyncio.gather(*(t.close() for t in self._transports.values()))

    async def __aenter__(self) -> AsyncRemotePredictor:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _in_turn(self, job: Job, piece: NDArray[Any]) -> Arrays:
        async with self._room:
            return await self._carry(job, piece)

    async def _carry(self, job: Job, piece: NDArray[Any]) -> Arrays:
        """Send one request until it is answered."""
        tries, arrays = Tries(), None
        while True:
            endpoint = await self._take(tries)
            outages = endpoint.outages
            arrays = job.arrays(piece) if arrays is None else arrays
            try:
                answer = await self._transports[endpoint.url].infer(
                    self.model, arrays, job.outputs, job.parameters, seconds=self._pool.policy.deadline
                )
            except TEMPORARY as error:
                if self._pool.failed(endpoint, outages, error, tries):
                    task = asyncio.create_task(self._recover(endpoint))
                    self._recovering.add(task)
                    task.add_done_callback(self._recovering.discard)
                await self._notify()
                self._pool.check(tries, error)
            except BaseException:
                self._pool.answered(endpoint)
                await self._notify()
                raise
            else:
                self._pool.answered(endpoint)
                await self._notify()
                return answer

    async def _take(self, tries: Tries) -> Endpoint:
        """Wait for an endpoint that can take a request."""
        async with self._changed:
            while (endpoint := self._pool.take(tries)) is None:
                with contextlib.suppress(TimeoutError):  # patience runs out without anything happening
                    await asyncio.wait_for(self._changed.wait(), 0.5)
        return endpoint

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _recover(self, endpoint: Endpoint) -> None:
        """Ask an endpoint that is out until it is back, and as it was."""
        while True:
            await asyncio.sleep(self._pool.pause(endpoint))
            found = await _ask(self._transports[endpoint.url], self.model, self._pool.policy.probe)
            done = self._pool.probed(endpoint, found)
            await self._notify()
            if done:
                return


async def _ask(transport: AsyncTransport, model: str, seconds: float) -> Mapping[str, Any] | EndpointError:
    """Return the description that an endpoint gives of a model, or why it gives none."""
    try:
        found = await transport.infer(model, EMPTY, ["description"], seconds=seconds)
        return description_of(found["description"], transport.url)
    except EndpointError as error:
        return error
