"""The registry of formats: one row each, from which commands, messages and documentation derive."""

from __future__ import annotations

from pathlib import Path

from atomsieve.errors import UsageError, unknown
from atomsieve.structures.formats import ase_db, cif, codes, extxyz, learning, lmdb, parquet, poscar, records
from atomsieve.structures.formats.base import Format, StructureSink, WriteOptions
from atomsieve.structures.formats.bp import BpSink, count_rows, is_bp_folder, read_bp
from atomsieve.structures.formats.folders import FolderSink
from atomsieve.structures.formats.traj import read_traj

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
            carries=True,
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


def singles() -> list[str]:
    """Return the names of the formats in which a folder of one file per structure can be written."""
    return [name for name, row in FORMATS.items() if row.single is not None]


def find_writer(path: Path) -> Format | None:
    """Return the format that the ending of a file to write names, None if there is none that can be written."""
    for row in FORMATS.values():
        name = path.name[:-3] if path.name.endswith(".gz") and row.compresses else path.name
        if row.sink is not None and name.lower().endswith(row.endings):
            return row
    return None


def open_sink(path: Path, options: WriteOptions, form: str | None = None) -> StructureSink:
    """Return the writer of the format that the ending of the file names; use it as a context manager.

    `form` asks for a folder with one file of that format per structure.

    Raises
    ------
    UsageError
        if no format that can be written has the ending, the format has no such dialect, or `form` is not one of one
        structure per file.
    """
    if form is not None:
        if form not in singles():
            raise unknown("format of a folder of files", form, singles())
        return FolderSink(path, options, FORMATS[form])
    row = find_writer(path)
    if row is None or row.sink is None:
        raise unknown("format of the output", path.suffix or path.name, writable_endings())
    if options.dialect and not row.dialects:
        having = ", ".join(other.name for other in FORMATS.values() if other.dialects)
        raise UsageError(f"format {row.name} has no dialects; {having} has")
    if options.dialect and options.dialect not in row.dialects:
        raise unknown(f"dialect of {row.name}", options.dialect, row.dialects)
    return row.sink(path, options)
