"""Several batches on one GPU at once: while one computes, the next is copied, gets its list, or comes back."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from atomsieve.structures import StructureBatch

LANES = 2
"""Batches at work at once on a GPU; not yet measured on one."""


class Lanes:
    """A predictor whose batches are worked on by a few threads, on a GPU each with a stream of its own.

    Otherwise it is that predictor. Every batch is computed as it would be alone, so results do not depend on the
    number of lanes; the memory that batches take does.

    Parameters
    ----------
    predictor : computes in this process. lanes : number of threads.
    """

    def __init__(self, predictor: Any, lanes: int = LANES) -> None:
        self._predictor, self.lanes = predictor, lanes
        self._here = threading.local()
        self._pool = ThreadPoolExecutor(lanes, "lane")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def __call__(self, *given: Any, **more: Any) -> Any:
        """Evaluate a batch at once, in the calling thread."""
        return self._predictor(*given, **more)

    def submit(self, batch: StructureBatch, want: set[str], head: str | None = None) -> Future[Any]:
        """Evaluate a batch when a lane is free."""
        return self._pool.submit(self._evaluate, batch, want, head)

    def _evaluate(self, batch: StructureBatch, want: set[str], head: str | None) -> Any:
        with self._stream():
            return self._predictor(batch, want, head=head)

    def _stream(self) -> Any:
        device = self._predictor.device
        if str(device).partition(":")[0] != "cuda":
            return nullcontext()
        import torch

        if not hasattr(self._here, "stream"):
            self._here.stream = torch.cuda.Stream(device)
        return torch.cuda.stream(self._here.stream)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop batches that no lane has begun, and wait for the others."""
        self._pool.shutdown(wait=True, cancel_futures=True)
