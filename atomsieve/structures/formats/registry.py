"""Which format a file has, and which files a folder holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atomsieve.errors import DataError, unknown
from atomsieve.structures.formats.columns import read_bp, read_parquet
from atomsieve.structures.formats.database import read_ase_db, read_lmdb, read_traj
from atomsieve.structures.formats.pymatgen_json import read_pymatgen
from atomsieve.structures.formats.text import read_cif, read_extxyz, read_poscar
from atomsieve.structures.item import Bad, Item, Tick

Read = Callable[[Path, Tick], Iterator[Item | Bad]]


@dataclass(frozen=True)
class Format:
    """A file format: its reader, the suffixes and the beginnings of file names by which it is known."""

    read: Read
    suffixes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "extxyz": Format(read_extxyz, (".xyz", ".extxyz")),
    "cif": Format(read_cif, (".cif",)),
    "poscar": Format(read_poscar, (".vasp", ".poscar"), ("POSCAR", "CONTCAR")),
    "db": Format(read_ase_db, (".db",)),
    "traj": Format(read_traj, (".traj",)),
    "lmdb": Format(read_lmdb, (".aselmdb", ".lmdb")),
    "pymatgen": Format(read_pymatgen, (".json", ".jsonl")),
    "parquet": Format(read_parquet, (".parquet", ".pq")),
    "bp": Format(read_bp, (".bp", ".adios")),
}
"""Every format that can be converted, by name."""


def format_of(path: Path) -> str | None:
    """Return the name of the format of a file by its name (`.gz` aside), or None."""
    name = path.name[:-3] if path.name.endswith(".gz") else path.name
    for key, known in FORMATS.items():
        if name.lower().endswith(known.suffixes) or name.startswith(known.names):
            return key
    return None


def _folder_format(path: Path) -> str | None:
    """Return the format of a folder that is one data set by itself."""
    if (path / "data.mdb").exists():
        return "lmdb"
    if (path / "manifest.json").exists() or (path / "md.idx").exists():
        return "bp"
    return None


def find_files(path: Path, wanted: str | None = None) -> list[tuple[Path, str]]:
    """Return the files to convert at a path with their formats: the file itself, or all that a folder holds, sorted.

    Raises
    ------
    DataError
        if nothing is there, or no format is known.
    """
    if wanted is not None and wanted not in FORMATS:
        raise unknown("format", wanted, FORMATS)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    one = wanted or (_folder_format(path) if path.is_dir() else format_of(path))
    if path.is_file() or (path.is_dir() and _folder_format(path) is not None):
        if one is None:
            raise DataError(
                f"{path}: the format cannot be told from the name; name it with --format, one of {', '.join(FORMATS)}"
            )
        return [(path, one)]
    found = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        kind = format_of(file)
        if kind is not None and wanted in (None, kind):
            found.append((file, kind))
    if not found:
        raise DataError(f"{path} holds no file of a known format ({', '.join(FORMATS)})")
    return found


def read_items(path: Path, kind: str, tick: Tick) -> Iterator[Item | Bad]:
    """Yield the structures of a file."""
    return FORMATS[kind].read(path, tick)
