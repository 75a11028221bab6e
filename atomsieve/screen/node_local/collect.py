"""Collects the results that an ended run left on the disks of nodes; all processes work at once."""

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
from atomsieve.screen.node_local.writer import Carrier, LocalStore, find_key, read_key
from atomsieve.screen.results import ledger, run_record
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.files import ResultsFolder, partial_path
from atomsieve.screen.results.npy_file import ArrayFiles, members_file, row_file


@dataclass(frozen=True)
class Collected:
    """Results that were copied to a results folder.

    Attributes
    ----------
    places : folders on nodes that held results of the run.
    chunks, structures : copied now.
    damaged : chunks whose bytes on a node do not fit their checksums; they are computed again.
    """

    places: int = 0
    chunks: int = 0
    structures: int = 0
    damaged: int = 0


@dataclass(frozen=True)
class CollectReport:
    """The outcome of `screen collect`: results copied `now`, and the durable chunks of the `count` in all."""

    now: Collected
    durable: int
    count: int
    rank: int


def count_sharers(comm: Communicator, store: LocalStore | None) -> tuple[int, int, int]:
    """Return how many processes share a store, which of them this one is, and the number of stores in all."""
    token = None if store is None else store.token
    tokens = comm.all_gather(token)
    same = [rank for rank, other in enumerate(tokens) if other == token]
    return len(same), same.index(comm.rank), len(set(tokens) - {None})


def copy_stores(comm: Communicator, store: LocalStore | None, carrier: Carrier, durable: Container[int]) -> Collected:
    """Copy all chunks in the stores of the ranks to the results folder; the same answer on every rank.

    durable : chunks that are in the results folder already.
    """
    sharers, mine, _ = count_sharers(comm, store)
    comm.run_on_all(_repair_ledger, store if mine == 0 else None)  # torn ends are cut off before any rank appends
    copied = comm.all_gather(comm.run_on_all(_copy_own, store, carrier, durable, sharers, mine))
    places, found, lost = zip(*copied, strict=True)
    brought = np.unique(np.concatenate(found), axis=0)  # a chunk may lie on two nodes, if it was computed twice
    damaged = np.setdiff1d(np.concatenate(lost), brought[:, 0])
    return Collected(sum(places), len(brought), int(brought[:, 1].sum()), len(damaged))


def _repair_ledger(store: LocalStore | None) -> None:
    if store is not None:
        ledger.read(store.folder.ledger, repair=True)


def _copy_own(
    store: LocalStore | None, carrier: Carrier, durable: Container[int], sharers: int, mine: int
) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Copy this rank's share of a store; return whether it held anything, (chunk, structures) [n,2], damaged chunks."""
    if store is None:
        return 0, np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    known = ledger.read(store.folder.ledger)
    wanted = sorted(chunk for chunk in known if chunk not in durable)[mine::sharers]
    damaged = _copy_entries(store, carrier, [known[chunk][-1] for chunk in wanted])
    lost = {entry.chunk for entry in damaged}
    found = [(chunk, known[chunk][-1].structures) for chunk in wanted if chunk not in lost]
    place = int(mine == 0 and bool(known))
    return place, np.array(found, np.int64).reshape(-1, 2), np.array(sorted(lost), np.int64)


def _copy_entries(store: LocalStore, carrier: Carrier, entries: Sequence[ledger.Entry]) -> list[ledger.Entry]:
    """Copy chunks from a store; return those that are damaged there."""
    if not entries:
        return []
    sources: list[int] = []
    try:
        for path in carrier.paths:
            sources.append(os.open(store.folder.path / path.name, os.O_RDONLY))
        return carrier.carry(entries, sources)
    except FileNotFoundError:  # the ledger is there and the data is not: it was deleted to free space
        return list(entries)
    finally:
        for source in sources:
            os.close(source)


def collect(results: str | Path, place: str | Path, comm: Communicator | None = None) -> CollectReport:
    """Copy the chunks that an ended run left below `place`, on the nodes of these ranks, to its results folder.

    Raises
    ------
    AtomSieveError
        if a run is at work there, if it has nothing on nodes, or if nothing of it lies below `place` on any of these.
    """
    comm, folder, place = comm or connect_ranks(), ResultsFolder(Path(results)), Path(place)
    with guard_ranks(comm, translate_loss), ExitStack() as stack:
        record = comm.run_on_first(run_record.read, folder)
        chunks, heads = Chunks.of(record), len(record["heads"])
        key = comm.run_on_first(_lock_run, folder, place, stack)
        rows = row_file(folder, chunks, heads)
        count = int(record["options"].get("members", 0))
        members = members_file(folder, chunks, heads, count) if count else None
        carrier = Carrier(folder, rows, bool(record["options"]["forces"]), comm.rank, members)
        durable = comm.run_on_first(_read_durable, folder)
        found = LocalStore.at(place, key).path.is_dir()
        store = comm.run_on_all(_open_store, place if found else None, key, folder.path)
        if not any(comm.all_gather(found)):
            comm.run_on_all(_refuse_empty, place, key)
        now = copy_stores(comm, store, carrier, set(durable.tolist()))
        if store is not None:
            store.remove()
        return CollectReport(now, len(durable) + now.chunks, chunks.count, comm.rank)


def _open_store(place: Path | None, key: str, results: Path) -> LocalStore | None:
    return None if place is None else LocalStore.open(place, key, results)


def _read_durable(folder: ResultsFolder) -> NDArray[np.int64]:
    return np.array(sorted(ledger.read(folder.ledger, repair=True)), np.int64)


def _lock_run(folder: ResultsFolder, place: Path, stack: ExitStack) -> str:
    """Lock the results folder; return the key of its run."""
    if folder.rows.exists() and not partial_path(folder.rows).exists():
        raise AtomSieveError(f"{folder.path} is complete; there is nothing to collect")
    if not place.is_dir() and not folder.local.exists():
        raise AtomSieveError(f"there is no folder {place}; name the --local of the run")
    stack.enter_context(PathLock(folder.lock))
    key = read_key(folder)
    if key is None:
        raise AtomSieveError(f"{folder.path} is of a run without --local; there is nothing to collect")
    return key


def _refuse_empty(place: Path, key: str) -> None:
    raise AtomSieveError(
        f"nothing of this run lies in {place} (looked for atomsieve-{key}); name the --local of the run, and start "
        "this on the nodes where it ran"
    )


def open_stores(
    comm: Communicator,
    place: Path,
    folder: ResultsFolder,
    files: ArrayFiles,
    durable: Collection[int],
    count: int,
) -> tuple[LocalStore, Carrier, Collected]:
    """Open the stores of a run below `place`, and copy the chunks that an earlier part of the run left in them.

    files : those of the results folder that hold a place for every chunk. durable : chunks that are in the
    results folder already, of `count` in all.
    """
    key = comm.run_on_first(find_key, folder)
    store = comm.run_on_all(LocalStore.open, place, key, folder.path)
    carrier = Carrier(folder, files.rows, files.forces is not None, comm.rank, files.members)
    collected = copy_stores(comm, store, carrier, durable)
    stores = count_sharers(comm, store)[2]
    left = 1.0 - (len(durable) + collected.chunks) / count
    comm.run_on_all(store.require_room, list(files.kept.values()), stores, left)
    return store, carrier, collected
