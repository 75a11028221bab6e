"""Several batches on one GPU at once: while one computes, the next is copied, gets its list, or comes back."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from atomsieve.devices import device_kind
from atomsieve.predict.base import ForwardingPredictor
from atomsieve.predict.interface import AnyPredictor, Capabilities
from atomsieve.predict.packing import is_out_of_memory
from atomsieve.predict.prediction import Prediction
from atomsieve.structures import StructureBatch

if TYPE_CHECKING:
    import torch

    from atomsieve.predict.interface import Builder

STREAMS = 2
"""Batches that are computed at the same time on a GPU; not yet measured on one."""


class _OwnStream(threading.local):
    """The CUDA stream of a thread, made when it is first used."""

    stream: torch.cuda.Stream | None = None


class StreamedPredictor(ForwardingPredictor):
    """A few threads compute submitted batches, on a GPU each thread in its own stream.

    Otherwise it is the predictor that it wraps. Every batch is computed as it would be alone, so results do not depend
    on the number of streams; the memory that batches take does. A call, as for a batch that did not fit while others
    were computed, has the device to itself. A context manager.

    Parameters
    ----------
    predictor : computes in this process. streams : number of threads.
    """

    def __init__(self, predictor: AnyPredictor, streams: int = STREAMS) -> None:
        super().__init__(predictor)
        self._streams, self._own = streams, _OwnStream()
        self._pool = ThreadPoolExecutor(streams, "stream")
        self._turn, self._working, self._alone = threading.Condition(), 0, False
        if self._on_gpu:
            import torch

            torch.cuda.synchronize(predictor.device)  # weights are in place before another stream reads them

    @property
    def _on_gpu(self) -> bool:
        return device_kind(self.inner.device) == "cuda"

    @property
    def capabilities(self) -> Capabilities:
        """Those of the predictor, with several batches at the same time."""
        return replace(self.inner.capabilities, asynchronous=True, streams=self._streams)

    def __call__(
        self,
        batch: StructureBatch,
        want: Collection[str],
        head: str | None = None,
        *,
        max_structure_atoms: int | None = None,
        build: Builder | None = None,
    ) -> Prediction:
        """Evaluate a batch in the calling thread, while no submitted one is computed."""
        with self._turn:
            self._turn.wait_for(lambda: not self._alone)
            self._alone = True
        try:
            with self._turn:
                self._turn.wait_for(lambda: self._working == 0)
            return super().__call__(batch, want, head, max_structure_atoms=max_structure_atoms, build=build)
        finally:
            with self._turn:
                self._alone = False
                self._turn.notify_all()

    def submit(self, batch: StructureBatch, want: Collection[str], head: str | None = None) -> Future[Prediction]:
        """Evaluate a batch when a thread is free."""
        return self._pool.submit(self._evaluate, batch, want, head)

    def _evaluate(self, batch: StructureBatch, want: Collection[str], head: str | None) -> Prediction:
        with self._turn:
            self._turn.wait_for(lambda: not self._alone)
            self._working += 1
        try:
            with self._stream():
                return self.inner(batch, want, head)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            text = str(error)
        finally:
            with self._turn:
                self._working -= 1
                self._turn.notify_all()
        raise MemoryError(text)  # a new one: the old one's traceback holds the tensors

    def _stream(self) -> AbstractContextManager[object]:
        if not self._on_gpu:
            return nullcontext()
        import torch

        if self._own.stream is None:
            self._own.stream = torch.cuda.Stream(self.inner.device)
        return torch.cuda.stream(self._own.stream)

    def __enter__(self) -> StreamedPredictor:
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop batches that no thread has begun, and wait for the others."""
        self._pool.shutdown(wait=True, cancel_futures=True)
