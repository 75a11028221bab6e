"""The .npy files of a results folder: one fixed place for every chunk, which any rank can write by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.runs.hashing import compute_crc
from atomsieve.runs.output_files import disk_errors, sync_folder
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.files import ResultsFolder, partial_path

HEADER = 4096  # bytes before the data of our .npy files: chunks then begin on pages
BLOCK = 1 << 22  # bytes read at once where a file is checked
FORCE = np.dtype("<f4")
"""The dtype of `forces.npy`."""
REMEDY = "run the screening again"
MEMBER = np.dtype("<f4")
"""The dtype of `members.npy`."""


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return the header of a .npy file (format 1.0), padded to `HEADER` bytes."""
    text = repr({"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}).encode()
    room = HEADER - len(npy.magic(1, 0)) - 2
    return npy.magic(1, 0) + room.to_bytes(2, "little") + text + b" " * (room - len(text) - 1) + b"\n"


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
        """Make a `.part` file of the full size; an existing file keeps its bytes."""
        part = partial_path(self.path)
        if self.path.exists() and not part.exists():
            os.rename(self.path, part)
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            header = npy_header(self.shape, self.dtype)
            whole = os.fstat(handle).st_size == self.nbytes and os.pread(handle, len(header), 0) == header
            if not whole:  # a complete file is not touched: its modification time is that of the computation
                os.pwrite(handle, header, 0)
                os.ftruncate(handle, self.nbytes)
                os.fsync(handle)
        finally:
            os.close(handle)

    def missing_bytes(self) -> int:
        """Return the bytes that this file still needs on the disk."""
        for path in (partial_path(self.path), self.path):
            if path.exists():
                return max(self.nbytes - path.stat().st_blocks * 512, 0)
        return self.nbytes

    def crc(self, handle: int, chunk: int) -> int:
        """Return the crc32 of a chunk's bytes."""
        return compute_crc(handle, HEADER + self.bounds(chunk), HEADER + self.bounds(chunk + 1))

    def complete(self) -> None:
        """Give the file its final name."""
        with disk_errors(self.path.parent):
            os.rename(partial_path(self.path), self.path)
            sync_folder(self.path.parent)


def read_bytes(handle: int, start: int, stop: int) -> bytes:
    """Return the bytes `start:stop` of an open file, fewer where it ends; the kernel reads 2 GiB at most at once."""
    return b"".join(os.pread(handle, min(BLOCK, stop - at), at) for at in range(start, stop, BLOCK))


def row_file(folder: ResultsFolder, chunks: Chunks, heads: int) -> ResultFile:
    """Return the row store of `chunks` with `heads` rows per structure."""
    return ResultFile(folder.rows, (chunks.n * heads,), ROW, lambda k: chunks.start(k) * heads * ROW.itemsize)


def forces_file(folder: ResultsFolder, atom_bounds: NDArray[np.int64], heads: int) -> ResultFile:
    """Return the forces file; `atom_bounds [C+1]` are the atoms before each chunk."""
    n, dtype = int(atom_bounds[-1]), np.dtype("<f4")
    shape = (n, 3) if heads == 1 else (n, heads, 3)
    return ResultFile(folder.forces, shape, dtype, lambda k: int(atom_bounds[k]) * heads * 3 * dtype.itemsize)


def members_file(folder: ResultsFolder, chunks: Chunks, heads: int, members: int) -> ResultFile:
    """Return the file of the energies of `members` members; `heads` rows per structure."""
    width = heads * members * MEMBER.itemsize
    return ResultFile(folder.members, (chunks.n * heads, members), MEMBER, lambda k: chunks.start(k) * width)


@dataclass(frozen=True)
class ArrayFiles:
    """The files of a run that hold a place for every chunk; None where one is not kept."""

    rows: ResultFile
    forces: ResultFile | None = None
    members: ResultFile | None = None

    @property
    def kept(self) -> dict[str, ResultFile]:
        """The files that are kept, by the name that their checksums have in the ledger."""
        every = {"rows": self.rows, "forces": self.forces, "members": self.members}
        return {name: file for name, file in every.items() if file is not None}

    def replace_paths(self, files: Sequence[ResultFile]) -> ArrayFiles:
        """Return these files elsewhere: `files` are those of `kept`, in its order."""
        return ArrayFiles(**dict(zip(self.kept, files, strict=True)))


class ChunkArrays(NamedTuple):
    """The arrays of a chunk of S structures with N atoms, for H heads and K members; None where one is not kept.

    rows : [S*H]. forces : [N,3], or [N,H,3] for several heads, eV/Angstrom.
    members : [S*H,K] eV/atom, energy of each member minus that of the row; NaN where the row has no result.
    """

    rows: NDArray[Any]
    forces: NDArray[np.float32] | None = None
    members: NDArray[np.float32] | None = None


def require_size(path: Path, expected: int, by: str, *, least: bool = False) -> int:
    """Return the size of a file, after checking that it has `expected` bytes, or more with `least`.

    by : what states the size, for the message.

    Raises
    ------
    DataError
        if it has another size, or is missing.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} is gone; {REMEDY}") from error
    if size < expected or (size > expected and not least):
        raise DataError(f"{path} has {size} bytes, {by} {expected}; {REMEDY}")
    return size
