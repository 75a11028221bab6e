"""Which values of a file are carried beside its structures, and under which names.

A value is carried where a file states one number, text or truth value of a structure. Text ids are carried as the
column `id`: those of the key that the user names, else of the first usual name of ids under which a structure states a
text.
"""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.block import Block, Column
from atomsieve.structures.carried import ID, format_number, kind_of, load_arrow
from atomsieve.text import pluralize

if TYPE_CHECKING:
    import pyarrow as pa

ALL, NONE = "all", "none"
MOST = 200
"""Most columns that are carried; with more, the names are values."""
LONGEST = 65_536
"""Bytes of the longest text that is carried."""
USUAL_IDS = (
    "id", "material_id", "mp_id", "mp-id", "mpid", "materialid", "mat_id", "sid", "structure_id", "structure_name",
    "identifier", "uid", "uuid", "task_id", "entry_id", "auid", "jid", "cod_id", "icsd_id", "name",
)  # fmt: skip
"""Names under which files state an identity, in lower case, the first one first: Materials Project (material_id,
task_id), fairchem (sid), JARVIS (jid), AFLOW (auid), Alexandria (mat_id), GNoME (MaterialId) and habits."""


def parse_carry(text: str | None) -> tuple[str, ...] | None:
    """Return the keys of `--carry mp_id,spacegroup`, `--carry all` or `--carry none`; None where it is not given.

    Raises
    ------
    UsageError
        for an empty name, one named twice, or `all` or `none` beside others.
    """
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    if "" in words:
        raise UsageError(f"--carry {text!r} has an empty name; write e.g. --carry mp_id,spacegroup, or --carry all")
    if len(set(words)) < len(words):
        raise UsageError(f"--carry {text!r} names a key twice")
    if len(words) > 1 and {ALL, NONE} & set(words):
        raise UsageError(f"--carry {text!r}: {ALL} and {NONE} stand alone; leave out the other names, or them")
    return words


def name_column(key: str) -> str:
    """Return the name of the column of a key: one that a row filter can ask for."""
    name = re.sub(r"\W", "_", key, flags=re.ASCII)
    name = f"_{name}" if not name or name[0].isdigit() else name
    return f"{name}_" if keyword.iskeyword(name) else name


@dataclass
class CarryTally:
    """What was carried, over all blocks and processes.

    Attributes
    ----------
    taken : structures by column, key and kind of the value.
    lists : structures by key whose values are no single ones, and which so was not carried.
    wanted : True if texts of usual names would have been carried, but pyarrow is not there.
    """

    taken: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    lists: Counter[str] = field(default_factory=Counter)
    wanted: bool = False

    def merge(self, other: CarryTally) -> None:
        """Add the counts of another part of the input."""
        self.taken.update(other.taken)
        self.lists.update(other.lists)
        self.wanted = self.wanted or other.wanted

    @property
    def keys(self) -> set[str]:
        """Return the keys that were carried."""
        return {key for _, key, _ in self.taken}

    def list_notes(self, structures: int) -> Iterator[str]:
        """Yield a sentence for each thing that a user should know; `structures` were written."""
        columns = dict.fromkeys((column, key) for column, key, _ in self.taken)
        if columns:
            words = [column if key in (column, "") else f"{column} (from {key})" for column, key in columns]
            yield f"carried: {', '.join(words)}"
        ids = sum(count for (column, _, _), count in self.taken.items() if column == ID)
        if 0 < ids < structures:
            yield f"{pluralize(structures - ids, 'structure')} of {structures:,} without a text id: theirs is empty"
        for column in dict.fromkeys(column for column, _ in columns):
            kinds: Counter[str] = Counter()
            for (name, _, kind), count in self.taken.items():
                kinds[kind] += count if name == column else 0
            found = {kind: count for kind, count in kinds.items() if count}
            if len({"number" if kind in ("int", "float") else kind for kind in found}) > 1:
                words = [f"{count:,} {kind}" for kind, count in found.items()]
                yield f"carried column {column} has values of mixed types ({', '.join(words)}): all are kept as text"
        if self.lists:
            keys = sorted(self.lists)
            yield (
                f"not carried, as their values are lists: {', '.join(keys[:12])}"
                + (f", and {len(keys) - 12} more" if len(keys) > 12 else "")
                + "; --carry NAME keeps one as text"
            )
        if self.wanted:
            yield "text ids are not carried, because pyarrow is not installed: pip install 'atomsieve[data]'"


