"""The results folder: what lies where, the row store and the forces file.

    results/
      run.json           what was asked and of what: input, ensemble, options, columns with units, chunk and batch rules
      rows.npy           one record per structure and head, in input order
      forces.npy         [N,3] float32 eV/Angstrom ([N,H,3] for H heads), if asked for
      top.csv            the best rows
      summary.json       counts, rates, time per stage, versions
      run.log.jsonl      events with their time
      ledger/NNNNN.ledger  durable chunks, per rank
      cascade.json       rules, bounds and outcome of a precision cascade; cascade/NNNNN.notes what each chunk gave
      lock.json          while a run is at work
      local.json         while results of `--local` lie on the nodes' own disks
      at_hand.bin        until the run is complete: the chunk that each rank is at
      deaths.json        while there are chunks that may have killed a rank: what is held against them

`rows.npy`, `forces.npy` and `top.csv` are the same bytes whatever the number of ranks, and whether or not the run was
broken off on the way. Every chunk has a fixed place in them, so ranks write side by side and nothing is assembled at
the end. Until the last chunk is durable the files are called `*.npy.part`: a name without `.part` promises that every
row is there.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.screen.results import ledger
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.columns import ROW
from atomsieve.structures.manifest import sync_folder

HEADER = 4096  # bytes before the data of our .npy files: chunks then begin on pages
BLOCK = 1 << 22  # bytes read at once where a file is checked


@dataclass(frozen=True)
class Folder:
    """Names inside a results folder."""

    path: Path

    run = property(lambda self: self.path / "run.json")
    rows = property(lambda self: self.path / "rows.npy")
    forces = property(lambda self: self.path / "forces.npy")
    top = property(lambda self: self.path / "top.csv")
    summary = property(lambda self: self.path / "summary.json")
    log = property(lambda self: self.path / "run.log.jsonl")
    ledger = property(lambda self: self.path / "ledger")
    bounds = property(lambda self: self.path / "cascade.json")
    cascade = property(lambda self: self.path / "cascade")
    lock = property(lambda self: self.path / "lock.json")
    local = property(lambda self: self.path / "local.json")
    at_hand = property(lambda self: self.path / "at_hand.bin")
    deaths = property(lambda self: self.path / "deaths.json")

    def ours(self) -> bool:
        """Tell whether a screening run made this folder."""
        return self.run.is_file() or self.ledger.is_dir()

    def sweep(self) -> None:
        """Remove half-written drafts of small files that a run left when it was killed; who holds the lock may."""
        for name in (self.run, self.top, self.summary, self.local, self.bounds, self.deaths):
            for draft in self.path.glob(f".{name.name}.[0-9]*"):
                draft.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what a run wrote, the manifest last, and nothing else; the lock stays."""
        for path in sorted(self.ledger.glob("*.ledger")):
            path.unlink()
        for name in (self.rows, self.forces):
            part_of(name).unlink(missing_ok=True)
            name.unlink(missing_ok=True)
        for path in self.cascade.glob("*.notes"):
            path.unlink()
        for name in (self.at_hand, self.deaths, self.bounds, self.top, self.summary, self.log, self.local, self.run):
            name.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Return the name of a file that is not complete yet."""
    return path.with_name(path.name + ".part")


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return the header of a .npy file (format 1.0), padded to `HEADER` bytes."""
    text = repr({"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}).encode()
    room = HEADER - len(npy.magic(1, 0)) - 2
    return npy.magic(1, 0) + room.to_bytes(2, "little") + text + b" " * (room - len(text) - 1) + b"\n"


GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
AGAIN = "run the same command again to continue"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in GONE or not path.is_dir():
            said = f"the folder {path} or a file in it is gone (moved or deleted while it was written)"
            raise AtomSieveError(f"{said}; finished chunks are safe where they are: put it back and {AGAIN}") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
            raise AtomSieveError(
                f"no space left for results in {path} ({free / 1e6:.3f} MB free); finished chunks are safe: make room "
                f"and {AGAIN}"
            ) from error
        limit = " (a limit on the size of files: ulimit -f, or the file system's own)"
        raise AtomSieveError(
            f"cannot write results in {path}: {error.strerror}{limit if error.errno == errno.EFBIG else ''}; finished "
            f"chunks are safe: mend it and {AGAIN}"
        ) from error


@dataclass(frozen=True)
class ResultFile:
    """One of our .npy files with a fixed place for every chunk.

    Attributes
    ----------
    path : its name when complete.
    shape, dtype : of the whole array.
    bounds : bytes after the header at which chunk k begins, given k (k up to the number of chunks).
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    bounds: Callable[[int], int]

    @property
    def nbytes(self) -> int:
        """Size of the complete file."""
        return HEADER + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def prepare(self) -> None:
        """Have a `.part` file of the full size; a file that is there keeps its bytes."""
        part = part_of(self.path)
        if self.path.exists() and not part.exists():
            os.rename(self.path, part)
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            header = npy_header(self.shape, self.dtype)
            whole = os.fstat(handle).st_size == self.nbytes and os.pread(handle, len(header), 0) == header
            if not whole:  # a complete file is not touched: its time of change says when it was computed
                os.pwrite(handle, header, 0)
                os.ftruncate(handle, self.nbytes)
                os.fsync(handle)
        finally:
            os.close(handle)

    def missing_bytes(self) -> int:
        """Return the bytes that the disk must still find for this file."""
        for path in (part_of(self.path), self.path):
            if path.exists():
                return max(self.nbytes - path.stat().st_blocks * 512, 0)
        return self.nbytes

    def crc(self, handle: int, chunk: int, tap: Callable[[bytes], None] | None = None) -> int:
        """Return the crc32 of a chunk's bytes; `tap` gets them too, in one piece."""
        start, stop = HEADER + self.bounds(chunk), HEADER + self.bounds(chunk + 1)
        if tap is not None:
            data = bytes_of(handle, start, stop)
            tap(data)
            return zlib.crc32(data)
        return crc_of(handle, start, stop)

    def complete(self) -> None:
        """Give the file its final name."""
        with disk_errors(self.path.parent):
            os.rename(part_of(self.path), self.path)
            sync_folder(self.path.parent)


def bytes_of(handle: int, start: int, stop: int) -> bytes:
    """Return the bytes `start:stop` of an open file, or what there is of them; one read gives 2 GiB at most."""
    return b"".join(os.pread(handle, min(BLOCK, stop - at), at) for at in range(start, stop, BLOCK))


def crc_of(handle: int, start: int, stop: int) -> int:
    """Return the crc32 of the bytes `start:stop` of an open file."""
    value = 0
    for offset in range(start, stop, BLOCK):
        value = zlib.crc32(os.pread(handle, min(BLOCK, stop - offset), offset), value)
    return value


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that it is seen whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path.parent):
        try:
            with open(draft, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def row_file(folder: Folder, chunks: Chunks, heads: int) -> ResultFile:
    """Return the row store of `chunks` with `heads` rows per structure."""
    return ResultFile(folder.rows, (chunks.n * heads,), ROW, lambda k: chunks.start(k) * heads * ROW.itemsize)


def forces_file(folder: Folder, atom_bounds: NDArray[np.int64], heads: int) -> ResultFile:
    """Return the forces file; `atom_bounds [C+1]` are the atoms before each chunk."""
    n, dtype = int(atom_bounds[-1]), np.dtype("<f4")
    shape = (n, 3) if heads == 1 else (n, heads, 3)
    return ResultFile(folder.forces, shape, dtype, lambda k: int(atom_bounds[k]) * heads * 3 * dtype.itemsize)


class ResultWriter:
    """Writes chunks to their places, and enters them in this rank's ledger once the disk has them."""

    def __init__(self, folder: Folder, rows: ResultFile, forces: ResultFile | None, rank: int, commit_seconds: float):
        self.folder, self.rows, self.forces = folder, rows, forces
        self._ledger = folder.ledger / f"{rank:05d}.ledger"
        self._handles: list[int] = []
        self._waiting: list[ledger.Entry] = []
        self._interval, self._last = commit_seconds, time.monotonic()

    def __enter__(self) -> ResultWriter:
        files = [f for f in (self.rows, self.forces) if f is not None]
        with disk_errors(self.folder.path):
            self._handles = [os.open(part_of(f.path), os.O_RDWR) for f in files]
        return self

    def put(self, chunk: int, rows: NDArray[Any], forces: NDArray[np.float32] | None, seconds: float) -> None:
        """Write one chunk; it is durable after the next `commit`, which comes by itself every few seconds."""
        codes, counts = np.unique(rows["status"], return_counts=True)
        with disk_errors(self.folder.path):
            entry = ledger.Entry(
                chunk=chunk,
                rows=_write(self._handles[0], self.rows, chunk, rows),
                forces=None
                if self.forces is None or forces is None
                else _write(self._handles[1], self.forces, chunk, forces),
                structures=int(rows["position"][-1] - rows["position"][0] + 1),
                status=dict(zip(codes.tolist(), counts.tolist(), strict=True)),
                time=round(time.time(), 3),
                seconds=round(seconds, 6),
                forces_at=None if self.forces is None else (self.forces.bounds(chunk), self.forces.bounds(chunk + 1)),
            )
        self._waiting.append(entry)
        self.commit_if_due()

    def commit_if_due(self) -> None:
        """Commit if the last time is long enough ago."""
        if self._waiting and time.monotonic() - self._last >= self._interval:
            self.commit()

    def commit(self) -> None:
        """Sync the data, then the ledger lines that speak of it."""
        if self._waiting:
            with disk_errors(self.folder.path):
                for handle in self._handles:
                    os.fdatasync(handle)
                    if os.fstat(handle).st_nlink == 0:  # deleted: what was written is lost as soon as it is closed
                        raise FileNotFoundError(errno.ENOENT, "deleted")
                ledger.append(self._ledger, self._waiting)
            self._waiting = []
        self._last = time.monotonic()

    def flush(self) -> None:
        """Leave nothing behind that was put."""
        self.commit()

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None:
                self.flush()
        finally:
            for handle in self._handles:
                os.close(handle)


def _write(handle: int, file: ResultFile, chunk: int, array: NDArray[Any]) -> int:
    data = np.ascontiguousarray(array, file.dtype).tobytes()
    start, stop = file.bounds(chunk), file.bounds(chunk + 1)
    if len(data) != stop - start:
        raise AtomSieveError(
            f"{file.path}: chunk {chunk} has {len(data)} bytes, its place {stop - start}; "
            "the input changed while it was read"
        )
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], HEADER + start + done)
    return zlib.crc32(data)
