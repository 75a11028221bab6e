"""Checksums of files and of plain data: sha256 names a content, crc32 finds damaged bytes."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

BLOCK = 1 << 22  # bytes read at once


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(content: Any) -> str:
    """Return the sha256 of plain data, in hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def compute_crc(handle: int, start: int, stop: int) -> int:
    """Return the crc32 of bytes `start:stop` of an open file (its descriptor); bytes beyond its end do not count."""
    value = 0
    while start < stop and (block := os.pread(handle, min(BLOCK, stop - start), start)):
        value = zlib.crc32(block, value)
        start += len(block)
    return value


def compute_file_crc(path: Path, start: int, stop: int) -> int:
    """Return the crc32 of bytes `start:stop` of a file; bytes beyond its end do not count."""
    with path.open("rb") as file:
        return compute_crc(file.fileno(), start, stop)
