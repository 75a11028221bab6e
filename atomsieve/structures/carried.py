"""Carried columns: values that files state of a structure and no model needs, kept beside the structures.

They lie in an Arrow IPC file, in record batches of `ROWS` rows but for the last one, so that the rows at any place are
read without the others. A column has one kind in a file; files of one dataset may differ, and `unify_kinds` says what
they are together. Rows are in the order of the structures; a value that a structure lacks is null.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, require, unknown

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["int", "float", "flag", "text"]
KINDS: tuple[Kind, ...] = ("int", "float", "flag", "text")
FILE = "carried.arrow"
ROWS = 16_384
"""Rows of a record batch."""
BATCHES_KEPT = 4
"""Decoded columns of record batches that stay in memory: neighbouring reads do not decode them again."""
HASHED = 1 << 22  # bytes of texts hashed at once
ID = "id"
"""Name of the column of text ids."""


@dataclass(frozen=True)
class CarriedColumn:
    """A carried column: its name, and the kind of its values."""

    name: str
    kind: Kind


def load_arrow() -> Any:
    """Return the module pyarrow, or say which extra brings it."""
    return require("pyarrow", "data", "carrying columns")


def arrow_type(kind: Kind) -> pa.DataType:
    """Return the Arrow type of a kind."""
    arrow = load_arrow()
    types = {"int": arrow.int64(), "float": arrow.float64(), "flag": arrow.bool_(), "text": arrow.string()}
    found: pa.DataType = types[kind]
    return found


def kind_of(type_: pa.DataType) -> Kind:
    """Return the kind of an Arrow type that `arrow_type` gives."""
    for kind in KINDS:
        if type_ == arrow_type(kind):
            return kind
    raise DataError(f"a carried column has the type {type_}; allowed are {', '.join(KINDS)}")


def columns_of(table: pa.Table) -> list[CarriedColumn]:
    """Return the columns of a table."""
    return [CarriedColumn(field.name, kind_of(field.type)) for field in table.schema]


def unify_kinds(groups: Iterable[Sequence[CarriedColumn]]) -> list[CarriedColumn]:
    """Return the columns of several files together, by first appearance; integers with floats are float, else text."""
    kinds: dict[str, Kind] = {}
    for columns in groups:
        for column in columns:
            known = kinds.setdefault(column.name, column.kind)
            if known != column.kind:
                kinds[column.name] = "float" if {known, column.kind} == {"int", "float"} else "text"
    return [CarriedColumn(name, kind) for name, kind in kinds.items()]


def conform(table: pa.Table, columns: Sequence[CarriedColumn]) -> pa.Table:
    """Return a table with exactly these columns: values are cast to their kinds, columns that it lacks are null."""
    arrow = load_arrow()
    arrays = []
    for column in columns:
        if column.name not in table.column_names:
            arrays.append(arrow.nulls(table.num_rows, arrow_type(column.kind)))
            continue
        values = table.column(column.name)
        arrays.append(values if values.type == arrow_type(column.kind) else _cast(values, column.kind))
    if not columns:
        return table.select([])
    return arrow.table(arrays, schema=arrow.schema([(c.name, arrow_type(c.kind)) for c in columns]))


def _cast(values: Any, kind: Kind) -> Any:
    arrow = load_arrow()
    if kind == "text":
        texts = [None if v is None or v != v else format_number(v) for v in values.to_pylist()]
        return arrow.array(texts, arrow.string())
    return values.cast(arrow_type(kind), safe=False)


def format_number(value: Any) -> str:
    """Return a number or truth value as text that reads back to the same value; whole numbers have no point."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def to_values(column: Any, kind: Kind) -> NDArray[Any]:
    """Return an Arrow column as float64 (NaN where missing), objects of type str ("" where missing), or bool."""
    import pyarrow.compute as pc

    if kind == "text":
        coded = pc.dictionary_encode(pc.fill_null(column, ""))
        coded = coded.combine_chunks() if hasattr(coded, "combine_chunks") else coded
        if hasattr(coded, "chunks"):  # of a chunked array without chunks
            return np.zeros(0, object)
        known = np.array([*coded.dictionary.to_pylist(), ""], object)
        return known[coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)]
    if kind == "flag":
        return (
            np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), bool)
            if len(column)
            else np.zeros(0, bool)
        )
    return np.asarray(pc.fill_null(column.cast("float64", safe=False), np.nan).to_numpy(), np.float64)


