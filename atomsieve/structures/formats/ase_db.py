"""ASE databases (SQLite), read by their columns and without ASE's objects."""

from __future__ import annotations

import json
import logging
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from atomsieve.errors import DataError
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.block import Block
from atomsieve.structures.formats.ase_rows import REAL, RowGatherer
from atomsieve.structures.formats.base import FileSink, Format
from atomsieve.structures.formats.learning.schnetpack import read_schnetpack_units
from atomsieve.structures.item import BadItem, Item, ReadRequest, item_from_atoms
from atomsieve.structures.units import Units

log = logging.getLogger(__name__)

VERSIONS = (8, 9)
"""Versions of ASE's tables that are read here: 8 keeps the data of a row as JSON, 9 as bytes. Older ones ASE reads."""
GEOMETRY = ("id", "unique_id", "numbers", "positions", "cell", "pbc", "calculator")
ARRAYS = ("tags", "momenta", "masses", "initial_magmoms", "initial_charges", "magmoms", "charges", "forces")
RESULTS = ("energy", "free_energy", "magmom", "stress", "dipole")
COLUMNS = (*GEOMETRY, *ARRAYS, *RESULTS, "key_value_pairs", "data")


def count_rows(path: Path) -> int:
    """Return the length of the span of ids: the largest one."""
    with _open(path) as database:
        return int(database.execute("SELECT MAX(id) FROM systems").fetchone()[0] or 0)


def read_ase_db(request: ReadRequest) -> Iterator[Block | Item | BadItem]:
    """Yield the rows of an ASE database; key-value pairs and data as `info`.

    Forces are those that were stored: constraints do not act on them. What a key-value pair or the data state under a
    name such as `charge`, which ASE's rows hide behind a property of their own, is taken as stated.

    Raises
    ------
    DataError
        if it is no ASE database, or another program is writing to it.
    """
    path = request.path
    units = read_schnetpack_units(read_metadata(path), str(path))
    with _open(path) as database:
        version = _version(database, path)
        if version not in VERSIONS:
            yield from _read_through_ase(request, units)
            return
        last = count_rows(path) if request.stop is None else request.stop
        span, rows, first = max(last - request.start, 1), RowGatherer(str(path), "row", units), request.start
        found = database.execute(
            f"SELECT {', '.join(COLUMNS)} FROM systems WHERE id > ? AND id <= ? ORDER BY id",  # noqa: S608
            (request.start, last),
        )
        for values in _fetch(found, path):
            row = dict(zip(COLUMNS, values, strict=True))
            name = row["id"]
            try:
                rows.add(_decode(row), name)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
                log.debug("%s: row %s", path, name, exc_info=True)
                rows.refuse(f"not readable ({type(error).__name__})", name, str(error))
            if rows.full:
                yield rows.take(first, name)
                first = name
                request.tick((name - request.start) / span)
        if not rows.empty:
            yield rows.take(first, last)


def _fetch(found: sqlite3.Cursor, path: Path) -> Iterator[tuple[Any, ...]]:
    try:
        yield from found
    except sqlite3.Error as error:
        raise DataError(f"{path} is damaged: {error}") from error


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """Open for reading alone. With a write-ahead log beside it, SQLite has to be able to read that too."""
    try:
        database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=5)
    except sqlite3.Error as error:
        raise DataError(f"{path} is not a readable ASE database: {error}") from error
    try:
        database.execute("SELECT id FROM systems LIMIT 1").fetchone()
        yield database
    except sqlite3.Error as error:
        busy = "locked" in str(error) or "busy" in str(error)
        what = "is being written to by another program" if busy else "is not a readable ASE database"
        raise DataError(f"{path} {what}: {error}") from error
    finally:
        database.close()