@dataclass(frozen=True)
class Carry:
    """What is carried.

    Attributes
    ----------
    keys : names in the files, or `all`, or `none`; None: text ids alone, and all that a dataset carries already.
    id : key of text ids; None: the first usual name under which structures state a text.
    taken : keys that serve for something else, which `all` leaves out.
    find_id : without `id`, look for text ids under usual names.
    """

    keys: tuple[str, ...] | None = None
    id: str | None = None
    taken: frozenset[str] = frozenset()
    find_id: bool = True

    def tabulate(self, block: Block, kept: NDArray[np.int64], labels: set[str], tally: CarryTally) -> pa.Table | None:
        """Return a row of carried columns for each of the structures `kept` of a block; None if there are none.

        labels : keys from which labels were taken.

        Raises
        ------
        DataError
            for a text that is too long, or more columns than `MOST`; UsageError if two keys give one column.
        """
        if self.keys == (NONE,) and self.id is None:
            return None
        chosen = dict(self._choose(block, labels, tally))
        inherited = self._inherit(block)
        if not chosen and inherited is None:
            return None
        if not _has_arrow() and self.keys is None and self.id is None:
            tally.wanted = True
            return None
        arrow = load_arrow()
        arrays: dict[str, pa.Array] = {}
        if inherited is not None:
            table = inherited.take(arrow.array(kept))
            for name in table.column_names:
                arrays[name] = table.column(name)
                _count(tally, name, "", arrays[name])
        for column, key in chosen.items():
            if column in arrays:
                continue
            kinds, arrays[column] = _to_arrow(block, key, kept, as_text=column == ID)
            for kind, count in kinds.items():
                tally.taken[column, key, kind] += count
        if len(arrays) > MOST:
            raise DataError(
                f"{block.places[0]}: {len(arrays)} columns would be carried, at most {MOST} can be; name those that "
                "matter with --carry"
            )
        return arrow.table(arrays)

    def _choose(self, block: Block, labels: set[str], tally: CarryTally) -> Iterator[tuple[str, str]]:
        """Yield column and key of each value of the file that is carried."""
        own = self.id or (_find_text_id(block) if self.find_id and self.keys != (NONE,) else None)
        if own is not None and own in block.info:
            yield ID, own
        if self.keys is None or self.keys == (NONE,):
            return
        names = self.keys
        if names == (ALL,):
            skip = {*labels, *self.taken, own}
            names = tuple(key for key in block.info if key not in skip and _is_single(block.info[key], key, tally))
        seen: dict[str, str] = {}
        for key in names:
            column = name_column(key)
            if column == ID and own is not None and key != own:
                column = f"{ID}_given"
            if seen.setdefault(column, key) != key:
                raise UsageError(
                    f"the keys {seen[column]!r} and {key!r} would both be the column {column!r}; carry one"
                )
            if key in block.info and not (column == ID and own == key):
                yield column, key

    def _inherit(self, block: Block) -> pa.Table | None:
        """Return those carried columns of a dataset that are carried on."""
        table = block.carried
        if table is None or self.keys is None or self.keys == (ALL,):
            return table
        names = [name for name in table.column_names if name == ID or name in map(name_column, self.keys)]
        return table.select(names) if names else None


def _has_arrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def _find_text_id(block: Block) -> str | None:
    """Return the first usual name of ids under which structures of a block state a text."""
    if block.carried is not None and ID in block.carried.column_names:
        return None
    by_name = {key.lower(): key for key in block.info}
    for name in USUAL_IDS:
        key = by_name.get(name)
        values = None if key is None else block.info[key].values
        if values is not None and values.dtype == object and any(isinstance(value, str) for value in values[:100]):
            return key
    return None


def _is_single(column: Column, key: str, tally: CarryTally) -> bool:
    """Return whether a key has one value for each structure."""
    values = column.values
    single = values.ndim == 1 and not any(isinstance(v, list | tuple | dict | np.ndarray) for v in values[:20])
    if not single:
        tally.lists[key] += int(column.has.sum())
    return single


def _count(tally: CarryTally, name: str, key: str, values: Any) -> None:
    tally.taken[name, key, kind_of(values.type)] += len(values) - values.null_count


def _to_arrow(block: Block, key: str, kept: NDArray[np.int64], *, as_text: bool) -> tuple[dict[str, int], pa.Array]:
    """Return the values of a key, a row for each structure that is kept, and the number of each kind among them.

    Raises
    ------
    DataError
        for a text that is too long.
    """
    column = block.info[key]
    values = column.values
    if values.ndim == 1 and values.dtype.kind in "bif" and not as_text:
        kind = {"b": "flag", "i": "int", "f": "float"}[values.dtype.kind]
        full = np.zeros(len(column.has), {"flag": bool, "float": np.float64, "int": np.int64}[kind])
        full[column.has] = values
        found = load_arrow().array(full[kept], mask=~column.has[kept])
        return {kind: len(kept) - found.null_count}, found
    full = np.full(len(column.has), None, object)
    if values.ndim == 1:
        full[column.has] = values
    else:
        for at, value in zip(np.flatnonzero(column.has).tolist(), values, strict=True):
            full[at] = value
    kinds, texts = _to_texts(full[kept])
    import pyarrow.compute as pc

    lengths = pc.binary_length(texts)
    if len(texts) and (longest := pc.max(lengths).as_py() or 0) > LONGEST:
        place = block.places[int(kept[pc.index(lengths, longest).as_py()])]
        raise DataError(
            f"{place}: the text of {key!r} has {longest:,} bytes, at most {LONGEST:,} are carried; name the keys that "
            "matter with --carry, or give --carry none"
        )
    return kinds, texts


def _to_texts(values: NDArray[Any]) -> tuple[dict[str, int], pa.Array]:
    """Return objects as texts, missing ones and empty texts as null, with the number of each kind of value."""
    import pyarrow as arrow
    import pyarrow.compute as pc

    try:
        texts = arrow.array(values, arrow.string(), from_pandas=True)
        kinds = None
    except (arrow.ArrowTypeError, arrow.ArrowInvalid, UnicodeEncodeError):
        texts = arrow.array([_to_text(value) for value in values.tolist()], arrow.string())
        kinds = Counter(_name_kind(value) for value in values if value is not None)
    texts = pc.if_else(pc.equal(pc.binary_length(texts), 0), arrow.scalar(None, arrow.string()), texts)
    return {"text": len(texts) - texts.null_count} if kinds is None else dict(kinds), texts


def _name_kind(value: Any) -> str:
    """Return number, flag, list or text."""
    if isinstance(value, bool | np.bool_):
        return "flag"
    if isinstance(value, int | float | np.number):
        return "number"
    return "list" if isinstance(value, list | tuple | dict | np.ndarray) else "text"


def _to_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str)
    return format_number(value)
