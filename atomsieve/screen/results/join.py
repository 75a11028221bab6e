"""Joins columns of a table to results, by id.

The table is read whole; ids of the results are looked up some thousands at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.errors import DataError, UsageError, require, unknown
from atomsieve.runs.output_files import atomic_draft, atomic_write, output_errors
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.joined import list_joined
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.table import ResultColumn
from atomsieve.structures.carried import (
    ID,
    ROWS,
    CarriedFile,
    CarriedWriter,
    columns_of,
    conform,
    join_tables,
)
from atomsieve.structures.conversion.carry import USUAL_IDS, name_column

if TYPE_CHECKING:
    import pyarrow as pa

JOINED = "_joined"
"""Ends the name of a joined column whose own name is another column of the results."""


@dataclass(frozen=True)
class JoinReport:
    """What a join did.

    Attributes
    ----------
    columns : names of the columns that were added. key : column of the table that held the ids; on : that of results.
    matched, rows : structures that found a row, and all. unused : rows of the table that no structure has.
    """

    columns: list[str]
    key: str
    on: str
    matched: int
    rows: int
    unused: int


def join_table(
    results: Results,
    table: Path,
    columns: dict[str, ResultColumn],
    *,
    on: str = ID,
    key: str | None = None,
    take: Sequence[str] = (),
    overwrite: bool = False,
) -> JoinReport:
    """Add the columns of a table (.csv, .parquet) to results, by the ids of their rows.

    columns : all columns of the results. on : the one that holds the ids. key : that of the table; None: the one of the
        same name, or the first usual name of ids. take : columns of the table; empty: all others.
    overwrite : replace columns that were joined before.

    Raises
    ------
    UsageError
        for a column that does not exist; DataError if an id stands twice in the table, or none of its ids is known.
    """
    found = read_table(table)
    key = _find_key(found, key, on, table)
    if on not in columns:
        raise unknown("column", on, columns)
    names = list(take) or [name for name in found.column_names if name != key]
    for name in names:
        if name not in found.column_names:
            raise unknown(f"column of {table}", name, found.column_names)
    known = _as_texts(found.column(key))
    _require_unique(known, key, table)
    added = _plain_columns(found, names, columns, {c.name for c in list_joined(results)}, overwrite)
    return _write(results, table, columns[on], added, known, key)


def read_table(path: Path) -> pa.Table:
    """Return a table of .csv or .parquet.

    Raises
    ------
    UsageError
        for another ending; DataError if it cannot be read.
    """
    arrow = require("pyarrow", "data", "reading tables")
    try:
        if path.suffix.lower() == ".csv":
            return require("pyarrow.csv", "data", "reading tables").read_csv(path)
        if path.suffix.lower() in (".parquet", ".pq"):
            return require("pyarrow.parquet", "data", "reading tables").read_table(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (arrow.ArrowInvalid, arrow.ArrowKeyError, OSError) as error:
        raise DataError(f"{path} cannot be read as a table ({str(error).splitlines()[0]})") from error
    raise unknown("format of the table", path.suffix.lstrip("."), ("csv", "parquet"))


def _find_key(table: pa.Table, key: str | None, on: str, path: Path) -> str:
    if key is not None:
        if key not in table.column_names:
            raise unknown(f"column of {path}", key, table.column_names)
        return key
    lower = {name.lower(): name for name in table.column_names}
    found = next((lower[name] for name in (on.lower(), *USUAL_IDS) if name in lower), None)
    if found is None:
        raise UsageError(
            f"{path} has no column {on!r} nor another usual name of ids; --key names it: "
            f"{', '.join(table.column_names[:20])}"
        )
    return found


def _as_texts(column: Any) -> pa.Array:
    """Return ids as texts; whole numbers without a point."""
    import pyarrow as arrow
    import pyarrow.compute as pc

    column = column.combine_chunks() if isinstance(column, arrow.ChunkedArray) else column
    if arrow.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
        column = column.cast(arrow.int64(), safe=False)
    return column.cast(arrow.string())


def _require_unique(ids: pa.Array, key: str, path: Path) -> None:
    import pyarrow.compute as pc

    counts = pc.value_counts(ids.drop_null())
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise DataError(
            f"{path}: {len(twice):,} ids stand more than once under {key!r} (such as {twice[0]['values'].as_py()!r}); "
            "leave one row of each"
        )


def _plain_columns(
    table: pa.Table, names: Sequence[str], columns: dict[str, ResultColumn], joined: set[str], overwrite: bool
) -> pa.Table:
    """Return the columns to add under their names in results, in the kinds that are carried."""
    import pyarrow as arrow

    out: dict[str, Any] = {}
    for name in names:
        own = name_column(name)
        if own in joined and not overwrite:
            raise UsageError(f"a column {own!r} was joined before; --overwrite replaces it")
        if own in columns and own not in joined:
            own = f"{own}{JOINED}"
        if own in out:
            raise UsageError(f"two columns of the table would both be {own!r}; --columns takes one of them")
        values = table.column(name)
        if arrow.types.is_integer(values.type):
            values = values.cast(arrow.int64())
        elif arrow.types.is_floating(values.type) or arrow.types.is_decimal(values.type):
            values = values.cast(arrow.float64())
        elif not arrow.types.is_boolean(values.type):
            values = _to_strings(values)
        out[own] = values
    if not out:
        raise UsageError("the table has no column beside its ids, so there is nothing to join")
    return arrow.table(out)


def _to_strings(values: Any) -> Any:
    import pyarrow as arrow

    try:
        return values.cast(arrow.string())
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError):
        return arrow.array([None if v is None else str(v) for v in values.to_pylist()], arrow.string())


def _write(results: Results, path: Path, on: ResultColumn, added: pa.Table, known: pa.Array, key: str) -> JoinReport:
    """Write the joined columns of all screened structures, earlier ones too."""
    import pyarrow as arrow
    import pyarrow.compute as pc

    folder, count = results.folder, results.chunks.n
    earlier = [c for c in list_joined(results) if c.name not in added.column_names]
    held = CarriedFile(folder.joined, count) if earlier else None
    columns = [*earlier, *columns_of(added)]
    matched, used = 0, np.zeros(len(known), bool)
    with (
        output_errors(folder.joined),
        atomic_draft(folder.joined, durable=False) as draft,
        CarriedWriter(draft, columns) as out,
    ):
        for start in range(0, count, ROWS):
            stop = min(start + ROWS, count)
            places = pc.index_in(_ids_of(on, start, stop), value_set=known)
            rows = added.take(places)
            found = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
            used[places.drop_null().to_numpy()] = True
            matched += len(found)
            parts = {} if held is None else {c.name: held.read(start, stop).column(c.name) for c in earlier}
            parts |= {name: rows.column(name) for name in rows.column_names}
            out.write(join_tables([conform(arrow.table(parts), columns)], columns))
        if not matched:
            raise DataError(
                f"no id of {path} under {key!r} is an id of the results under {on.name!r} (theirs: "
                f"{', '.join(map(repr, _ids_of(on, 0, min(3, count)).to_pylist()))}); --on and --key name others"
            )
    origin = {name: str(path.absolute()) for name in added.column_names}
    record = [{"name": c.name, "kind": c.kind, "table": origin.get(c.name, _origin(results, c.name))} for c in columns]
    atomic_write(folder.joined_record, (json.dumps({"columns": record}, indent=1) + "\n").encode())
    return JoinReport(added.column_names, key, on.name, matched, count, int((~used).sum()))


def _origin(results: Results, name: str) -> str:
    """Return the table from which a column was joined before."""
    try:
        found = json.loads(results.folder.joined_record.read_text())["columns"]
    except FileNotFoundError:
        return ""
    return next((str(column["table"]) for column in found if column["name"] == name), "")


def _ids_of(column: ResultColumn, start: int, stop: int) -> pa.Array:
    """Return the ids of structures `start:stop` as texts."""
    import pyarrow as arrow

    rows = np.zeros(stop - start, ROW)
    rows["position"] = np.arange(start, stop)
    if column.kind != "number":
        return arrow.array([text or None for text in map(str, column.values(rows).tolist())], arrow.string())
    return _as_texts(arrow.array(column.values(rows), from_pandas=True))
