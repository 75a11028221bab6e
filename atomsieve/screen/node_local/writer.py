"""Results on the disks of the nodes first, so that the shared file system sees few and large writes.

    DIR/atomsieve-KEY/
      token                 random; processes that read the same token share this folder
      rows.npy.part         the whole row store, of which only the chunks computed here take room (a sparse file)
      forces.npy.part, members.npy.part   likewise
      ledger/NNNNN.ledger   the chunks that are durable here, per rank

A chunk has the same place here as in the results folder, so bringing it there is a copy of bytes and nothing is encoded
again. `local.json` in the results folder holds KEY and the digest of run.json: chunks that a run of other settings, or
discarded results, left on a node are never taken for results of this run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.runs.hashing import compute_crc
from atomsieve.runs.output_files import disk_errors, sync_folder
from atomsieve.runs.output_folder import write_output
from atomsieve.screen.results import ledger
from atomsieve.screen.results.files import ResultsFolder, partial_path
from atomsieve.screen.results.npy_file import BLOCK, HEADER, ArrayFiles, ResultFile
from atomsieve.screen.results.writer import ResultWriter

TOGETHER = 256 << 20  # bytes copied between two ledger writes: after a death in between they are copied again
NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ETXTBSY)
"""Errors of the kernel where it does not copy from one of the two file systems to the other."""
TURN = 0.618  # of the time between two collections, by which each rank is ahead of the one before: never all at once
Place = tuple[int, int]
"""First byte and the byte after the last, header included."""


def read_key(folder: ResultsFolder) -> str | None:
    """Return the KEY of a run, None if it has none that fits its run.json."""
    try:
        found = json.loads(folder.local.read_text())
    except (FileNotFoundError, ValueError):
        found = {}
    fits = isinstance(found, dict) and found.get("run") == _hash_record(folder) and isinstance(found.get("key"), str)
    return str(found["key"]) if fits else None


def find_key(folder: ResultsFolder) -> str:
    """Return the KEY of a run; a new one is made where there is none that fits its run.json."""
    found = read_key(folder)
    if found is not None:
        return found
    key = os.urandom(8).hex()
    write_output(folder.local, (json.dumps({"key": key, "run": _hash_record(folder)}) + "\n").encode())
    return key


def _hash_record(folder: ResultsFolder) -> str:
    return hashlib.sha256(folder.run.read_bytes()).hexdigest()


@dataclass(frozen=True)
class LocalStore:
    """The part of a run that lies on this node.

    Attributes
    ----------
    folder : `DIR/atomsieve-KEY`.
    token : equal for the processes that share it.
    """

    folder: ResultsFolder
    token: str

    @staticmethod
    def at(place: Path, key: str) -> ResultsFolder:
        """Return where the results of a run lie below `place`."""
        return ResultsFolder(place / f"atomsieve-{key}")

    @staticmethod
    def open(place: Path, key: str, results: Path) -> LocalStore:
        """Find or start the folder of a run below `place`.

        Raises
        ------
        AtomSieveError
            if it cannot be written.
        """
        folder = LocalStore.at(place, key)
        if place.absolute() == results.absolute():
            raise AtomSieveError(f"--local {place} is the results folder; name a folder on a disk of the node")
        if not place.is_dir() and (not place.parent.is_dir() or place.absolute().parent == Path("/")):
            raise AtomSieveError(f"--local {place}: there is no such folder; make it on every node, or name another")
        try:
            folder.ledger.mkdir(parents=True, exist_ok=True)
            token = _find_token(folder.path / "token")
        except OSError as error:
            raise AtomSieveError(
                f"cannot keep results in --local {place} ({error.strerror}); name a folder that can be written on "
                "every node, or leave --local out"
            ) from error
        return LocalStore(folder, token)

    def files(self, files: Iterable[ResultFile]) -> list[ResultFile]:
        """Return the files here that have the places of `files`, ready to be written."""
        here = [replace(file, path=self.folder.path / file.path.name) for file in files]
        with disk_errors(self.folder.path):
            for file in here:
                file.prepare()
            sync_folder(self.folder.path)
        return here

    def require_room(self, files: Iterable[ResultFile], nodes: int, left: float) -> None:
        """Raise an error if this disk cannot hold an equal share of the results still to come.

        nodes : disks that share. left : part of the results still to come, 0 to 1.

        Raises
        ------
        AtomSieveError
            naming the bytes that are needed and those that are free.
        """
        needed, taken = 0, 0
        for file in files:
            needed += int(file.nbytes * left) // nodes
            with suppress(FileNotFoundError):
                taken += (self.folder.path / partial_path(file.path).name).stat().st_blocks * 512
        usage = os.statvfs(self.folder.path)
        free = usage.f_bavail * usage.f_frsize
        if needed - taken > free:
            raise AtomSieveError(
                f"no space left for results in {self.folder.path}: an equal share of {nodes} node{'s'[: nodes > 1]} is "
                f"{needed / 1e6:.3f} MB, {free / 1e6:.3f} MB are free; make room, name another --local, or leave it out"
            )

    def remove(self) -> None:
        """Remove the store; several processes may do so at once."""
        shutil.rmtree(self.folder.path, ignore_errors=True)


def _find_token(path: Path) -> str:
    """Return the token of a folder; the first process makes it, and no process sees half of it."""
    draft = path.with_name(f"token.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        draft.write_text(os.urandom(16).hex())
        with suppress(FileExistsError):
            os.link(draft, path)
        return path.read_text()
    finally:
        draft.unlink(missing_ok=True)


def copy(source: int, target: int, place: Place) -> None:
    """Copy the bytes of a place from one open file to the same place of another, by the kernel where it can.

    Raises
    ------
    DataError
        if the source ends before.
    """
    at, stop = place
    kernel = hasattr(os, "copy_file_range")
    while at < stop:
        if kernel:
            try:
                done = os.copy_file_range(source, target, stop - at, at, at)
            except OSError as error:
                if error.errno not in NO_COPY:
                    raise
                kernel = False
                continue
        else:
            done = os.pwrite(target, os.pread(source, min(BLOCK, stop - at), at), at)
        if done == 0:
            raise DataError(f"a file of results ends at byte {at}, {stop} were expected")
        at += done


class Carrier:
    """Copies chunks to the results folder and enters them in a ledger there.

    folder : the results folder. rows : its row store. forces : whether there are forces. members : its file of the
    members, None without one. rank : whose ledger is used.
    """

    def __init__(
        self, folder: ResultsFolder, rows: ResultFile, forces: bool, rank: int, members: ResultFile | None = None
    ) -> None:
        self.folder, self._rows, self._forces, self._members = folder, rows, forces, members
        kept = [folder.rows, *([folder.forces] if forces else []), *([] if members is None else [folder.members])]
        self.paths = [partial_path(path) for path in kept]
        self._ledger = folder.rank_ledger(rank)

    def places(self, entry: ledger.Entry) -> list[Place]:
        """Return where a chunk lies in each file."""
        spans = [(self._rows.bounds(entry.chunk), self._rows.bounds(entry.chunk + 1))]
        if self._forces:
            if entry.forces_at is None:
                raise DataError(f"chunk {entry.chunk} has no forces in the ledger; the run stores them")
            spans.append(entry.forces_at)
        if self._members is not None:
            spans.append((self._members.bounds(entry.chunk), self._members.bounds(entry.chunk + 1)))
        return [(HEADER + start, HEADER + stop) for start, stop in spans]

    def carry(self, entries: Sequence[ledger.Entry], sources: Sequence[int]) -> list[ledger.Entry]:
        """Copy chunks from the open files `sources`, in the order of `paths`; return those that are damaged there.

        A chunk is in the ledger only once the disk has its bytes and they fit its checksums, read back from the copy.
        """
        damaged: list[ledger.Entry] = []
        with disk_errors(self.folder.path):
            targets = [os.open(path, os.O_RDWR) for path in self.paths]
            try:
                for group in self._groups(entries):
                    good: list[ledger.Entry] = []
                    for entry in group:
                        (good if self._copy_chunk(entry, sources, targets) else damaged).append(entry)
                    for target in targets:
                        os.fdatasync(target)
                    if good:
                        ledger.append(self._ledger, good)
            finally:
                for target in targets:
                    os.close(target)
        return damaged

    def _groups(self, entries: Sequence[ledger.Entry]) -> Iterable[list[ledger.Entry]]:
        group: list[ledger.Entry] = []
        size = 0
        for entry in entries:
            group.append(entry)
            size += sum(stop - start for start, stop in self.places(entry))
            if size >= TOGETHER:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _copy_chunk(self, entry: ledger.Entry, sources: Sequence[int], targets: Sequence[int]) -> bool:
        expected = [
            entry.rows,
            *([entry.forces] if self._forces else []),
            *([] if self._members is None else [entry.members]),
        ]
        for place, source, target, crc in zip(self.places(entry), sources, targets, expected, strict=True):
            try:
                if os.fstat(source).st_size < place[1] or compute_crc(source, *place) != crc:
                    return False
            except OSError:  # a sector that cannot be read
                return False
            copy(source, target, place)
            if compute_crc(target, *place) != crc:
                raise AtomSieveError(
                    f"chunk {entry.chunk} does not read back from {self.folder.path} as it was copied there; the disk "
                    "or file system is at fault: run the same command again to continue"
                )
        return True


class LocalWriter(ResultWriter):
    """Writes chunks on this node, and copies them to the results folder now and then and at the end."""

    def __init__(
        self,
        store: LocalStore,
        carrier: Carrier,
        files: ArrayFiles,
        rank: int,
        commit_seconds: float,
        collect_seconds: float,
    ) -> None:
        here = files.replace_paths(store.files(files.kept.values()))
        super().__init__(store.folder, here, rank, commit_seconds)
        self._carrier = carrier
        self._here: list[ledger.Entry] = []  # durable here and not yet there
        self._collect_every = collect_seconds
        self._collected = time.monotonic() - collect_seconds * (rank * TURN % 1.0)

    def commit(self) -> None:
        """Make the chunks that were put durable here; from time to time also in the results folder."""
        waiting = list(self._waiting)
        super().commit()
        self._here += waiting
        if time.monotonic() - self._collected >= self._collect_every:
            self.collect()

    def collect(self) -> None:
        """Copy the chunks that this rank has made durable here to the results folder.

        Raises
        ------
        AtomSieveError
            if the bytes here are not those that were written.
        """
        damaged = self._carrier.carry(self._here, self._handles)
        self._here, self._collected = [], time.monotonic()
        if damaged:
            raise AtomSieveError(
                f"{len(damaged)} chunks do not fit their checksums in {self.folder.path}, among them "
                f"{[entry.chunk for entry in damaged[:5]]}: that disk loses data; run the same command again, they are "
                "computed again"
            )

    def flush(self) -> None:
        """See `ResultWriter.flush`."""
        self.commit()
        self.collect()
