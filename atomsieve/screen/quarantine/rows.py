"""Rows of structures that are not computed, because computing them ended the process again and again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.predict.packing import is_out_of_memory
from atomsieve.screen.engine.runner import OK, failed
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.columns import blank_rows
from atomsieve.screen.results.files import ResultFile

POISONED = 12  # of atomsieve.predict.status.Status, checked by a test
NO_ID = -1


class DeviceLost(AtomSieveError):  # noqa: N818 - what happened, in two words
    """The GPU no longer answers this process: only another process can go on, so this is the death of it."""

    exit_code = 70


@dataclass(frozen=True, order=True)
class SetAside:
    """Structures of one chunk with the status POISONED: the first position, the last, and how many they are."""

    first: int
    last: int
    structures: int


class PeerLost(AtomSieveError):  # noqa: N818 - what happened, in two words
    """Another rank can no longer be reached: the job is dying, and a new one can go on."""

    exit_code = 70


def device_lost(error: BaseException | None) -> bool:
    """Tell whether an error is one after which every call to the GPU fails, such as an illegal memory access."""
    if not isinstance(error, RuntimeError) or "CUDA error: " not in str(error):
        return False
    return "out of memory" not in str(error) and not is_out_of_memory(error)


def peer_lost(error: BaseException | None) -> bool:
    """Tell whether an error is one of MPI: a rank that calls the others finds one of them dead."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(error, mpi.Exception)


def lost_with(error: BaseException | None) -> AtomSieveError | None:
    """Return what to raise in the place of an error that is a death of the job, None for any other."""
    for found, kind, what in ((device_lost, DeviceLost, "the GPU"), (peer_lost, PeerLost, "MPI")):
        if found(error):
            first = str(error).splitlines()[0]
            return kind(f"{what} failed ({first}); run the same command again to continue")
    return None


def poisoned(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows with the status POISONED; those that say already why they have no result keep their status."""
    rows = failed(rows)
    rows["status"][rows["status"] == OK] = POISONED
    return rows


def whole_chunk(
    first: int, end: int, heads: int, ids: NDArray[np.int64] | None, natoms: NDArray[np.int64] | None
) -> NDArray[Any]:
    """Return the rows [S*H] of a chunk of which nothing is computed; `ids` and `natoms` [S] are None where unknown."""
    rows = blank_rows((end - first) * heads).reshape(end - first, heads)
    rows["position"] = np.arange(first, end)[:, None]
    rows["id"] = NO_ID if ids is None else ids[:, None]
    rows["natoms"] = 0 if natoms is None else natoms[:, None]
    rows["head"] = np.arange(heads)
    return poisoned(rows.reshape(-1))


def no_forces(file: ResultFile | None, chunk: int) -> NDArray[np.float32] | None:
    """Return NaN in the place of a chunk's forces, None where forces are not kept."""
    if file is None:
        return None
    size = (file.bounds(chunk + 1) - file.bounds(chunk)) // file.dtype.itemsize
    return np.full(size, np.nan, "<f4").reshape(-1, *file.shape[1:])


def set_aside(rows: NDArray[Any]) -> SetAside:
    """Return what of the rows of a chunk is POISONED; at least one must be."""
    positions = np.unique(rows["position"][rows["status"] == POISONED])
    return SetAside(int(positions[0]), int(positions[-1]), len(positions))


def told(found: Iterable[SetAside], chunks: Chunks) -> list[str]:
    """Return a line for each chunk of which something was set aside."""
    lines = []
    for part in sorted(set(found)):
        chunk = int(np.searchsorted(chunks.starts(), part.first, side="right")) - 1
        one = part.structures == 1
        between = f"position {part.first:,}" if one else f"positions {part.first:,} to {part.last:,}"
        lines.append(f"{part.structures:,} structure{'' if one else 's'} of chunk {chunk:,} ({between})")
    return lines
