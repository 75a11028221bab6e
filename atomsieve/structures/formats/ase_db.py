"""ASE databases (SQLite)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atomsieve.errors import DataError
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.formats.base import FileSink
from atomsieve.structures.formats.learning.schnetpack import read_schnetpack_units
from atomsieve.structures.item import BadItem, Item, ReadRequest, item_from_atoms

log = logging.getLogger(__name__)


def read_ase_db(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the rows of an ASE database (SQLite), key-value pairs and data as `info`."""
    path, tick = request.path, request.tick
    from ase.db import connect

    try:
        database = connect(str(path), type="db")
        units = read_schnetpack_units(database.metadata, str(path))
        total = max(database.count(), 1)
        for k, row in enumerate(database.select()):
            where = f"{path}: row {row.id}"
            try:
                atoms = row.toatoms(add_additional_information=False)
                item = item_from_atoms(atoms, where)
                item.units = units
                item.info.update({"id": row.id, **row.key_value_pairs, **row.data})
            except Exception as error:  # whatever a row of someone's database may hold
                log.debug("%s: %s", where, error, exc_info=True)
                yield BadItem(f"not readable ({type(error).__name__})", where)
                continue
            yield item
            if k % 64 == 0:
                tick(k / total)
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

        with connect(str(self.draft), type="db", append=True) as database:
            for image in self.to_ase(batch, info):
                database.write(image, data=dict(image.info))

    def close(self) -> None:
        """Make a database of no rows where nothing was written."""
        if not self.draft.exists():
            from ase.db import connect

            connect(str(self.draft), type="db").count()
