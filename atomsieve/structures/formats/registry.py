"""The registry of formats: one row each, from which commands, messages and documentation derive."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.structures.block import Block, gather_blocks
from atomsieve.structures.formats import ase_db, cif, codes, extxyz, learning, lmdb, parquet, poscar, records
from atomsieve.structures.formats.base import Format, StructureSink, WriteOptions
from atomsieve.structures.formats.bp import BpSink, count_rows, is_bp_folder, read_bp
from atomsieve.structures.formats.traj import read_traj
from atomsieve.structures.item import Item, ReadRequest, open_with_progress

log = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        extxyz.ROW,
        cif.ROW,
        poscar.ROW,
        ase_db.ROW,
        Format(name="traj", about="ASE trajectory", endings=(".traj",), read=read_traj),
        lmdb.ROW,
        records.ROW,
        parquet.ROW,
        Format(
            name="bp",
            about="dataset folder, bare BP5 directory, or BP directory of HydraGNN; written as a dataset folder",
            endings=(".bp", ".adios"),
            read=read_bp,
            sink=BpSink,
            is_folder=is_bp_folder,
            extent=count_rows,
        ),
        *learning.ROWS,
        *codes.ROWS,
    )
}
"""Every format by name. To add one: a file in this folder with its reader and writer, and a row here."""


def readable() -> list[str]:
    """Return the names of the formats that can be read."""
    return [name for name, row in FORMATS.items() if row.read is not None]


def writable_endings() -> list[str]:
    """Return the endings of file names that can be written."""
    rows = [row for row in FORMATS.values() if row.sink is not None]
    plain = [end for row in rows for end in row.endings]
    return plain + [f"{end}.gz" for row in rows if row.compresses for end in row.endings]


VAGUE_ENDINGS = (".out", ".log", ".txt", ".output", ".data", ".xyz")
"""Endings that several formats share: the content of such a file is looked at."""
HEAD_BYTES = 1 << 16


def find_format(path: Path) -> str | None:
    """Return the name of the format of a file to read, by its name (without `.gz`) or its first bytes, or None."""
    name = path.name[:-3] if path.name.endswith(".gz") else path.name
    rows = [(key, row) for key, row in FORMATS.items() if row.read is not None]
    for key, row in rows:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in row.patterns):
            return key
    if name.lower().endswith(VAGUE_ENDINGS) and (found := _format_by_content(path)) is not None:
        return found
    for key, row in rows:
        if name.lower().endswith(row.endings):
            return key
    return next((key for key, row in rows if name.startswith(row.beginnings)), None)


def _format_by_content(path: Path) -> str | None:
    """Return the format that the first bytes of a file tell, None if none does or it cannot be read."""
    if not path.is_file():
        return None
    try:
        with open_with_progress(path) as (file, _):
            head = file.read(HEAD_BYTES)
    except (OSError, EOFError):
        return None
    return next((key for key, row in FORMATS.items() if row.looks_like is not None and row.looks_like(head)), None)


def _rest_of_name(row: Format, path: Path) -> str | None:
    """Return what stands in a name for the `*` of a format's pattern or after its beginning: it tells runs apart."""
    name = path.name[:-3] if path.name.endswith(".gz") else path.name
    for pattern in (*row.patterns, *(f"{word}*" for word in row.beginnings)):
        before, _, after = pattern.partition("*")
        if fnmatch.fnmatchcase(name, pattern):
            return name[len(before) : len(name) - len(after)]
    return None


def _owner(path: Path) -> str | None:
    """Return the format of which a file is a mere part, None for others."""
    return next(
        (key for key, row in FORMATS.items() if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in row.parts)),
        None,
    )