class CarriedWriter:
    """Writes a file of carried columns; tables of any length come in, batches of `ROWS` rows go out."""

    def __init__(self, path: Path, columns: Sequence[CarriedColumn]) -> None:
        arrow = load_arrow()
        ipc = require("pyarrow.ipc", "data", "carrying columns")
        self.columns = list(columns)
        schema = arrow.schema([(c.name, arrow_type(c.kind)) for c in columns], metadata={"rows_per_batch": str(ROWS)})
        codec = "lz4" if arrow.Codec.is_available("lz4") else None
        self._file = ipc.new_file(str(path), schema, options=ipc.IpcWriteOptions(compression=codec))
        self._pending: list[pa.Table] = []
        self._rows = 0
        self._schema = schema

    def write(self, table: pa.Table) -> None:
        """Append rows that have these columns."""
        self._pending.append(table.replace_schema_metadata(self._schema.metadata))
        self._rows += table.num_rows
        if self._rows >= ROWS:
            self._cut(final=False)

    def _cut(self, *, final: bool) -> None:
        if not self._rows:
            return
        table = load_arrow().concat_tables(self._pending)
        start = 0
        while table.num_rows - start >= ROWS or (final and start < table.num_rows):
            for batch in table.slice(start, ROWS).combine_chunks().to_batches():
                self._file.write_batch(batch)
            start += ROWS
        rest = table.slice(min(start, table.num_rows))
        self._pending, self._rows = ([rest] if rest.num_rows else []), rest.num_rows

    def close(self) -> None:
        """Write what is pending and the end of the file."""
        self._cut(final=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


class CarriedFile:
    """A file of carried columns, mapped into memory; `rows` of them.

    Raises
    ------
    DataError
        if it is missing, damaged, or has another number of rows.
    """

    def __init__(self, path: Path, rows: int) -> None:
        arrow = load_arrow()
        ipc = require("pyarrow.ipc", "data", "carrying columns")
        self.path, self.rows = path, rows
        try:
            self._source = arrow.memory_map(str(path))
            self._file = ipc.open_file(self._source)
            names = self._file.schema.names
            self.columns = [CarriedColumn(name, kind_of(self._file.schema.field(name).type)) for name in names]
            count = self._file.num_record_batches
            held = 0 if not count else (count - 1) * ROWS + self._file.get_batch(count - 1).num_rows
        except (OSError, arrow.ArrowInvalid) as error:
            raise DataError(f"{path} cannot be read ({error}); copy or write it again") from error
        if held != rows or (b"rows_per_batch" in (found := self._file.schema.metadata or {})) is False:
            raise DataError(f"{path} holds {held:,} rows, {rows:,} structures need one each; copy or write it again")
        if int(found[b"rows_per_batch"]) != ROWS:
            raise DataError(
                f"{path} has batches of {int(found[b'rows_per_batch']):,} rows, not {ROWS:,}; write it again"
            )
        self._decoded: OrderedDict[tuple[int, str], NDArray[Any]] = OrderedDict()

    def read(self, start: int, stop: int) -> pa.Table:
        """Return the rows `start:stop` of all columns."""
        arrow = load_arrow()
        batches = [self._file.get_batch(k) for k in range(start // ROWS, -(-stop // ROWS))] if stop > start else []
        table = arrow.Table.from_batches(batches, self._file.schema)
        return table.slice(start % ROWS, stop - start)

    def values_at(self, positions: NDArray[np.int64], name: str) -> NDArray[Any]:
        """Return the values of a column at sorted positions, as `to_values` gives them."""
        if not len(positions):
            return missing_values(0, find_carried(self.columns, name).kind)
        parts = [self._batch(int(k), name)[own] for k, own in _by_batch(positions)]
        return np.concatenate(parts)

    def _batch(self, number: int, name: str) -> NDArray[Any]:
        """Return a column of a record batch, decoded."""
        key = (number, name)
        if key not in self._decoded:
            kind = next(c.kind for c in self.columns if c.name == name)
            self._decoded[key] = to_values(self._file.get_batch(number).column(name), kind)
            if len(self._decoded) > BATCHES_KEPT:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(key)
        return self._decoded[key]


def _by_batch(positions: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the number of each batch that holds sorted positions, and their places in it."""
    numbers = positions // ROWS
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    for own in np.split(positions, cuts) if len(positions) else []:
        yield int(own[0] // ROWS), own % ROWS


def values_in_kind(values: NDArray[Any], own: Kind, wanted: Kind) -> NDArray[Any]:
    """Return values of one kind, as `to_values` gives them, in the kind that a whole dataset has."""
    if own == wanted or {own, wanted} == {"int", "float"} or wanted != "text":
        return values
    if own == "flag":
        return np.array([str(v) for v in values.tolist()], object)
    return np.array(["" if v != v else format_number(v) for v in values.tolist()], object)


def missing_values(count: int, kind: Kind) -> NDArray[Any]:
    """Return values of structures that lack a column."""
    if kind == "text":
        return np.full(count, "", object)
    return np.zeros(count, bool) if kind == "flag" else np.full(count, np.nan)


def find_carried(columns: Sequence[CarriedColumn], name: str) -> CarriedColumn:
    """Return the column called `name`; the error lists those that there are."""
    found = next((column for column in columns if column.name == name), None)
    if found is None:
        raise unknown("carried column", name, [column.name for column in columns])
    return found


def blank_table(count: int, columns: Sequence[CarriedColumn]) -> pa.Table:
    """Return a table of `count` rows whose values are all missing."""
    arrow = load_arrow()
    types = [(column.name, arrow_type(column.kind)) for column in columns]
    return arrow.table([arrow.nulls(count, kind) for _, kind in types], schema=arrow.schema(types))


def join_tables(tables: Sequence[pa.Table], columns: Sequence[CarriedColumn]) -> pa.Table:
    """Return tables that have these columns as one."""
    return load_arrow().concat_tables(tables) if tables else blank_table(0, columns)


def tabulate_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return a row of carried columns for each mapping; values of mixed kinds and empty texts as in a conversion."""
    arrow = load_arrow()
    arrays = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [None if row.get(name) in (None, "") else row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float} or kinds <= {bool} or kinds <= {str}:
            kind: Kind = (
                "text"
                if not kinds or str in kinds
                else "flag"
                if bool in kinds
                else "int"
                if kinds == {int}
                else "float"
            )
            arrays[name] = arrow.array(values, arrow_type(kind))
        else:
            arrays[name] = arrow.array([None if v is None else format_number(v) for v in values], arrow.string())
    return arrow.table(arrays)


def hash_texts(texts: pa.Array) -> NDArray[np.uint64]:
    """Return a number of 64 bits for each text of an Arrow array without nulls; different texts have different ones.

    Two of n different texts share one with a probability of about n^2 / 2^65. Each byte and its place are mixed by
    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) and added up, a few million bytes at a time.
    """
    n = len(texts)
    ends = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + n + 1].astype(np.int64)
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    out = np.zeros(n, np.uint64)
    first = 0
    while first < n:
        last = max(int(np.searchsorted(ends, ends[first] + HASHED, side="right")) - 1, first + 1)
        own = ends[first : last + 1]
        place = np.arange(own[0], own[-1]) - np.repeat(own[:-1], np.diff(own))
        mixed = _mix(place.astype(np.uint64) << np.uint64(8) | data[own[0] : own[-1]])
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        out[first:last] = _mix(sums[own[1:] - own[0]] - sums[own[:-1] - own[0]] + np.diff(own).astype(np.uint64))
        first = last
    return out


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class CarriedQueue:
    """Carried rows that wait until their structures are written: tables come in, as many rows as structures go out.

    The columns of what goes out only grow, and their kinds only widen; `columns` are those so far.
    """

    def __init__(self) -> None:
        self.columns: list[CarriedColumn] = []
        self._waiting: list[tuple[int, pa.Table | None]] = []

    def put(self, count: int, table: pa.Table | None) -> None:
        """Append the rows of `count` structures; None where they carry nothing."""
        if table is not None and table.num_rows != count:
            raise DataError(f"{count} structures were given with {table.num_rows} carried rows")
        self._waiting.append((count, table if table is not None and table.num_columns else None))

    def take(self, count: int) -> pa.Table | None:
        """Return the rows of the next `count` structures in the columns so far; None if there are no columns."""
        parts: list[tuple[int, pa.Table | None]] = []
        while count:
            size, table = self._waiting.pop(0)
            if size > count:
                self._waiting.insert(0, (size - count, None if table is None else table.slice(count)))
                size, table = count, None if table is None else table.slice(0, count)
            parts.append((size, table))
            count -= size
        self.columns = unify_kinds([self.columns, *(columns_of(table) for _, table in parts if table is not None)])
        if not self.columns:
            return None
        own = [blank_table(n, self.columns) if table is None else conform(table, self.columns) for n, table in parts]
        return join_tables(own, self.columns)
