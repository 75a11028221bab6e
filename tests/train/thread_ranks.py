"""Ranks of a training that are threads of one process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from atomsieve.train.distributed import ProcessGroup


class Ranks(ProcessGroup):
    """A rank of several that are threads."""

    def of(self, board, meet):
        object.__setattr__(self, "_board", board)
        object.__setattr__(self, "_meet", meet)
        return self

    def all_gather(self, value):
        self._board[self.rank] = value
        self._meet.wait(60)
        found = list(self._board)
        self._meet.wait(60)
        return found


def on_threads(size, work):
    """Return what `work(group)` gives or raises on every rank."""
    board, meet = [None] * size, threading.Barrier(size)

    def run(rank):
        try:
            return work(Ranks(rank, size, torch.device("cpu")).of(board, meet))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