def _leave_out_covered(found: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Return the files without those that repeat a part of a fuller output of the same calculation beside them."""
    covered: dict[tuple[Path, str, str], Path] = {}
    for file, kind in found:
        if FORMATS[kind].covers and (rest := _rest_of_name(FORMATS[kind], file)) is not None:
            for other in FORMATS[kind].covers:
                covered.setdefault((file.parent, other, rest), file)
    kept, left = [], []
    for file, kind in found:
        rest = _rest_of_name(FORMATS[kind], file)
        fuller = covered.get((file.parent, kind, rest)) if rest is not None else None
        if fuller is None:
            kept.append((file, kind))
        else:
            left.append((file, fuller))
    if left:
        log.warning(
            "%d files are left out, since a fuller output of the same calculation lies beside them (%s: %s); --format "
            "reads one kind alone",
            len(left),
            *left[0],
        )
    return kept


def _folder_format(path: Path) -> str | None:
    """Return the format of a folder that is one dataset by itself."""
    return next((key for key, row in FORMATS.items() if row.is_folder(path)), None)


def find_files(path: Path, wanted: str | None = None) -> list[tuple[Path, str]]:
    """Return the files to convert at a path with their formats: the file itself, or all that a folder holds, sorted.

    Raises
    ------
    DataError
        if nothing is there, or no format is known.
    """
    if wanted is not None and wanted not in readable():
        raise unknown("format", wanted, readable())
    if not path.exists():
        raise DataError(f"{path} does not exist")
    folder_format = _folder_format(path) if path.is_dir() else None
    one = wanted or (folder_format if path.is_dir() else find_format(path) or _format_by_content(path))
    if path.is_file() and wanted is None and (owner := _owner(path)) is not None:
        raise DataError(
            f"{path} is read together with {FORMATS[owner].patterns[0]} ({owner}) beside it: name that file"
        )
    if path.is_file() or folder_format is not None:
        if one is None:
            raise DataError(
                f"{path}: the format cannot be told from the name; name it with --format, one of "
                f"{', '.join(readable())}"
            )
        return [(path, one)]
    found = sorted((file, kind) for file, kind in _walk(path) if wanted in (None, kind))
    if not found:
        raise DataError(f"{path} holds no file of a known format ({', '.join(readable())})")
    return _leave_out_covered(found)


def _walk(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder that have a known format, and folders that are datasets, each as one."""
    for folder, below, files in os.walk(path):
        for name in list(below):
            kind = _folder_format(Path(folder, name))
            if kind is not None:
                below.remove(name)
                yield Path(folder, name), kind
        for name in files:
            file = Path(folder, name)
            kind = find_format(file) if _owner(file) is None else None
            if kind is not None and file.is_file():
                yield file, kind


def read_blocks(request: ReadRequest, kind: str) -> Iterator[Block]:
    """Yield the structures of a file or of a span of it, some thousands at a time."""
    read = FORMATS[kind].read
    if read is None:
        raise UsageError(f"format {kind} is only written; {request.path} cannot be read")
    yield from gather_blocks(read(_with_reference(request)))


def _with_reference(request: ReadRequest) -> ReadRequest:
    """Return the request with the first structure of its topology, if that is a file of structures.

    Raises
    ------
    DataError
        if the topology does not exist, or holds no structure.
    """
    if request.topology is None or request.reference is not None:
        return request
    if not request.topology.exists():
        raise DataError(f"{request.topology} does not exist")
    kind = find_format(request.topology)
    read = FORMATS[kind].read if kind is not None else None
    if read is None:
        return request
    for block in gather_blocks(read(ReadRequest(request.topology, elements=request.elements))):
        if len(block):
            atoms, scale = slice(0, int(block.ptr[1])), block.units.factor("length")
            positions, cell = block.positions[atoms] * scale, block.cell[0] * scale
            first = Item(block.numbers[atoms], positions, cell, block.pbc[0], block.places[0])
            return replace(request, reference=first)
    raise DataError(f"{request.topology} holds no structure that can be read")


def find_writer(path: Path) -> Format | None:
    """Return the format that the ending of a file to write names, None if there is none that can be written."""
    for row in FORMATS.values():
        name = path.name[:-3] if path.name.endswith(".gz") and row.compresses else path.name
        if row.sink is not None and name.lower().endswith(row.endings):
            return row
    return None


def open_sink(path: Path, options: WriteOptions) -> StructureSink:
    """Return the writer of the format that the ending of the file names; use it as a context manager.

    Raises
    ------
    UsageError
        if no format that can be written has the ending.
    """
    row = find_writer(path)
    if row is None or row.sink is None:
        raise unknown("format of the output", path.suffix or path.name, writable_endings())
    return row.sink(path, options)
