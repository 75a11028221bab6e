r"""The ledger: which chunks are durable. Append-only text, one file per rank, every line with its checksum.

A line is `crc32 json\n`, the checksum over the JSON text. A line is written, and synced, after the data of its chunk.
A torn last line (the process died while writing) is cut off; any other bad line is ignored, and its chunk is computed
again.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

KNOWN = np.dtype([("chunk", "<i8"), ("rows", "<u4"), ("forces", "<u4"), ("members", "<u4")])
"""The part of an entry that every rank keeps: chunk and checksums (forces, members: 0 where they are not stored)."""


@dataclass(frozen=True)
class Entry:
    """One durable chunk.

    Attributes
    ----------
    chunk : its number.
    rows, forces : crc32 of its bytes in the row store and in the forces file (None where forces are not stored).
    structures : number of structures.
    status : rows per status code.
    time, seconds : when it was made durable (s since 1970), and how long it took to compute.
    forces_at : where its forces begin and end, in bytes after the header; None where forces are not stored.
    members : crc32 of its bytes in the file of members; None where they are not stored.
    """

    chunk: int
    rows: int
    forces: int | None
    structures: int
    status: dict[int, int] = field(default_factory=dict)
    time: float = 0.0
    seconds: float = 0.0
    forces_at: tuple[int, int] | None = None
    members: int | None = None


def encode(entry: Entry) -> bytes:
    """Return the ledger line of an entry."""
    fields = asdict(entry)
    for name in ("forces_at", "members"):
        if fields[name] is None:
            del fields[name]
    text = json.dumps(fields, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> Entry | None:
    """Return the entry of a line, or None if the line is torn or changed."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    fields = json.loads(text)
    fields["status"] = {int(code): n for code, n in fields["status"].items()}
    if "forces_at" in fields:
        fields["forces_at"] = tuple(fields["forces_at"])
    return Entry(**fields)


def read(folder: Path, *, repair: bool = False) -> dict[int, list[Entry]]:
    """Read every rank's ledger in `folder`; return the entries of each chunk, oldest first within a rank.

    With `repair`, torn ends are cut off so that new lines can follow; the caller must hold the lock of the run.
    """
    found: dict[int, list[Entry]] = defaultdict(list)
    for path in sorted(folder.glob("*.ledger")):
        for entry in entries(path, repair=repair):
            found[entry.chunk].append(entry)
    return dict(found)


def entries(path: Path, *, repair: bool = False) -> Iterator[Entry]:
    """Yield the entries of one rank's ledger; `repair` as of `read`."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data) and repair:
        log.info("%s: cut off a torn last line of %d bytes", path, len(data) - whole)
        os.truncate(path, whole)
    for number, line in enumerate(data[:whole].splitlines(keepends=True), start=1):
        entry = decode(line)
        if entry is None:
            log.warning("%s, line %d: checksum is wrong; its chunk is computed again", path, number)
        else:
            yield entry


def known(paths: Iterable[Path]) -> NDArray[Any]:
    """Return the entries of the ledgers `paths` (dtype `KNOWN`), in their order; cut off torn ends as `read` does."""
    found = [(e.chunk, e.rows, e.forces or 0, e.members or 0) for path in paths for e in entries(path, repair=True)]
    return np.array(found, KNOWN)


def append(path: Path, more: Iterable[Entry]) -> None:
    """Append entries to one ledger file and make them durable."""
    data = b"".join(encode(entry) for entry in more)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        written = os.write(handle, data)
        if written != len(data):  # a full disk; the retry raises the reason, and the torn line is cut off next time
            os.write(handle, data[written:])
        os.fsync(handle)
    finally:
        os.close(handle)
