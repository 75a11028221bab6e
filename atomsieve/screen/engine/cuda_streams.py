"""Several batches on one GPU at once: while one computes, the next is copied, gets its list, or comes back."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from atomsieve.predict.interface import Capabilities
from atomsieve.predict.packing import is_out_of_memory
from atomsieve.structures import StructureBatch

LANES = 2
"""Batches at work at once on a GPU; not yet measured on one."""


class Lanes:
    """A predictor whose batches are worked on by a few threads, on a GPU each with a stream of its own.

    Otherwise it is that predictor. Every batch is computed as it would be alone, so results do not depend on the
    number of lanes; the memory that batches take does. A call, as for a batch that did not fit beside another, has the
    device to itself.

    Parameters
    ----------
    predictor : computes in this process. lanes : number of threads.
    """

    def __init__(self, predictor: Any, lanes: int = LANES) -> None:
        self._predictor, self.lanes = predictor, lanes
        self._here = threading.local()
        self._pool = ThreadPoolExecutor(lanes, "lane")
        self._turn, self._working, self._alone = threading.Condition(), 0, False
        if self._on_gpu:
            import torch

            torch.cuda.synchronize(predictor.device)  # weights are in place before a stream of a lane reads them

    @property
    def _on_gpu(self) -> bool:
        return str(self._predictor.device).partition(":")[0] == "cuda"

    @property
    def capabilities(self) -> Capabilities:
        """Those of the predictor, with several batches on their way."""
        inner: Capabilities = self._predictor.capabilities
        return replace(inner, asynchronous=True, streams=self.lanes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._predictor, name)

    def __call__(self, *given: Any, **more: Any) -> Any:
        """Evaluate a batch in the calling thread, when no lane is at work."""
        with self._turn:
            self._turn.wait_for(lambda: not self._alone)
            self._alone = True
        try:
            with self._turn:
                self._turn.wait_for(lambda: self._working == 0)
            return self._predictor(*given, **more)
        finally:
            with self._turn:
                self._alone = False
                self._turn.notify_all()

    def submit(self, batch: StructureBatch, want: set[str], head: str | None = None) -> Future[Any]:
        """Evaluate a batch when a lane is free."""
        return self._pool.submit(self._evaluate, batch, want, head)

    def _evaluate(self, batch: StructureBatch, want: set[str], head: str | None) -> Any:
        with self._turn:
            self._turn.wait_for(lambda: not self._alone)
            self._working += 1
        try:
            with self._stream():
                return self._predictor(batch, want, head=head)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = str(error)
        finally:
            with self._turn:
                self._working -= 1
                self._turn.notify_all()
        raise MemoryError(said)  # a new one: the old one's traceback holds the tensors

    def _stream(self) -> Any:
        if not self._on_gpu:
            return nullcontext()
        import torch

        if not hasattr(self._here, "stream"):
            self._here.stream = torch.cuda.Stream(self._predictor.device)
        return torch.cuda.stream(self._here.stream)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop batches that no lane has begun, and wait for the others."""
        self._pool.shutdown(wait=True, cancel_futures=True)
