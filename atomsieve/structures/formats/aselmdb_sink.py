"""Writes LMDB files of ASE rows (aselmdb), as fairchem and ase-db-backends read them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atomsieve.errors import DataError, require
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.formats.base import FileSink

MAP_SIZES = (1 << 41, 1 << 38, 1 << 35)
"""Largest sizes of the file; address space alone, of which some systems allow less."""
FIRST_ID = 1


class AselmdbSink(FileSink):
    """LMDB of ASE rows as zlib-compressed JSON; id, charge, spin and source are in the `data` of each row."""

    def open(self) -> None:
        """Open the draft."""
        from ase.db.core import now

        lmdb = require("lmdb", "data", "writing LMDB files")
        self._time, self._next, self._error = now(), FIRST_ID, lmdb.Error
        for size in MAP_SIZES:
            try:
                self._environment = lmdb.open(
                    str(self.draft), map_size=size, subdir=False, lock=False, meminit=False, sync=False
                )
                break
            except (lmdb.Error, MemoryError) as error:
                failed = error
        else:
            raise DataError(f"cannot write {self.path}: {failed}")

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures."""
        try:
            with self._environment.begin(write=True) as transaction:
                for atoms in self.to_ase(batch, info):
                    transaction.put(str(self._next).encode(), _pack(self._row(atoms)))
                    self._next += 1
                transaction.put(b"nextid", _pack(self._next))
        except self._error as error:
            raise DataError(f"cannot write {self.path}: {error}") from error

    def _row(self, atoms: Any) -> dict[str, Any]:
        results = {} if atoms.calc is None else dict(atoms.calc.results)
        row: dict[str, Any] = {
            "numbers": _spell(atoms.numbers),
            "positions": _spell(atoms.positions),
            "cell": _spell(atoms.cell.array),
            "pbc": _spell(atoms.pbc),
            "unique_id": hashlib.blake2b(atoms.positions.tobytes() + b"%d" % self._next, digest_size=16).hexdigest(),
            "ctime": self._time,
            "mtime": self._time,
            "data": {key: _spell(value) for key, value in atoms.info.items()},
        }
        if results:
            row |= {"calculator": "unknown", "calculator_parameters": {}}
            row |= {name: _spell(value) for name, value in results.items()}
        return row

    def close(self) -> None:
        """Finish the file; without structures it still is one."""
        try:
            with self._environment.begin(write=True) as transaction:
                transaction.put(b"nextid", _pack(self._next))
                transaction.put(b"metadata", _pack({}))
            self._environment.sync(True)
        except self._error as error:
            raise DataError(f"cannot write {self.path}: {error}") from error
        finally:
            self._environment.close()


def _spell(value: Any) -> Any:
    """Return a value as ASE's JSON spells it: an array as its shape, type and numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"__ndarray__": [list(value.shape), value.dtype.name, np.ravel(value).tolist()]}
    return value


def _pack(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode())
