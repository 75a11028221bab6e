"""Finds the records in a JSON file: in lists, lines, objects by id, answers of OPTIMADE servers, tables of pandas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atomsieve.errors import DataError
from atomsieve.structures.formats.records.stream import JsonText
from atomsieve.structures.item import open_with_progress

STRUCTURES = (
    "structure",
    "computed_structure_entry",
    "final_structure",
    "relaxed_structure",
    "initial_structure",
    "molecule",
    "atoms",
)
"""Keys under which records hold a structure."""
GEOMETRY = ("sites", "lattice_mat", "cartesian_site_positions", "numbers", "atoms_json")
"""Keys of structures themselves: of pymatgen, JARVIS, OPTIMADE, ASE, and ASE atoms in pymatgen's spelling."""
ENTRY_KEYS = ("structure", "lattice", "data", "parameters", "composition", "numbers", "properties")
"""Keys of objects inside structures and entries: what has one of them is no table."""
LARGEST_TABLE = 1 << 31
"""Characters of the columns beside the structures of a table of pandas, which are held in memory."""


class Record(NamedTuple):
    """A record of a file: where it is, its value, its key in an object of records, and a key that it has twice."""

    where: str
    value: Any
    key: str | None = None
    twice: str | None = None


def find_records(path: Path, tick: Callable[[float], None]) -> Iterator[Record]:
    """Yield the records of a JSON file, plain or gzip.

    Raises
    ------
    DataError
        if the file is not JSON or ends too early, naming the place.
    """
    with open_with_progress(path) as (file, fraction):
        text = JsonText(path, file, lambda: tick(fraction()))
        count = 0
        while text.peek():
            if text.peek() == "{":
                layout = _find_layout(text)
                if layout == "table":
                    yield from _read_table(path, tick)
                    return
                for record in _LAYOUTS[layout](text):
                    yield record._replace(where=f"{path}: {record.where or f'element {count}'}")
                    count += 1
            elif text.peek() == "[":
                for record in _read_list(text):
                    yield record._replace(where=f"{path}: element {count}")
                    count += 1
            else:
                yield Record(f"{path}: element {count}", text.take_value())
                count += 1
            text.skip(",")


def holds_structure(value: Any) -> bool:
    """Return True for an object that looks like a structure or a record of one."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("attributes"), dict):
        value = value["attributes"]
    return any(name in value for name in GEOMETRY) or any(isinstance(value.get(n), dict | str) for n in STRUCTURES)


def _find_layout(text: JsonText) -> str:
    """Return what the object that comes next is, by its first key and value: record, entries, answer or table."""
    text.mark()
    try:
        text.take("{")
        if text.peek() == "}":
            return "record"
        key = text.take_key()
        if text.peek() == "[":
            return "answer" if key == "data" else "record"
        if text.peek() != "{":
            return "record"
        if key in ("links", "meta"):
            return "answer"
        text.take("{")
        if text.peek() == "}":
            return "record"
        inner = text.take_key()
        opening = text.peek()
        if key in STRUCTURES and opening == "{" and inner not in ENTRY_KEYS:
            if holds_structure(text.take_value()):
                return "table"
            return "record"
        if not key.isdigit() and inner == "0":
            return "table"
        if key in (*STRUCTURES, "lattice"):
            return "record"
        text.rewind()
        text.mark()
        text.take("{")
        text.take_key()
        value = text.take_value()
        if holds_structure(value) or any(holds_structure(one) for one in value.values()):
            return "entries"
        return "record"
    finally:
        text.rewind()


def _read_list(text: JsonText) -> Iterator[Record]:
    text.take("[")
    if text.skip("]"):
        return
    while True:
        value = text.take_value()
        yield Record("", value, None, text.twice)
        if not text.skip(","):
            text.take("]")
            return


def _read_one(text: JsonText) -> Iterator[Record]:
    value = text.take_value()
    yield Record("", value, None, text.twice)


def _read_entries(text: JsonText) -> Iterator[Record]:
    """Yield records of an object by id, or by id and frame."""
    for key in _keys(text):
        value, twice = text.take_value(), text.twice
        if holds_structure(value):
            yield Record(f"entry {key}", value, key, twice)
        elif isinstance(value, dict) and any(isinstance(one, dict) for one in value.values()):
            for frame, one in value.items():
                yield Record(f"entry {key} {frame}", one, frame, twice)
        elif isinstance(value, dict):
            yield Record(f"entry {key}", value, key, twice)


def _read_answer(text: JsonText) -> Iterator[Record]:
    """Yield what the answer of an OPTIMADE server holds under `data`."""
    for key in _keys(text):
        if key == "data" and text.peek() == "[":
            yield from _read_list(text)
        elif key == "data":
            yield from _read_one(text)
        else:
            text.take_value()


def _keys(text: JsonText) -> Iterator[str]:
    text.take("{")
    if text.skip("}"):
        return
    while True:
        yield text.take_key()
        if not text.skip(","):
            text.take("}")
            return


_LAYOUTS: dict[str, Callable[[JsonText], Iterator[Record]]] = {
    "record": _read_one,
    "entries": _read_entries,
    "answer": _read_answer,
}


def _read_table(path: Path, tick: Callable[[float], None]) -> Iterator[Record]:
    """Yield the rows of a table of pandas, `{column: {row: value}}`: read twice, the structures as a stream."""
    columns: dict[str, dict[str, Any]] = {}
    structures: list[str] = []
    with open_with_progress(path) as (file, _):
        text, held = JsonText(path, file), 0
        for name in _keys(text):
            column: dict[str, Any] = {}
            start = text.place
            for row in _keys(text):
                value = text.take_value()
                if value is None:
                    continue
                if not column and (holds_structure(value) or name in structures):
                    if name not in structures:
                        structures.append(name)
                    continue
                column[row] = value
            if name not in structures:
                columns[name] = column
                held += text.place - start
            if held > LARGEST_TABLE:
                raise DataError(
                    f"{path} is a table by columns with more than {LARGEST_TABLE:,} characters beside its structures; "
                    "write it by rows: DataFrame.to_json(FILE, orient='records', lines=True)"
                )
    chosen = [name for name in STRUCTURES if name in structures] or structures
    if not chosen or (len(structures) > 1 and chosen[0] not in STRUCTURES[:2]):
        raise DataError(
            f"{path} is a table by columns; which of {', '.join(structures) or 'its columns'} holds the structures?"
        )
    with open_with_progress(path) as (file, fraction):
        text = JsonText(path, file, lambda: tick(fraction()))
        for name in _keys(text):
            for row in _keys(text):
                value, twice = text.take_value(), text.twice
                if name == chosen[0]:
                    beside = {key: column[row] for key, column in columns.items() if column.get(row) is not None}
                    yield Record(f"{path}: row {row}", {**beside, name: value}, row, twice)
            if name == chosen[0]:
                return
