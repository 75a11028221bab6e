"""Which chunk each rank has at hand, kept where it outlives the rank; and from it, which chunks may have killed one.

A rank writes the number of its chunk into a slot of its own in one small file before it begins, one write of 32 bytes
without waiting for the disk. A process that is killed leaves what it has written to the kernel, so at the next start
the slots tell what was at hand; only a machine that dies as a whole can forget. Once all is computed the file goes.

What was at hand when a run died is suspected: every rank of a job dies with the first, so most are innocent. Suspects
are computed last, in a process of their own (see `suspects`), where a death is seen by who survives it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import struct
import zlib
from collections.abc import Container
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from atomsieve.screen.failures import translate_loss
from atomsieve.screen.results.disk_errors import disk_errors
from atomsieve.screen.results.files import ResultsFolder, write_whole

log = logging.getLogger(__name__)

SLOT = struct.Struct("<qiiQ8x")  # chunk + 1 (0 for none), deaths so far, whether in a process of its own, checksum
TOLD = 1
"""In the slot before the first rank's: a rank ended by an error that it told, so nothing is held against any chunk."""
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What is held against a chunk.

    Attributes
    ----------
    deaths : processes that ended while they computed it, itself or all of a job.
    interrupted : jobs that died while a process of its own computed it: that proves little.
    """

    deaths: int = 0
    interrupted: int = 0


def encode(chunk: int | None, deaths: int = 0, apart: bool = False) -> bytes:
    """Return the bytes of a slot."""
    body = struct.pack("<qii", -1 if chunk is None else chunk, deaths, apart)
    return SLOT.pack(0 if chunk is None else chunk + 1, deaths, apart, zlib.crc32(body))


def decode(data: bytes) -> tuple[int, int, bool] | None:
    """Return chunk, deaths and whether apart, None for an empty, torn or damaged slot."""
    if len(data) != SLOT.size:
        return None
    number, deaths, apart, checksum = SLOT.unpack(data)
    if number < 1 or checksum != zlib.crc32(struct.pack("<qii", number - 1, deaths, apart)):
        return None
    return number - 1, deaths, bool(apart)


def at_hand(data: bytes) -> list[tuple[int, int, bool]]:
    """Return what the slots of a file say, nothing if the run that wrote it ended by an error that it told."""
    slots = [decode(data[k : k + SLOT.size]) for k in range(0, len(data), SLOT.size)]
    if slots and slots[0] is not None and slots[0][0] == TOLD:
        return []
    return [slot for slot in slots[1:] if slot is not None]


def read_records(folder: ResultsFolder) -> tuple[dict[int, Record], str | None]:
    """Return what earlier starts held against chunks, and the digest of the slots that it was last taken from.

    A file that is not readable as such counts as none.
    """
    try:
        found = json.loads(folder.deaths.read_text())
        return {int(chunk): Record(**record) for chunk, record in found["chunks"].items()}, found.get("slots")
    except FileNotFoundError:
        return {}, None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not readable (%s) and is left out", folder.deaths, error)
        return {}, None


def write_records(folder: ResultsFolder, records: dict[int, Record], slots: str) -> None:
    """Keep what is held against chunks, and the digest of the slots; no file where nothing is held."""
    if not records:
        folder.deaths.unlink(missing_ok=True)
        return
    chunks = {str(chunk): asdict(records[chunk]) for chunk in sorted(records)}
    plain = {"format": FORMAT, "slots": slots, "chunks": chunks}
    write_whole(folder.deaths, (json.dumps(plain, indent=1) + "\n").encode())


def suspects(folder: ResultsFolder, done: Container[int]) -> dict[int, Record]:
    """Take over what a run that died has left, on one rank before any begins; return what is held against chunks.

    done : chunks that are durable, which clears them.
    """
    known, taken = read_records(folder)
    records = {chunk: record for chunk, record in known.items() if chunk not in done}
    try:
        data = folder.at_hand.read_bytes()
    except FileNotFoundError:
        data = b""
    digest = hashlib.sha256(data).hexdigest()
    found = [] if digest == taken else at_hand(data)  # a start that was killed in here has counted these already
    newest = {slot[0]: slot for slot in sorted(found)}  # a rank of several slots may name a chunk in two
    for chunk, deaths, apart in newest.values():
        if chunk in done:
            continue
        before = records.get(chunk, Record())
        deaths = max(deaths, before.deaths)
        records[chunk] = Record(deaths, before.interrupted + 1) if apart else Record(deaths + 1, before.interrupted)
    with disk_errors(folder.path):
        write_records(folder, records, digest)
        # a new file of one slot: no rank has begun. Its number makes it another file than that of any earlier start
        folder.at_hand.write_bytes(encode(None, secrets.randbits(31)))
    return records


class Journal:
    """The slots of one rank; a context manager around all that may kill it. Enter it after `suspects` on every rank.

    path : the file of all slots; without one nothing is written. rank : of this process.
    places : chunks that a rank may have at hand at once, and slots that each rank has.
    """

    def __init__(self, path: Path | None = None, rank: int = 0, places: int = 1) -> None:
        self._path, self._slots, self._begun = path, range(1 + rank * places, 1 + (rank + 1) * places), 0
        self._handle: int | None = None
        self._last = b""
        self._told = False

    def __enter__(self) -> Journal:
        if self._path is not None:
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        return self

    def begin(self, chunk: int, deaths: int = 0, apart: bool = False) -> None:
        """Say that this rank begins a chunk.

        deaths : what is held against it already. apart : a process of its own computes it.
        """
        data = encode(chunk, deaths, apart)
        if self._path is None or self._told or data == self._last:  # who reads a chunk and who computes it may begin it
            return
        with disk_errors(self._path.parent):
            self._put(self._slots[self._begun % len(self._slots)], data)
        self._begun, self._last = self._begun + 1, data
        if self._told:  # the signal came while it was written
            self._forget()

    def clear(self) -> None:
        """Say that this rank has nothing at hand."""
        self._last = b""
        for slot in self._slots:
            self._put(slot, encode(None))

    def told(self) -> None:
        """Say that this rank was asked to end: whatever ends it from now on, its chunks are not to blame.

        It is called once a signal came: a batch system may not wait for as long as the run would. Other ranks speak for
        themselves, since a launcher may send this signal because one of them was killed, and its chunk is to be found.
        """
        if not self._told and self._handle is not None:
            self._told = True
            self._forget()

    def _forget(self) -> None:
        with suppress(OSError):  # then an innocent chunk is computed apart, which is no harm
            self.clear()

    def _put(self, slot: int, data: bytes) -> None:
        if self._handle is not None:
            os.pwrite(self._handle, data, slot * SLOT.size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the slots: this process lives. If an error ends it, the others are not suspected of anything either.

        Raises
        ------
        DeviceLost, PeerLost
            in the place of an error that says so; then the slots stay as they are.
        """
        if self._handle is None:
            return
        lost = translate_loss(error)
        try:
            if lost is None:
                self.clear()
                if kind is not None:
                    self._put(0, encode(TOLD))
        except OSError:  # what matters more is told by now
            log.debug("the journal cannot be cleared", exc_info=True)
        os.close(self._handle)
        self._handle = None
        if lost is not None:
            raise lost from error
