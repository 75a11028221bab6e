"""Gathers rows of ASE's databases (JSON objects) into blocks, without an object for each number."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.block import Block, Column, Places, as_array_of_atoms, build_column, is_label_of_atoms
from atomsieve.structures.item import BadItem
from atomsieve.structures.units import Units

BLOCK_ROWS, BLOCK_ATOMS = 2000, 200_000

OF_ATOMS = {
    "forces": 3,
    "momenta": 3,
    "tags": 1,
    "masses": 1,
    "initial_magmoms": 0,
    "initial_charges": 1,
    "magmoms": 0,
    "charges": 1,
    "energies": 1,
    "stresses": 0,
}
"""Arrays per atom that a row of ASE may have, with their numbers per atom; 0: one or several."""
NOT_STATED = frozenset({"ctime", "mtime", "user", "calculator_parameters", "constraints", "natoms", "id"})
"""What a row says about itself, not about the structure. Forces are stored before constraints act on them."""
UNREAD = NOT_STATED | {"numbers", "positions"}
REAL = frozenset(f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)) | {"bool"}
SCALARS = frozenset({float, int, str, bool})

Parse = Callable[[bytes], Mapping[str, Any]]


def find_parser() -> Parse:
    """Return the fastest parser of one JSON object that is installed; what it refuses (NaN) the standard one reads."""
    try:
        import simdjson
    except ImportError:
        return json.loads
    parser = simdjson.Parser()

    def parse(text: bytes) -> Mapping[str, Any]:
        nonlocal parser
        try:
            found: Any = parser.parse(text)
        except RuntimeError:  # something still holds a part of the text before, or an integer is too large for it
            parser = simdjson.Parser()
            found = json.loads(text)
        except ValueError:
            found = json.loads(text)
        if not hasattr(found, "items"):
            raise ValueError("not an object")
        return found

    return parse


class RowGatherer:
    """Collects rows of one database until they are asked for as a block.

    Attributes
    ----------
    path, word : for places: `PATH: WORD 17`.
    units : units of all rows.
    parse : reads a row that is given as text.
    """

    def __init__(self, path: str, word: str, units: Units | None = None, parse: Parse = json.loads) -> None:
        self.path, self.word, self.units, self.parse = path, word, units or Units(), parse
        self._clear()

    def _clear(self) -> None:
        self.counts: list[int] = []
        self.names: list[int | str] = []
        self.bad: list[tuple[int, BadItem]] = []
        self.numbers, self.positions, self.cells = bytearray(), bytearray(), bytearray()
        self.pbc: list[Any] = []
        self.info: dict[str, tuple[list[int], list[Any]]] = {}
        self.arrays: dict[tuple[str, int, str], tuple[list[int], bytearray]] = {}
        self.atoms = 0

    @property
    def full(self) -> bool:
        """True if the block should be taken now."""
        return len(self.counts) + len(self.bad) >= BLOCK_ROWS or self.atoms >= BLOCK_ATOMS

    @property
    def empty(self) -> bool:
        """True if there is nothing to take."""
        return not self.counts and not self.bad

    def refuse(self, reason: str, name: int | str, detail: str = "") -> None:
        """Note a row that cannot be read."""
        bad = BadItem(reason, f"{self.path}: {self.word} {name}", detail)
        self.bad.append((len(self.counts) + len(self.bad), bad))

    def add_text(self, text: bytes, name: int | str) -> None:
        """Append a row, given as JSON; errors as of `add`."""
        self.add(self.parse(text), name)

    def add(self, row: Mapping[str, Any], name: int | str) -> None:
        """Append a row.

        Raises
        ------
        ValueError, KeyError, TypeError
            if it is no row of a structure; nothing is appended then.
        """
        numbers = to_flat(row["numbers"], "i")
        count = len(numbers) // 8
        positions = to_flat(row["positions"], "d")
        if len(positions) != 24 * count:
            raise ValueError("positions do not fit the number of atoms")
        info: dict[str, Any] = {}
        arrays: list[tuple[str, int, str, bytes]] = []
        cell, pbc = bytes(72), [False] * 3
        more: list[Any] = []
        names = list(row)
        for key in names:
            if key in UNREAD:
                continue
            value = row[key]
            kind = type(value)
            if kind in SCALARS:
                info[key] = value
            elif value is None:
                continue
            elif key == "cell":
                cell = to_flat(value, "d")
            elif key == "pbc":
                pbc = to_truths(value)
            elif key == "key_value_pairs" or key == "data":
                more.append(to_plain(value))
            elif key in OF_ATOMS:
                flat = to_flat(value, "i" if key == "tags" else "d")
                width = len(flat) // 8 // count if count else 0
                if count and len(flat) == 8 * count * width and OF_ATOMS[key] in (0, width):
                    arrays.append((key, width, "i" if key == "tags" else "d", flat))
                else:
                    info[key] = np.frombuffer(flat).tolist()
            else:
                info[key] = to_plain(value)
        if len(cell) != 72:
            raise ValueError("the cell is not three vectors")
        for found in more:
            if not isinstance(found, dict):
                raise ValueError("key_value_pairs or data is not an object")
            for key, value in found.items():
                if key not in names:
                    info[key] = value
        self._append(name, count, (numbers, positions, cell), pbc, info, arrays)

    def _append(
        self,
        name: int | str,
        count: int,
        geometry: tuple[bytes, bytes, bytes],
        pbc: Any,
        info: dict[str, Any],
        arrays: list[tuple[str, int, str, bytes]],
    ) -> None:
        place = len(self.counts)
        for key, width, kind, flat in arrays:
            rows, held = self.arrays.setdefault((key, width, kind), ([], bytearray()))
            rows.append(place)
            held += flat
        for key, value in info.items():
            self._note(key, value, place, count)
        self._append_geometry(*geometry, pbc)
        self.counts.append(count)
        self.names.append(name)
        self.atoms += count

    def _note(self, key: str, value: Any, place: int, count: int) -> None:
        """Append what a structure states; results with a row per atom are arrays of atoms."""
        array = None
        if type(value) not in SCALARS and is_label_of_atoms(key):
            array = as_array_of_atoms(value, count)
        if array is not None and array.ndim <= 2 and array.dtype.kind in "biuf":
            rows, held = self.arrays.setdefault((key, int(np.prod(array.shape[1:])), "d"), ([], bytearray()))
            rows.append(place)
            held += array.astype(np.float64).tobytes()
            return
        column = self.info.get(key)
        if column is None:
            column = self.info[key] = ([], [])
        column[0].append(place)
        column[1].append(value)

    def _append_geometry(self, numbers: bytes, positions: bytes, cell: bytes, pbc: list[bool]) -> None:
        self.numbers += numbers
        self.positions += positions
        self.cells += cell
        self.pbc.append(pbc)

    def _take_geometry(self) -> tuple[NDArray[Any], ...]:
        """Return numbers, positions, cells and periodic axes, flat."""
        return (
            np.frombuffer(self.numbers, np.int64),
            np.frombuffer(self.positions, np.float64),
            np.frombuffer(self.cells, np.float64),
            np.array(self.pbc, bool),
        )

    def _take_columns(self) -> dict[str, Column]:
        """Return columns of structures that are complete, after moving all others to `info` and `arrays`."""
        return {}

    def _name_rows(self) -> None:
        """Give the names of the rows as the ids of those that state none."""
        ids = list(self.names)
        for place, value in zip(*self.info.get("id", ([], [])), strict=True):
            ids[place] = value
        self.info["id"] = (list(range(len(ids))), ids)

    def take(self, start: int = 0, stop: int = 0) -> Block:
        """Return all rows as a block, and forget them."""
        count, counts = len(self.counts), np.array(self.counts, np.int64)
        arrays: dict[str, Column] = {}
        info = self._take_columns()
        if count:
            self._name_rows()
        for key, (places, values) in self.info.items():
            info[key] = build_column(list(zip(places, values, strict=True)), count)
        for (key, width, kind), (rows, held) in self.arrays.items():
            has = np.zeros(count, bool)
            has[rows] = True
            flat: NDArray[Any] = np.frombuffer(held, np.int64 if kind == "i" else np.float64)
            flat = flat.reshape(-1, width) if width > 1 else flat
            if key in arrays or key in info:  # another number of columns in other rows: kept as objects
                parts = np.split(flat, np.cumsum(counts[has])[:-1])
                info[key] = _join(info.get(key), arrays.pop(key, None), counts, rows, parts, count)
            else:
                arrays[key] = Column(has, flat)
        numbers, positions, cells, pbc = self._take_geometry()
        block = Block(
            ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            numbers=numbers,
            positions=positions.reshape(-1, 3),
            cell=cells.reshape(-1, 3, 3),
            pbc=pbc.reshape(-1, 3),
            places=self._places(),
            info=info,
            arrays=arrays,
            units=self.units,
            bad=self.bad,
            start=start,
            stop=stop,
        )
        self._clear()
        return block

    def _places(self) -> Sequence[str]:
        if all(isinstance(name, int) for name in self.names):
            return Places(self.path, self.word, np.array(self.names, np.int64))
        return [f"{self.path}: {self.word} {name}" for name in self.names]


def _join(
    other: Column | None,
    atoms: Column | None,
    counts: NDArray[np.int64],
    rows: list[int],
    parts: list[NDArray[Any]],
    count: int,
) -> Column:
    """Return one column of objects of what some structures have in one shape and others in another."""
    found: dict[int, Any] = dict(zip(rows, parts, strict=True))
    if other is not None:
        found.update(zip(np.flatnonzero(other.has).tolist(), other.values, strict=True))
    if atoms is not None:
        ends = np.cumsum(counts[atoms.has])[:-1]
        found.update(zip(np.flatnonzero(atoms.has).tolist(), np.split(atoms.values, ends), strict=True))
    return build_column(sorted(found.items()), count)


def _inside(value: Any) -> Any:
    """Return the numbers of ASE's `{"__ndarray__": [shape, dtype, flat]}`; a plain value as it is."""
    if type(value) is list or not hasattr(value, "keys"):
        return value
    _, dtype, flat = value["__ndarray__"]
    if dtype not in REAL:
        raise ValueError(f"array of {dtype}")
    return flat


