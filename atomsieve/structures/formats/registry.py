"""The registry of formats: one row each, from which commands, messages and documentation derive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.structures.block import Block, gather_blocks
from atomsieve.structures.formats.ase_db import DbSink, read_ase_db
from atomsieve.structures.formats.base import Format, StructureSink, WriteOptions
from atomsieve.structures.formats.bp import BpSink, count_rows, is_bp_folder, read_bp
from atomsieve.structures.formats.cif import CifSink, read_cif
from atomsieve.structures.formats.extxyz import ExtxyzSink, read_extxyz
from atomsieve.structures.formats.learning import deepmd
from atomsieve.structures.formats.lmdb import is_lmdb_folder, read_lmdb
from atomsieve.structures.formats.parquet import ParquetSink, read_parquet
from atomsieve.structures.formats.poscar import read_poscar
from atomsieve.structures.formats.pymatgen_json import read_pymatgen
from atomsieve.structures.formats.traj import read_traj
from atomsieve.structures.item import ReadRequest

FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="extxyz",
            about="extended XYZ",
            endings=(".extxyz", ".xyz"),
            read=read_extxyz,
            sink=ExtxyzSink,
            lacks="digits beyond 1e-8 Angstrom",
            compressed=True,
            compresses=True,
            holds_info=True,
        ),
        Format(
            name="cif",
            about="CIF, one data block per structure",
            endings=(".cif",),
            read=read_cif,
            sink=CifSink,
            lacks="structures without a cell; labels, charge, spin",
            compressed=True,
        ),
        Format(
            name="poscar",
            about="VASP POSCAR, CONTCAR",
            endings=(".vasp", ".poscar"),
            read=read_poscar,
            lacks="labels",
            beginnings=("POSCAR", "CONTCAR"),
            compressed=True,
        ),
        Format(
            name="db", about="ASE database (SQLite)", endings=(".db",), read=read_ase_db, sink=DbSink, holds_info=True
        ),
        Format(name="traj", about="ASE trajectory", endings=(".traj",), read=read_traj),
        Format(
            name="lmdb",
            about="LMDB of fairchem with JSON values; pickles are refused",
            endings=(".aselmdb", ".lmdb"),
            read=read_lmdb,
            extra="data",
            is_folder=is_lmdb_folder,
        ),
        Format(
            name="pymatgen",
            about="pymatgen JSON: Structure, Molecule, ComputedStructureEntry; one, a list or lines",
            endings=(".json", ".jsonl"),
            read=read_pymatgen,
            compressed=True,
        ),
        Format(
            name="parquet",
            about="Parquet, one row per structure",
            endings=(".parquet", ".pq"),
            read=read_parquet,
            sink=ParquetSink,
            extra="data",
        ),
        Format(
            name="bp",
            about="dataset folder, bare BP5 directory, or BP directory of HydraGNN; written as a dataset folder",
            endings=(".bp", ".adios"),
            read=read_bp,
            sink=BpSink,
            is_folder=is_bp_folder,
            extent=count_rows,
        ),
        deepmd.ROW,
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


def find_format(path: Path) -> str | None:
    """Return the name of the format of a file to read by its name (without `.gz`), or None."""
    name = path.name[:-3] if path.name.endswith(".gz") else path.name
    for key, row in FORMATS.items():
        if row.read is not None and (name.lower().endswith(row.endings) or name.startswith(row.beginnings)):
            return key
    return None


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
    one = wanted or (folder_format if path.is_dir() else find_format(path))
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
    return found


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
            kind = find_format(file)
            if kind is not None and file.is_file():
                yield file, kind


def read_blocks(request: ReadRequest, kind: str) -> Iterator[Block]:
    """Yield the structures of a file or of a span of it, some thousands at a time."""
    read = FORMATS[kind].read
    if read is None:
        raise UsageError(f"format {kind} is only written; {request.path} cannot be read")
    yield from gather_blocks(read(request))


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
