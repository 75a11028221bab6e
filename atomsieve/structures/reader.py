"""Reads structures by global index from a dataset folder, a bare BP5 directory, or HydraGNN's BP files.

    with open_structures("candidates.bp") as reader:
        for batch in reader.iter_batches(10_000):
            ...

A reader may be pickled, forked and used from several threads: each process and thread opens its own files.
"""

from __future__ import annotations

import os
import threading
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.bp5 import Bp5Reader
from atomsieve.structures.fields import FIELDS
from atomsieve.structures.manifest import NAME, Manifest, SourceInfo, crc32_of, is_ours, load_manifest, sha256_of

OPEN_PARTS = 16
COUNTS_KEPT = 64
"""Steps whose atom counts stay in memory, so that neighbouring reads do not read them again."""


class _Open(threading.local):
    """What one thread of one process holds open."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.parts: OrderedDict[int, Bp5Reader] = OrderedDict()
        self.counts: OrderedDict[int, NDArray[np.int64]] = OrderedDict()


class StructureReader(ABC):
    """Structures by global index, whatever the files look like. Make one with `open_structures`.

    Attributes
    ----------
    path : what was opened.
    sources : the sources; field `head` is an index into it.
    fields : names of the fields that the files hold, `ptr` and the required ones always among them.
    notes : free text by name that came with the files.
    n_atoms : atoms of all structures.
    step_structures, step_atoms : [T] int64, sizes of the steps: the natural units of work.
    """

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

    # -- what a kind of file must offer ---------------------------------------------------------------------------

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

    # -- what a user has -----------------------------------------------------------------------------------------

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
        for name in names:
            field = FIELDS[name]
            dtype = self._positions if name == "positions" else field.dtype
            out[name] = np.empty(field.shape(stop - start, int(ptr[-1])), dtype)
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
        """Close what this thread holds open; a later read opens it again."""
        for part in self._here.parts.values():
            part.close()
        self._here.parts.clear()
        self._here.counts.clear()

    def __enter__(self) -> StructureReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- shared machinery ----------------------------------------------------------------------------------------

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


class ManifestReader(StructureReader):
    """Reads a dataset folder written by `StructureWriter`; every byte that is used is verified first."""

    def __init__(self, path: Path, verify: str, copies: Path | None = None) -> None:
        manifest = load_manifest(path)
        steps = [(k, j, row) for k, part in enumerate(manifest.parts) for j, row in enumerate(part.steps)]
        wide = any(part.positions == "float64" for part in manifest.parts) or not manifest.parts
        super().__init__(
            path,
            [SourceInfo(row.name, row.level_of_theory) for row in manifest.sources],
            {name for part in manifest.parts for name in part.fields},
            np.array([row.structures for _, _, row in steps], np.int64),
            np.array([row.atoms for _, _, row in steps], np.int64),
            np.dtype(np.float64 if wide else np.float32),
            manifest.notes,
        )
        self.manifest = manifest
        self.verify = verify
        self.copied = _whole_parts(manifest, copies)
        self._copies = copies
        self._steps = steps
        self._sound = np.zeros(len(steps), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return ManifestReader, (self.path, self.verify, self._copies)

    def part_of(self, structure: int) -> int:
        """Return the number of the part that holds a structure."""
        return self._steps[int(np.searchsorted(self._first, structure, side="right")) - 1][0]

    def _folder(self, part: int) -> Path:
        """Return where a part is read from."""
        near = self._copies is not None and part in self.copied
        return (self._copies if near and self._copies is not None else self.path) / self.manifest.parts[part].path

    def identity(self) -> str:
        """Return the checksum of the manifest, which holds those of the files."""
        return self.manifest.checksum()

    def verify_all(self, progress: Any = None) -> None:
        """Verify every byte of the dataset; `progress`, if given, is called with the number of bytes after each step.

        Raises
        ------
        DataError
            naming the first damaged file.
        """
        for step, (part, _, row) in enumerate(self._steps):
            self._part(part)
            self._check_step(step)
            self._step_counts(step)
            if progress is not None:
                progress(row.end)

    def _open_part(self, part: int) -> Bp5Reader:
        row, folder = self.manifest.parts[part], self._folder(part)
        for name, file in row.files.items():
            if file.sha256 and sha256_of(folder / name) != file.sha256:
                raise DataError(f"{folder / name} is damaged (its checksum does not fit); copy or write it again")
        opened = Bp5Reader(folder)
        variables = opened.variables()
        for name in ("natoms", *row.fields[1:]):
            if variables.get(name, 0) != len(row.steps):
                raise DataError(
                    f"{folder} has {variables.get(name, 0)} steps of {name!r}, the manifest says {len(row.steps)}"
                )
        return opened

    def _check_step(self, step: int) -> None:
        """Verify the bytes of a step before the first use of its data."""
        if self._sound[step]:
            return
        part, place, row = self._steps[step]
        data = self._folder(part) / "data.0"
        start = self._steps[step - 1][2].end if place else 0
        if self.verify == "full" and crc32_of(data, start, row.end) != row.crc32:
            raise DataError(f"{data} is damaged (bytes {start} to {row.end}, step {place}); copy or write it again")
        self._sound[step] = True

    def _read_counts(self, step: int) -> NDArray[np.int64]:
        part, place, row = self._steps[step]
        data = self._folder(part) / "data.0"
        if not data.is_file() or data.stat().st_size < row.end:  # reading what is not there would hang
            raise DataError(f"{data} was truncated or removed after it was opened; copy or write it again")
        counts = self._part(part).read("natoms", place, 0, row.structures)
        if self.verify == "full" and zlib.crc32(np.ascontiguousarray(counts).tobytes()) != row.counts_crc32:
            raise DataError(f"{self.path}: the atom counts of step {step} are damaged; copy or write the files again")
        return counts

    def _read_rows(self, step: int, name: str, structures: tuple[int, int], atoms: tuple[int, int]) -> NDArray[Any]:
        part, place, _ = self._steps[step]
        field = FIELDS[name]
        first, last = atoms if field.axis == "atom" else structures
        if name not in self.manifest.parts[part].fields:
            return np.full((last - first, *field.trailing), field.missing, field.dtype)
        opened = self._part(part)
        self._check_step(step)
        rows = opened.read(name, place, first, last - first)
        return rows != 0 if field.dtype == bool else rows


def _whole_parts(manifest: Manifest, copies: Path | None) -> frozenset[int]:
    """Return the parts of which a folder holds a copy whose files have the right sizes; their bytes are verified later.

    Raises
    ------
    DataError
        if there is no such folder: a typing error would otherwise go unnoticed.
    """
    if copies is None:
        return frozenset()
    if not copies.is_dir():
        raise DataError(f"{copies} is no folder; name the one that holds copies of parts, or leave it out")

    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else -1

    return frozenset(
        number
        for number, part in enumerate(manifest.parts)
        if all(size(copies / part.path / name) == row.size for name, row in part.files.items())
    )


def open_structures(
    path: str | Path,
    *,
    verify: str = "full",
    label: str = "all",
    restore_energies: bool = True,
    timeout: float = 60.0,
    copies: str | Path | None = None,
) -> StructureReader:
    """Open structures for reading by global index.

    Parameters
    ----------
    path
        a dataset folder of ours, a bare BP5 directory in our variable names, or a BP directory of HydraGNN.
    verify
        "full" verifies the bytes of each step before their first use; "size" only sizes and metadata.
    label
        of HydraGNN's files: "trainset", "valset", "testset", or "all" (those there are, in this order).
    restore_energies
        of HydraGNN's files: add the linear regression over the composition back that was taken off.
    copies
        folder that holds copies of some parts of a dataset folder under their names, on a disk that is nearer: they are
        read there, and verified as the originals are.
    timeout
        seconds that looking into files that are not ours may take; it happens in a process of its own, since damaged
        files make the library hang or crash.

    Raises
    ------
    DataError
        if it is not there, not such files, incomplete or damaged.
    """
    path = Path(path)
    if verify not in ("full", "size"):
        raise unknown("verify", verify, ("full", "size"))
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        hint = f"; {partial.name} beside it is unfinished: its writer was stopped" if partial.exists() else ""
        raise DataError(f"{path} does not exist{hint}")
    if not path.is_dir():
        raise DataError(f"{path} is a file, not a dataset folder; 'atomsieve data convert {path} OUT.bp' makes one")
    if is_ours(path):
        return ManifestReader(path, verify, None if copies is None else Path(copies))
    if copies is not None:
        raise UsageError(f"{path} is no dataset folder of parts, so there are no copies of parts; leave them out")
    if (path / "md.idx").exists() or (path / "data.0").exists():
        from atomsieve.structures.third_party_bp import open_foreign

        return open_foreign(path, label=label, restore_energies=restore_energies, timeout=timeout)
    if (path / NAME).exists():
        return ManifestReader(path, verify)  # says what is wrong with it
    raise DataError(f"{path} is neither a dataset folder ({NAME} is missing) nor a BP5 directory (md.idx is missing)")
