"""Markers of the chunks that ranks are computing; they outlive a rank, and so show which chunks may have killed one.

Before a rank begins a chunk it writes the chunk's number into its slot of one small file: one write of 32 bytes,
without waiting for the disk. The kernel keeps the bytes that a killed process has written, so the next start reads from
the slots which chunks were in flight; only a machine that dies as a whole can lose them. The file is removed once
all chunks are computed.

Chunks in flight when a run died are suspects. Most are harmless, because all ranks of a job die with the first one.
Suspects are computed last, each in a separate process (`atomsieve.screen.quarantine`), so that its rank survives.
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

from atomsieve.runs.output_files import disk_errors
from atomsieve.runs.output_folder import write_output
from atomsieve.screen.failures import translate_loss
from atomsieve.screen.results.files import ResultsFolder

log = logging.getLogger(__name__)

SLOT = struct.Struct("<qiiQ8x")  # chunk + 1 (0 for none), deaths so far, whether it is isolated, checksum
EXPLAINED = 1
"""In the first slot of the file, which no rank has: a reported error ended the run, so no chunk is suspect."""
FORMAT = 1


@dataclass(frozen=True)
class DeathRecord:
    """The deaths that a chunk may have caused.

    Attributes
    ----------
    deaths : processes that ended while they computed it, in isolation or as one of the ranks of a job.
    interrupted : jobs that died while the chunk was computed in isolation, which proves little.
    """

    deaths: int = 0
    interrupted: int = 0


@dataclass(frozen=True)
class Marker:
    """The content of a slot: a chunk in flight, its deaths so far, and whether a separate process computes it."""

    chunk: int
    deaths: int = 0
    isolated: bool = False


def encode_slot(chunk: int | None, deaths: int = 0, isolated: bool = False) -> bytes:
    """Return the bytes of a slot; `chunk` is None for an empty one."""
    body = struct.pack("<qii", -1 if chunk is None else chunk, deaths, isolated)
    return SLOT.pack(0 if chunk is None else chunk + 1, deaths, isolated, zlib.crc32(body))


def decode_slot(data: bytes) -> Marker | None:
    """Return the marker in a slot, None for an empty, torn or damaged one."""
    if len(data) != SLOT.size:
        return None
    number, deaths, isolated, checksum = SLOT.unpack(data)
    if number < 1 or checksum != zlib.crc32(struct.pack("<qii", number - 1, deaths, isolated)):
        return None
    return Marker(number - 1, deaths, bool(isolated))


def decode_markers(data: bytes) -> list[Marker]:
    """Return the markers in the content of a slot file, none if the run that wrote it ended by a reported error."""
    slots = [decode_slot(data[k : k + SLOT.size]) for k in range(0, len(data), SLOT.size)]
    if slots and slots[0] is not None and slots[0].chunk == EXPLAINED:
        return []
    return [slot for slot in slots[1:] if slot is not None]


def read_deaths(folder: ResultsFolder) -> tuple[dict[int, DeathRecord], str | None]:
    """Return the deaths per chunk that earlier starts counted, and the digest of the slots counted last.

    A file that is not readable counts as none.
    """
    try:
        found = json.loads(folder.deaths.read_text())
        return {int(chunk): DeathRecord(**record) for chunk, record in found["chunks"].items()}, found.get("slots")
    except FileNotFoundError:
        return {}, None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not readable (%s) and is left out", folder.deaths, error)
        return {}, None


def write_deaths(folder: ResultsFolder, records: dict[int, DeathRecord], slots: str) -> None:
    """Store the deaths per chunk and the digest of the slots they were counted from; no file where there are none."""
    if not records:
        folder.deaths.unlink(missing_ok=True)
        return
    chunks = {str(chunk): asdict(records[chunk]) for chunk in sorted(records)}
    plain = {"format": FORMAT, "slots": slots, "chunks": chunks}
    write_output(folder.deaths, (json.dumps(plain, indent=1) + "\n").encode())


def collect_suspects(folder: ResultsFolder, done: Container[int]) -> dict[int, DeathRecord]:
    """Count the markers that a dead run left, and start a new slot file; return the suspects with their deaths.

    One rank calls it, before any rank begins a chunk.

    done : durable chunks, which are no suspects any more.
    """
    known, counted = read_deaths(folder)
    records = {chunk: record for chunk, record in known.items() if chunk not in done}
    try:
        data = folder.at_hand.read_bytes()
    except FileNotFoundError:
        data = b""
    digest = hashlib.sha256(data).hexdigest()
    found = [] if digest == counted else decode_markers(data)  # a start that was killed in here has counted these
    ordered = sorted(found, key=lambda m: (m.chunk, m.deaths, m.isolated))
    newest = {marker.chunk: marker for marker in ordered}  # a rank of several slots may name a chunk in two
    for marker in newest.values():
        if marker.chunk in done:
            continue
        before = records.get(marker.chunk, DeathRecord())
        deaths = max(marker.deaths, before.deaths)
        records[marker.chunk] = (
            DeathRecord(deaths, before.interrupted + 1)
            if marker.isolated
            else DeathRecord(deaths + 1, before.interrupted)
        )
    with disk_errors(folder.path):
        write_deaths(folder, records, digest)
        # a new file of one slot: no rank has begun. Its number makes it another file than that of any earlier start
        folder.at_hand.write_bytes(encode_slot(None, secrets.randbits(31)))
    return records


class InFlightMarkers:
    """The slots of one rank; a context manager around all that may kill it. Enter it after `collect_suspects`.

    path : the file of all slots; None writes nothing. rank : of this process.
    places : chunks that a rank may compute at once, and slots that each rank has.
    """

    def __init__(self, path: Path | None = None, rank: int = 0, places: int = 1) -> None:
        self._path, self._slots, self._begun = path, range(1 + rank * places, 1 + (rank + 1) * places), 0
        self._handle: int | None = None
        self._last = b""
        self._forgiven = False

    def __enter__(self) -> InFlightMarkers:
        if self._path is not None:
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        return self

    def begin(self, chunk: int, deaths: int = 0, isolated: bool = False) -> None:
        """Mark a chunk as in flight on this rank.

        deaths : those that it may have caused so far. isolated : a separate process computes it.
        """
        data = encode_slot(chunk, deaths, isolated)
        if self._path is None or self._forgiven or data == self._last:  # its reader and its runner may both begin it
            return
        with disk_errors(self._path.parent):
            self._write(self._slots[self._begun % len(self._slots)], data)
        self._begun, self._last = self._begun + 1, data
        if self._forgiven:  # the signal came while it was written
            self._clear_quietly()

    def clear(self) -> None:
        """Mark that no chunk is in flight on this rank."""
        self._last = b""
        for slot in self._slots:
            self._write(slot, encode_slot(None))

    def forgive(self) -> None:
        """Clear the slots for good: this rank was asked to end, so its end, however it comes, is no chunk's fault.

        It is called once a signal came, because a batch system may not wait for as long as the run would. Each rank
        clears its own slots alone: a launcher may send the signal because another rank was killed, and the chunk of
        that one must be found.
        """
        if not self._forgiven and self._handle is not None:
            self._forgiven = True
            self._clear_quietly()

    def _clear_quietly(self) -> None:
        with suppress(OSError):  # then a harmless chunk is computed in isolation, which costs time only
            self.clear()

    def _write(self, slot: int, data: bytes) -> None:
        if self._handle is not None:
            os.pwrite(self._handle, data, slot * SLOT.size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the slots, as this process lives; after an error, mark also that the end of the run is explained.

        Raises
        ------
        DeviceLost, PeerLost
            in the place of an error that means the death of the job; then the slots stay as they are.
        """
        if self._handle is None:
            return
        lost = translate_loss(error)
        try:
            if lost is None:
                self.clear()
                if kind is not None:
                    self._write(0, encode_slot(EXPLAINED))
        except OSError:  # the error that led here matters more
            log.debug("the markers cannot be cleared", exc_info=True)
        os.close(self._handle)
        self._handle = None
        if lost is not None:
            raise lost from error
