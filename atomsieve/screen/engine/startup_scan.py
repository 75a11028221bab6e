"""Facts that every rank needs before it begins; the ranks share the reading of ledgers and atom counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.runs.mpi import Communicator
from atomsieve.screen.results import ledger
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.structures import StructureReader

PIECE = 1 << 20  # structures whose atom counts are in memory at once


def read_ledgers(comm: Communicator, folder: ResultsFolder) -> NDArray[Any]:
    """Return the entries of all ledgers (dtype `ledger.KNOWN`), sorted by chunk; torn ends are cut off.

    A chunk that was entered several times has as many entries. The ledgers are shared out among the ranks, and 20
    bytes of each entry go to all. The run's lock must be held.
    """
    names = comm.run_on_first(_list_ledgers, folder)
    own = [folder.ledger / name for name in names[comm.rank :: comm.size]]
    found = np.concatenate(comm.all_gather(comm.run_on_all(ledger.known, own)))
    return found[np.argsort(found["chunk"], kind="stable")]


def _list_ledgers(folder: ResultsFolder) -> list[str]:
    return sorted(path.name for path in folder.ledger.glob("*.ledger"))


def count_atoms_before(comm: Communicator, reader: StructureReader, chunks: Chunks) -> NDArray[np.int64]:
    """Return the atoms before each chunk [C+1], which fix where its forces lie; each rank counts a part."""
    starts = chunks.starts()
    first, stop = np.searchsorted(starts, [chunks.n * (comm.rank + k) // comm.size for k in (0, 1)]).tolist()
    found = np.concatenate(comm.all_gather(comm.run_on_all(_count_atoms, reader, starts[first : stop + 1])))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(found)])


def _count_atoms(reader: StructureReader, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the atoms of the chunks [C] between the positions `starts` [C+1]."""
    atoms = np.zeros(len(starts) - 1, np.int64)
    k = 0
    while k < len(atoms):
        end = max(k + 1, int(np.searchsorted(starts, starts[k] + PIECE, side="right")) - 1)
        ptr = reader.read_arrays(int(starts[k]), int(starts[end]), ())["ptr"]
        atoms[k:end] = np.diff(ptr[starts[k : end + 1] - starts[k]])
        k = end
    return atoms
