"""From the disks of the nodes to the results folder: what an ended run left there, by all processes at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.runs.lock import PathLock
from atomsieve.runs.mpi import Communicator, connect_ranks, guard_ranks
from atomsieve.screen.failures import translate_loss
from atomsieve.screen.node_local.writer import Carrier, LocalStore, key_of
from atomsieve.screen.results import ledger
from atomsieve.screen.results import run_record as manifest
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.files import ResultsFolder, partial_path
from atomsieve.screen.results.npy_file import ResultFile, row_file


@dataclass(frozen=True)
class Collected:
    """What was brought to a results folder.

    Attributes
    ----------
    places : folders on nodes that held results of the run.
    chunks, structures : brought now.
    damaged : chunks whose bytes on a node do not fit their checksums; they are computed again.
    """

    places: int = 0
    chunks: int = 0
    structures: int = 0
    damaged: int = 0


@dataclass(frozen=True)
class Report:
    """What `screen collect` says: what it brought, and how much of the run is in the results folder now."""

    now: Collected
    durable: int
    count: int
    rank: int


def sharing(comm: Communicator, store: LocalStore | None) -> tuple[int, int, int]:
    """Return how many processes share a store, which of them this is, and how many stores there are in all."""
    token = None if store is None else store.token
    tokens = comm.all_gather(token)
    same = [rank for rank, other in enumerate(tokens) if other == token]
    return len(same), same.index(comm.rank), len(set(tokens) - {None})


def bring(comm: Communicator, store: LocalStore | None, carrier: Carrier, durable: Container[int]) -> Collected:
    """Bring all that lies in the stores of the comm to the results folder; the same answer on every rank.

    durable : chunks that are in the results folder already.
    """
    sharers, mine, _ = sharing(comm, store)

    def mend() -> None:
        if store is not None and mine == 0:
            ledger.read(store.folder.ledger, repair=True)

    comm.run_on_all(mend)  # torn ends are cut off before anybody appends

    def work() -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        if store is None:
            return 0, np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
        known = ledger.read(store.folder.ledger)
        wanted = sorted(chunk for chunk in known if chunk not in durable)[mine::sharers]
        damaged = _carried(store, carrier, [known[chunk][-1] for chunk in wanted])
        lost = {entry.chunk for entry in damaged}
        found = [(chunk, known[chunk][-1].structures) for chunk in wanted if chunk not in lost]
        place = int(mine == 0 and bool(known))
        return place, np.array(found, np.int64).reshape(-1, 2), np.array(sorted(lost), np.int64)

    places, found, lost = zip(*comm.all_gather(comm.run_on_all(work)), strict=True)
    brought = np.unique(np.concatenate(found), axis=0)  # a chunk may lie on two nodes, if it was computed twice
    damaged = np.setdiff1d(np.concatenate(lost), brought[:, 0])
    return Collected(sum(places), len(brought), int(brought[:, 1].sum()), len(damaged))


def _carried(store: LocalStore, carrier: Carrier, entries: Sequence[ledger.Entry]) -> list[ledger.Entry]:
    if not entries:
        return []
    sources: list[int] = []
    try:
        for path in carrier.paths:
            sources.append(os.open(store.folder.path / path.name, os.O_RDONLY))
        return carrier.carry(entries, sources)
    except FileNotFoundError:  # the ledger is there and the data is not: somebody made room
        return list(entries)
    finally:
        for source in sources:
            os.close(source)


def collect(results: str | Path, place: str | Path, comm: Communicator | None = None) -> Report:
    """Bring what an ended run left below `place`, on the nodes of this comm, to its results folder.

    Raises
    ------
    AtomSieveError
        if a run is at work there, if it has nothing on nodes, or if nothing of it lies below `place` on any of these.
    """
    comm, folder, place = comm or connect_ranks(), ResultsFolder(Path(results)), Path(place)
    with guard_ranks(comm, translate_loss), ExitStack() as stack:
        described = comm.run_on_first(lambda: manifest.read(folder))
        chunks, heads = Chunks.of(described), len(described["heads"])
        key = comm.run_on_first(lambda: _begin(folder, place, stack))
        rows = row_file(folder, chunks, heads)
        carrier = Carrier(folder, rows, bool(described["options"]["forces"]), comm.rank)
        durable = comm.run_on_first(lambda: np.array(sorted(ledger.read(folder.ledger, repair=True)), np.int64))
        found = LocalStore.at(place, key).path.is_dir()
        store = comm.run_on_all(lambda: LocalStore.open(place, key, folder.path) if found else None)
        if not any(comm.all_gather(found)):
            comm.run_on_all(lambda: _nothing(place, key))
        now = bring(comm, store, carrier, set(durable.tolist()))
        if store is not None:
            store.remove()
        return Report(now, len(durable) + now.chunks, chunks.count, comm.rank)


def _begin(folder: ResultsFolder, place: Path, stack: ExitStack) -> str:
    """Lock the results folder; return the key of its run."""
    if folder.rows.exists() and not partial_path(folder.rows).exists():
        raise AtomSieveError(f"{folder.path} is complete; there is nothing to collect")
    if not place.is_dir() and not folder.local.exists():
        raise AtomSieveError(f"there is no folder {place}; name the --local of the run")
    stack.enter_context(PathLock(folder.lock))
    key = key_of(folder, make=False)
    if key is None:
        raise AtomSieveError(f"{folder.path} is of a run without --local; there is nothing to collect")
    return key


def _nothing(place: Path, key: str) -> None:
    raise AtomSieveError(
        f"nothing of this run lies in {place} (looked for atomsieve-{key}); name the --local of the run, and start "
        "this on the nodes where it ran"
    )


def resume(
    comm: Communicator,
    place: Path,
    folder: ResultsFolder,
    files: Sequence[ResultFile],
    durable: Collection[int],
    count: int,
) -> tuple[LocalStore, Carrier, Collected]:
    """Open the stores of a run below `place`, and bring what an earlier part of the run left in them.

    files : the row store and, if there is one, the forces file of the results folder. durable : chunks that are in the
    results folder already, of `count` in all.
    """
    key = comm.run_on_first(lambda: key_of(folder, make=True))
    assert key is not None
    store = comm.run_on_all(lambda: LocalStore.open(place, key, folder.path))
    carrier = Carrier(folder, files[0], len(files) > 1, comm.rank)
    brought = bring(comm, store, carrier, durable)
    stores = sharing(comm, store)[2]
    left = 1.0 - (len(durable) + brought.chunks) / count
    comm.run_on_all(lambda: store.require_room(files, stores, left))
    return store, carrier, brought