def to_flat(value: Any, kind: str) -> bytes:
    """Return an array of JSON as the bytes of its float64 (`d`) or int64 (`i`) numbers.

    Raises
    ------
    ValueError, KeyError, TypeError
        if it is no array of numbers.
    """
    if type(value) is bytes:  # numbers of that kind already
        return value
    flat = _inside(value)
    if isinstance(flat, list):
        array = np.asarray(flat, np.float64 if kind == "d" else None)
        if kind == "i":
            if array.dtype.kind not in "iu" and array.size:
                raise ValueError("not whole numbers")
            array = array.astype(np.int64)
        return array.tobytes()
    if not hasattr(flat, "as_buffer"):
        raise TypeError("not an array")
    return bytes(flat.as_buffer(of_type=kind))


def to_truths(value: Any) -> list[bool]:
    """Return three truth values.

    Raises
    ------
    ValueError
        if they are not three.
    """
    flat = _inside(value)
    flat = flat.as_list() if hasattr(flat, "as_list") else flat
    if not isinstance(flat, list):
        raise TypeError("pbc is not an array")
    if len(flat) != 3:
        raise ValueError("pbc is not three values")
    return [bool(one) for one in flat]


def to_plain(value: Any) -> Any:
    """Return a value of JSON in plain Python, arrays as arrays; one of complex numbers or texts as spelled."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    elif hasattr(value, "as_list"):
        value = value.as_list()
    if not isinstance(value, dict):
        return value
    if "__ndarray__" in value:
        shape, dtype, flat = value["__ndarray__"]
        return np.array(flat, dtype).reshape(shape) if dtype in REAL else value
    return {key: to_plain(one) if isinstance(one, dict) else one for key, one in value.items()}
