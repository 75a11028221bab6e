"""Base class of the readers of BP files: any range of structures, read from the steps that hold it.

A reader may be pickled, forked and used from several threads: each process and thread opens its own files.
"""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.dataset.bp5 import Bp5Reader
from atomsieve.structures.fields import FIELDS
from atomsieve.structures.interface import StructureReader
from atomsieve.structures.source import SourceInfo

OPEN_PARTS = 16
COUNTS_KEPT = 64
"""Steps whose atom counts stay in memory, so that neighbouring reads do not read them again."""


class _Open(threading.local):
    """Files and atom counts that one thread of one process holds open."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.parts: OrderedDict[int, Bp5Reader] = OrderedDict()
        self.counts: OrderedDict[int, NDArray[np.int64]] = OrderedDict()


class FileReader(StructureReader):
    """Structures by global index, for any layout of the files. `open_structures` returns one.

    Attributes
    ----------
    path, sources, fields, n_atoms, parts, copied, reopenable : see `StructureReader`.
    notes : free text by name that came with the files.
    verification : which checks the files allow and which of them were asked for, as a phrase for people.
    step_structures, step_atoms : [T] int64, sizes of the steps: the natural units of work.
    """

    reopenable = True
    verification = "readable; these files carry no checksums"

    def __init__(
        self,
        path: Path,
        sources: list[SourceInfo],
        fields: Iterable[str],
        step_structures: NDArray[np.int64],
        step_atoms: NDArray[np.int64],
        positions: np.dtype,
        notes: dict[str, str],
    ) -> None:
        held = set(fields) | {name for name, field in FIELDS.items() if field.required}
        self.path = path
        self.sources = sources
        self.fields = tuple(name for name in FIELDS if name in held)
        self.notes = notes
        self.step_structures, self.step_atoms = step_structures, step_atoms
        self.n_atoms = int(step_atoms.sum())
        self._first = np.concatenate([[0], np.cumsum(step_structures)]).astype(np.int64)
        self._positions = positions
        self._here = _Open()
        self._counts: NDArray[np.int64] | None = None

    # -- for each kind of file ---------------------------------------------------------------------------

    @abstractmethod
    def _open_part(self, part: int) -> Bp5Reader:
        """Check and open a part."""

    @abstractmethod
    def _read_counts(self, step: int) -> NDArray[np.int64]:
        """Return atoms per structure of a step."""

    @abstractmethod
    def _read_rows(self, step: int, name: str, structures: tuple[int, int], atoms: tuple[int, int]) -> NDArray[Any]:
        """Return the rows of one field for structures and atoms `start, stop` of a step, rows first."""

    @abstractmethod
    def identity(self) -> str:
        """Return a sha256 (hex) that changes when the content changes."""

    # -- for users -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._first[-1])

    def counts(self) -> NDArray[np.int64]:
        """Return atoms per structure [S]; read once, 8 bytes per structure in memory."""
        if self._counts is None:
            steps = [self._step_counts(step) for step in range(len(self.step_structures))]
            counts = np.concatenate(steps) if steps else np.zeros(0, np.int64)
            counts.flags.writeable = False
            self._counts = counts
        return self._counts

    def read(self, start: int, stop: int, fields: Iterable[str] | None = None) -> StructureBatch:
        """Return structures `start:stop` by global index.

        `fields` limits which optional fields are read (default: all that the files hold); required ones always are.

        Raises
        ------
        UsageError
            if the range is not within the file, or a field does not exist.
        DataError
            if the files are damaged.
        """
        required = [name for name, field in FIELDS.items() if field.required]
        chosen = self.fields if fields is None else [*required, *fields]
        return StructureBatch(**self.read_arrays(start, stop, chosen))

    def read_arrays(self, start: int, stop: int, fields: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Return only the named fields of structures `start:stop` (and `ptr`), leaving the others on disk.

        A field that the files lack is left out.
        """
        if not 0 <= start <= stop <= len(self):
            raise UsageError(f"structures {start}:{stop} of {self.path} were asked for, it has {len(self)}")
        wanted = set(fields)
        for name in wanted - set(FIELDS):
            raise unknown("field", name, FIELDS)
        names = [name for name in self.fields if name in wanted and name != "ptr"]
        spans = list(self._spans(start, stop))
        counts = [self._step_counts(step)[a:b] for step, a, b in spans]
        ptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]) if counts else np.zeros(1)
        out: dict[str, NDArray[Any]] = {"ptr": ptr.astype(np.int64)}
        if len(spans) == 1:
            self._read_span(spans[0], names, out)
            return out
        for name in names:
            out[name] = np.empty(FIELDS[name].shape(stop - start, int(ptr[-1])), self._dtype(name))
        done = 0
        for step, a, b in spans:
            before = int(self._step_counts(step)[:a].sum())
            atoms = before, before + int(out["ptr"][done + b - a] - out["ptr"][done])
            for name in names:
                rows = slice(done, done + b - a)
                if FIELDS[name].axis == "atom":
                    rows = slice(int(out["ptr"][done]), int(out["ptr"][done + b - a]))
                found = self._read_rows(step, name, (a, b), atoms)
                out[name][rows] = found.reshape(out[name][rows].shape)
            done += b - a
        return out

    def _read_span(self, span: tuple[int, int, int], names: Sequence[str], out: dict[str, NDArray[Any]]) -> None:
        """Read rows of one step: the arrays are those that the files give, not copied once more."""
        step, a, b = span
        before, size = int(self._step_counts(step)[:a].sum()), int(out["ptr"][-1])
        for name in names:
            found = self._read_rows(step, name, (a, b), (before, before + size))
            shape = FIELDS[name].shape(b - a, size)
            out[name] = np.ascontiguousarray(found.reshape(shape), self._dtype(name))

    def _dtype(self, name: str) -> np.dtype:
        return self._positions if name == "positions" else FIELDS[name].dtype

    def iter_batches(
        self, size: int, start: int = 0, stop: int | None = None, fields: Iterable[str] | None = None
    ) -> Iterator[StructureBatch]:
        """Yield structures `start:stop` in order, `size` at a time."""
        if size < 1:
            raise UsageError(f"batch size must be at least 1, got {size}")
        end = len(self) if stop is None else stop
        chosen = None if fields is None else list(fields)
        for first in range(start, end, size):
            yield self.read(first, min(first + size, end), chosen)

    def close(self) -> None:
        """Close the files of this thread; a later read opens them again."""
        for part in self._here.parts.values():
            part.close()
        self._here.parts.clear()
        self._here.counts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- shared by all kinds ----------------------------------------------------------------------------------------

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (step, first row, last row + 1) that cover structures `start:stop`."""
        step = int(np.searchsorted(self._first, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._first[step + 1]))
            if end > start:
                yield step, start - int(self._first[step]), end - int(self._first[step])
            start, step = end, step + 1

    def _state(self) -> _Open:
        if self._here.pid != os.getpid():  # after a fork: file positions are shared with the parent
            self._here = _Open()
        return self._here

    def _part(self, part: int) -> Bp5Reader:
        """Return an open part; the least recently used one is closed when too many are open."""
        parts = self._state().parts
        if part not in parts:
            parts[part] = self._open_part(part)
            if len(parts) > OPEN_PARTS:
                parts.popitem(last=False)[1].close()
        parts.move_to_end(part)
        return parts[part]

    def _step_counts(self, step: int) -> NDArray[np.int64]:
        if self._counts is not None:
            return self._counts[self._first[step] : self._first[step + 1]]
        kept = self._state().counts
        if step not in kept:
            counts = self._read_counts(step).astype(np.int64)
            if len(counts) and (int(counts.min()) < 0 or int(counts.sum()) != int(self.step_atoms[step])):
                raise DataError(f"{self.path}: the atom counts of step {step} do not add up; the files are damaged")
            kept[step] = counts
            if len(kept) > COUNTS_KEPT:
                kept.popitem(last=False)
        return kept[step]
