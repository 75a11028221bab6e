"""Where training structures are held: in memory when they fit, else read in blocks of a file with a small cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures import StructureBatch, StructureReader
from atomsieve.train.data.catalog import Catalog
from atomsieve.train.data.label_scales import ForceSums

BLOCK = 256
"""Structures of one file that are read together when the data are not held in memory."""
CACHED_BLOCKS = 64
BYTES_PER_ATOM = 49
BYTES_PER_STRUCTURE = 250
READ = 5000


class Store:
    """Structures by catalogue index.

    Parameters
    ----------
    catalog : the kept structures; indices given to `fetch` are its rows.
    readers : the open files.
    limit_bytes : size up to which all of them are held in memory.
    """

    def __init__(self, catalog: Catalog, readers: Sequence[StructureReader], limit_bytes: float) -> None:
        self.catalog = catalog
        self._readers = readers
        size = int(catalog.n_atoms.sum()) * BYTES_PER_ATOM + len(catalog) * BYTES_PER_STRUCTURE
        self.in_memory = size <= limit_bytes
        self._cache: OrderedDict[tuple[int, int], StructureBatch] = OrderedDict()
        self._lock = threading.Lock()  # a reader gives wrong data when two threads use it at once
        self._all = self._read_all() if self.in_memory else None

    @property
    def block(self) -> int:
        """Structures that should be visited close to each other: 1 if the order costs nothing."""
        return 1 if self.in_memory else BLOCK

    def _read_all(self) -> StructureBatch:
        parts = []
        for file, reader in enumerate(self._readers):
            rows = self.catalog.row[self.catalog.file == file]
            for start in range(0, len(reader), READ):
                inside = rows[(rows >= start) & (rows < start + READ)]
                if len(inside):
                    parts.append(reader.read(start, min(start + READ, len(reader))).take(inside - start))
        return StructureBatch.concatenate(parts)

    def fetch(self, index: NDArray[np.int64]) -> StructureBatch:
        """Return the structures `index` in that order; `head` holds the head of the model, not of the file."""
        if self._all is not None:
            batch = self._all.take(index)
        else:
            with self._lock:
                batch = self._fetch_blocks(index)
        return batch.replace(head=self.catalog.head[index])

    def _fetch_blocks(self, index: NDArray[np.int64]) -> StructureBatch:
        file, row = self.catalog.file[index].astype(np.int64), self.catalog.row[index].astype(np.int64)
        keys, which = np.unique(np.stack([file, row // BLOCK], axis=1), axis=0, return_inverse=True)
        which = which.reshape(-1)
        order = np.argsort(which, kind="stable")  # blocks one after another, back in place by the last `take`
        ends = np.cumsum(np.bincount(which, minlength=len(keys)))
        parts = [
            self._block(number, block).take(row[own] - block * BLOCK)
            for (number, block), own in zip(keys.tolist(), np.split(order, ends[:-1]), strict=True)
        ]
        return StructureBatch.concatenate(parts).take(np.argsort(order, kind="stable"))

    def _block(self, file: int, number: int) -> StructureBatch:
        key = (file, number)
        if key not in self._cache:
            reader = self._readers[file]
            self._cache[key] = reader.read(number * BLOCK, min((number + 1) * BLOCK, len(reader)))
            while len(self._cache) > CACHED_BLOCKS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def force_sums(self, chosen: NDArray[np.bool_]) -> list[ForceSums]:
        """Return the sums of force and stress sizes over the structures `chosen`, for each head."""
        n = len(self.catalog.sources)
        totals = np.zeros((n, 6))
        index = np.flatnonzero(chosen & (self.catalog.has_forces | self.catalog.has_stress))
        for start in range(0, len(index), READ):
            batch = self.fetch(index[start : start + READ])
            head = self.catalog.head[index[start : start + READ]]
            if batch.forces is not None and batch.has_forces is not None:
                use = batch.has_forces[batch.structure_of_atom]
                owner, forces = head[batch.structure_of_atom][use], batch.forces[use]
                norm = np.linalg.norm(forces, axis=1)
                values = (np.ones(len(owner)), norm, norm**2, np.abs(forces).sum(1))
                for column, value in enumerate(values):
                    totals[:, column] += np.bincount(owner, weights=value, minlength=n)
            if batch.stress is not None and batch.has_stress is not None:
                use = batch.has_stress
                totals[:, 4] += np.bincount(head[use], minlength=n)
                size = np.linalg.norm(batch.stress[use], axis=(1, 2))
                totals[:, 5] += np.bincount(head[use], weights=size, minlength=n)
        return [ForceSums(int(t[0]), t[1], t[2], t[3], int(t[4]), t[5]) for t in totals]
