"""LMDB files of fairchem (aselmdb). Pickled values are refused, never loaded."""

from __future__ import annotations

import importlib
import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atomsieve.errors import DataError, require
from atomsieve.structures.block import Block
from atomsieve.structures.formats.ase_rows import find_parser
from atomsieve.structures.formats.ase_rows_native import make_gatherer
from atomsieve.structures.formats.aselmdb_sink import AselmdbSink
from atomsieve.structures.formats.base import Format
from atomsieve.structures.item import ReadRequest

log = logging.getLogger(__name__)

RESERVED = ("nextid", "deleted_ids", "metadata", "length")
LARGEST_VALUE = 1 << 30
"""Bytes of one value, unpacked."""
GUESS, SMALLEST_GUESS, LARGEST_GUESS = 4, 1 << 12, 1 << 24
"""Bytes that are taken for a value before its size is known: so many times those of the packed one."""
_MAGIC = 0xBEEFC0DE
_MAGIC_AT = 16
"""LMDB begins with a page header of 16 bytes and this number, in the byte order of the machine that wrote it."""


def is_lmdb_folder(path: Path) -> bool:
    """Return True for the folder of one LMDB environment."""
    return (path / "data.mdb").exists()


def count_ids(path: Path) -> int:
    """Return the number of ids in an LMDB file, those of deleted rows included."""
    with _open(path) as environment, environment.begin() as transaction:
        return len(_ids(transaction))


def read_lmdb(request: ReadRequest) -> Iterator[Block]:
    """Yield the rows of an LMDB file with JSON values, zlib-compressed or plain (aselmdb), in the order of their ids.

    Raises
    ------
    DataError
        if it is no LMDB file, was cut short, changes while it is read, or holds pickles: loading a pickle runs
        whatever code is in it.
    """
    path = request.path
    unpack = _find_unpacker()
    with _open(path) as environment, environment.begin() as transaction:
        before = environment.info()["last_txnid"]
        ids = _ids(transaction)
        first, stop = request.start, len(ids) if request.stop is None else min(request.stop, len(ids))
        rows = make_gatherer(str(path), "key", find_parser())
        add, get = rows.add_text, transaction.get
        for k in range(first, stop):
            value = get(_key(ids[k]))
            if value is None:  # a row that was deleted
                continue
            first_byte = value[:1]
            if first_byte == b"\x80":
                raise DataError(f"{path}: key {ids[k]} is {_describe_pickle(value)}")
            try:
                add(unpack(value) if first_byte == b"\x78" else value, ids[k])
            except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
                log.debug("%s: key %s", path, ids[k], exc_info=True)
                rows.refuse(f"not readable ({type(error).__name__})", ids[k], str(error))
            if rows.full:
                yield rows.take(first, k + 1)
                first = k + 1
                request.tick((k + 1 - request.start) / (stop - request.start))
        if not rows.empty:
            yield rows.take(first, stop)
        if environment.info()["last_txnid"] != before:
            raise DataError(f"{path} was written to while it was read; read it again when its writer has finished")


def _describe_pickle(value: bytes) -> str:
    """Return what a pickled value is, why it is not loaded, and the way around it."""
    if b"torch_geometric" in value:
        return (
            "a pickled PyTorch Geometric object, as in the LMDB files of OC20 and OC22; loading a pickle may run any "
            "code and is not done here. Take the extxyz files that are published beside them, or let fairchem turn its "
            "own objects into ASE atoms and write these as aselmdb or extxyz"
        )
    return (
        "a Python pickle, which may run any code when loaded and never is here; write the file again as aselmdb or "
        "extxyz with the program that made it"
    )


def _find_unpacker() -> Callable[[bytes], bytes]:
    """Return a function that unpacks zlib data of at most `LARGEST_VALUE` bytes, by the fastest library installed."""
    stream = _find_stream()
    try:
        library: Any = importlib.import_module("deflate")
    except ImportError:
        return stream
    whole, wrong = library.zlib_decompress, library.DeflateError

    def unpack(value: bytes) -> bytes:
        if len(value) <= LARGEST_GUESS // GUESS:
            try:
                return bytes(whole(value, max(GUESS * len(value), SMALLEST_GUESS)))  # it gives a bytearray
            except wrong:  # damaged, or longer than guessed
                pass
        return stream(value)

    return unpack


def _find_stream() -> Callable[[bytes], bytes]:
    """Return a function that unpacks data whose size nobody knows: that of isal where it is installed."""
    try:
        library: Any = importlib.import_module("isal.isal_zlib")
    except ImportError:
        library = zlib

    def unpack(value: bytes) -> bytes:
        stream = library.decompressobj()
        try:
            text: bytes = stream.decompress(value, LARGEST_VALUE)
        except library.error as error:
            raise ValueError(f"not zlib data: {error}") from error
        if not stream.eof:
            raise ValueError("the zlib data end too early" if len(text) < LARGEST_VALUE else "a value above 1 GiB")
        return text

    return unpack


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    lmdb = require("lmdb", "data", "reading LMDB files")
    file = path / "data.mdb" if path.is_dir() else path
    try:
        with file.open("rb") as raw:
            head = raw.read(_MAGIC_AT + 4)
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(head) == _MAGIC_AT + 4 and struct.unpack_from(">I", head, _MAGIC_AT)[0] == _MAGIC:
        raise DataError(f"{path} was written on a machine of the other byte order; write it again on one like this")
    try:
        environment = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, meminit=False, readahead=True, max_dbs=0
        )
    except lmdb.Error as error:
        raise DataError(f"{path} is not a readable LMDB file: {error}") from error
    with environment:
        pages = environment.info()["last_pgno"] + 1
        needed = pages * environment.stat()["psize"]
        if size < needed:  # LMDB maps the file: reading behind its end would end the process
            raise DataError(f"{path} was cut short: it has {size:,} bytes and its pages {needed:,}")
        yield environment


def _ids(transaction: Any) -> range | list[int | str]:
    """Return the ids of the rows in their order (LMDB itself sorts 10 before 2), deleted ones included."""
    following = transaction.get(b"nextid")
    if following is not None and following[:1] != b"\x80":
        try:
            count = int(json.loads(zlib.decompress(following) if following[:1] == b"\x78" else following))
        except (ValueError, TypeError, zlib.error) as error:
            raise DataError(f"nextid of the LMDB file is not a number: {error}") from error
        if count - 1 <= 2 * transaction.stat()["entries"] + 1000:  # rows deleted in great numbers: listed, not counted
            return range(count)
    with transaction.cursor() as cursor:
        names = [key.decode(errors="replace") for key in cursor.iternext(keys=True, values=False)]
    names = [name for name in names if name not in RESERVED]
    if all(name.isdigit() for name in names):
        return sorted(int(name) for name in names)
    return list(names)


def _key(name: int | str) -> bytes:
    return b"%d" % name if type(name) is int else str(name).encode()


ROW = Format(
    name="lmdb",
    about="LMDB of fairchem with JSON values; pickles are refused",
    endings=(".aselmdb", ".lmdb"),
    read=read_lmdb,
    sink=AselmdbSink,
    extra="data",
    holds_info=True,
    is_folder=is_lmdb_folder,
    extent=count_ids,
)