def _version(database: sqlite3.Connection, path: Path) -> int:
    try:
        row = database.execute("SELECT value FROM information WHERE name='version'").fetchone()
        return int(row[0]) if row else 2
    except sqlite3.Error:
        return 2  # no table of that name yet
    except ValueError as error:
        raise DataError(f"{path}: the version of the database is {row[0]!r}") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a database, empty where it has none.

    Raises
    ------
    DataError
        if they are no JSON object.
    """
    with _open(path) as database:
        try:
            row = database.execute("SELECT value FROM information WHERE name='metadata'").fetchone()
        except sqlite3.Error:
            return {}
    try:
        found = json.loads(row[0]) if row else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: its metadata are no JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table as `RowGatherer` takes it: ASE stores float64 and int32, little-endian."""
    out: dict[str, Any] = {"numbers": _integers(row["numbers"]), "positions": _doubles(row["positions"])}
    for key in ("cell", *ARRAYS):
        if row[key] is not None:
            out[key] = (_integers if key == "tags" else _doubles)(row[key])
    for key in ("stress", "dipole"):
        if row[key] is not None:
            out[key] = np.frombuffer(row[key], "<f8")
    pbc = int(row["pbc"] or 0)
    out["pbc"] = [bool(pbc & bit) for bit in (1, 2, 4)]
    for key in ("unique_id", "calculator", "energy", "free_energy", "magmom"):
        if row[key] is not None:
            out[key] = row[key]
    out["key_value_pairs"] = json.loads(row["key_value_pairs"] or "{}")
    data = row["data"]
    out["data"] = _decode_data(data) if isinstance(data, bytes) else json.loads(data or "{}")
    return out


def _integers(blob: bytes) -> bytes:
    return np.frombuffer(blob, "<i4").astype(np.int64).tobytes()


def _doubles(blob: bytes) -> bytes:
    return np.frombuffer(blob, "<f8").tobytes()


def _decode_data(blob: bytes) -> Any:
    """Return the data of a row: where their JSON begins (8 bytes), arrays, and the JSON that says where they are.

    Raises
    ------
    ValueError, KeyError, TypeError, struct.error
        if it is something else.
    """
    (begin,) = struct.unpack_from("<q", blob)
    if not 8 <= begin <= len(blob):
        raise ValueError("the data of the row begin outside of it")
    return _place_arrays(json.loads(blob[begin:]), blob)


def _place_arrays(value: Any, blob: bytes) -> Any:
    if isinstance(value, list):
        return [_place_arrays(one, blob) for one in value] if any(isinstance(o, list | dict) for o in value) else value
    if not isinstance(value, dict):
        return value
    if "__ndarray__" not in value:
        return {key: _place_arrays(one, blob) for key, one in value.items()}
    shape, dtype, begin = value["__ndarray__"]
    if dtype not in REAL:  # complex numbers, texts: left as they are described
        return value
    kind = np.dtype(dtype).newbyteorder("<")
    count = int(np.prod(shape, dtype=np.int64))
    if begin < 8 or count < 0 or begin + count * kind.itemsize > len(blob):
        raise ValueError("an array of the data lies outside of the row")
    return np.frombuffer(blob, kind, count, begin).reshape(shape)


def _read_through_ase(request: ReadRequest, units: Units) -> Iterator[Item | BadItem]:
    """Yield the rows of a database of an older version, as ASE reads them."""
    path = request.path
    from ase.db import connect

    try:
        database = connect(str(path), type="db")
        total = max(database.count(), 1)
        for k, row in enumerate(database.select(f"id>{request.start}" if request.start else None)):
            if request.stop is not None and row.id > request.stop:
                return
            where = f"{path}: row {row.id}"
            try:
                item = item_from_atoms(row.toatoms(add_additional_information=False), where)
                item.units = units
                item.info.update({"id": row.id, **row.key_value_pairs, **row.data})
            except Exception as error:  # whatever a row of someone's database may hold
                log.debug("%s: %s", where, error, exc_info=True)
                yield BadItem(f"not readable ({type(error).__name__})", where, str(error))
                continue
            yield item
            if k % 64 == 0:
                request.tick(k / total)
    except DataError:
        raise
    except Exception as error:  # sqlite3.DatabaseError and its kin, wrapped or not by ASE
        raise DataError(f"{path} is not a readable ASE database: {error}") from error


class DbSink(FileSink):
    """An ASE database (SQLite); id, charge, spin and source are in the `data` of each row."""

    def open(self) -> None:
        """Do nothing: each batch opens the database."""

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures."""
        from ase.db import connect

        try:
            with connect(str(self.draft), type="db", append=True) as database:
                for image in self.to_ase(batch, info):
                    database.write(image, data=dict(image.info))
        except sqlite3.Error as error:
            raise DataError(f"cannot write {self.path}: {error}") from error

    def close(self) -> None:
        """Make a database of no rows where nothing was written."""
        if not self.draft.exists():
            from ase.db import connect

            connect(str(self.draft), type="db").count()


ROW = Format(
    name="db",
    about="ASE database (SQLite)",
    endings=(".db",),
    read=read_ase_db,
    sink=DbSink,
    holds_info=True,
    extent=count_rows,
)
