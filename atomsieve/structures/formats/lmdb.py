"""LMDB files of fairchem (aselmdb); read only. Pickled values are refused, never loaded."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.errors import DataError, require
from atomsieve.structures.item import BadItem, Item, ReadRequest

log = logging.getLogger(__name__)

RESERVED = ("nextid", "deleted_ids", "metadata")
RESULTS = ("energy", "forces", "stress", "free_energy")


def is_lmdb_folder(path: Path) -> bool:
    """Return True for the folder of one LMDB environment."""
    return (path / "data.mdb").exists()


def read_lmdb(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the rows of an LMDB file with JSON values, zlib-compressed or plain (aselmdb).

    Raises
    ------
    DataError
        if values are pickled: loading a pickle runs whatever code is in it.
    """
    path, tick = request.path, request.tick
    lmdb = require("lmdb", "data", "reading LMDB files")
    try:
        environment = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, meminit=False, readahead=True, max_dbs=0
        )
    except lmdb.Error as error:
        raise DataError(f"{path} is not a readable LMDB file: {error}") from error
    with environment, environment.begin() as transaction:
        total = max(transaction.stat()["entries"], 1)
        for k, (key, value) in enumerate(_in_order(transaction)):
            where = f"{path}: key {key}"
            if value[:1] == b"\x80":
                raise DataError(
                    f"{where} is a Python pickle, which may run any code when loaded and never is here; write the "
                    "file again as aselmdb or extxyz with the program that made it"
                )
            try:
                item = _item_from_row(_decode(value), where)
            except (ValueError, KeyError, TypeError, zlib.error) as error:
                log.debug("%s: %s", where, error, exc_info=True)
                yield BadItem(f"not readable ({type(error).__name__})", where)
                continue
            item.info.setdefault("id", int(key) if key.isdigit() else key)
            yield item
            if k % 64 == 0:
                tick(k / total)


def _in_order(transaction: Any) -> Iterator[tuple[str, bytes]]:
    """Yield keys and values in the order of the ids; LMDB itself sorts 10 before 2."""
    following = transaction.get(b"nextid")
    if following is not None and following[:1] != b"\x80":
        for number in range(int(_decode(following))):
            value = transaction.get(str(number).encode())
            if value is not None:
                yield str(number), value
        return
    for key, value in transaction.cursor():
        name = key.decode(errors="replace")
        if name not in RESERVED and name != "length":
            yield name, value


def _decode(value: bytes) -> Any:
    return json.loads(zlib.decompress(value) if value[:1] == b"\x78" else value)


def _decode_array(value: Any) -> Any:
    """Return arrays as arrays; ASE's JSON spells one `{"__ndarray__": [shape, dtype, flat values]}`."""
    if isinstance(value, dict) and "__ndarray__" in value:
        shape, dtype, flat = value["__ndarray__"]
        kind = np.dtype(dtype)
        if kind.kind not in "biuf":
            raise ValueError(f"array of {dtype}")
        return np.array(flat, kind).reshape(shape)
    return value


def _item_from_row(row: dict[str, Any], where: str) -> Item:
    row = {name: _decode_array(value) for name, value in row.items()}
    cell = row.get("cell")
    info = {**(row.get("key_value_pairs") or {}), **(row.get("data") or {})}
    return Item(
        numbers=np.asarray(row["numbers"], np.int64),
        positions=np.asarray(row["positions"], np.float64),
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell, np.float64).reshape(3, 3),
        pbc=np.asarray(row.get("pbc", [False] * 3), bool),
        where=where,
        info={name: _decode_array(value) for name, value in info.items()},
        labels={name: row[name] for name in RESULTS if row.get(name) is not None},
    )
