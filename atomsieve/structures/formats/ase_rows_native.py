"""Gathers rows of ASE's databases with the compiled parser; what that leaves, `RowGatherer` reads."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atomsieve.native import text_library
from atomsieve.structures.block import Column
from atomsieve.structures.formats.ase_rows import Parse, RowGatherer, to_plain

REALS, WHOLES, TRUTHS, TEXTS, RAW, ARRAYS, ATOM_REALS, ATOM_WHOLES = range(8)


class _Arrays(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in ("structures", "atoms", "columns")),
        *((name, ctypes.c_void_p) for name in ("numbers", "counts", "positions", "cells", "pbc")),
    ]


class _Column(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in ("key_size", "kind", "axes", "rows", "n_real", "n_whole")),
        *((name, ctypes.c_void_p) for name in ("key", "text", "shape", "place", "whole", "ends", "real")),
    ]


def make_gatherer(path: str, word: str, parse: Parse) -> RowGatherer:
    """Return a gatherer of rows as text: a compiled one where that was built."""
    library = text_library()
    return RowGatherer(path, word, parse=parse) if library is None else CompiledGatherer(path, word, parse, library)


class CompiledGatherer(RowGatherer):
    """Collects rows as text. The arrays of all of them lie in the compiled library until they are taken."""

    def __init__(self, path: str, word: str, parse: Parse, library: ctypes.CDLL) -> None:
        self._library = library
        library.rows_open.restype = ctypes.c_void_p
        self._rows = ctypes.c_void_p(library.rows_open())
        self._add = library.rows_add
        self._add.restype, self._add.argtypes = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64)
        super().__init__(path, word, parse=parse)

    def __del__(self) -> None:
        self._library.rows_close(self._rows)

    def _clear(self) -> None:
        super()._clear()
        self._library.rows_clear(self._rows)

    def add_text(self, text: bytes, name: int | str) -> None:
        """Append a row, given as JSON."""
        count = self._add(self._rows, text, len(text))
        if count < 0:
            self.add(self.parse(text), name)
        else:
            self.counts.append(count)
            self.names.append(name)
            self.atoms += count

    def _append_geometry(self, numbers: bytes, positions: bytes, cell: bytes, pbc: list[bool]) -> None:
        self._library.rows_put(
            self._rows, ctypes.c_int64(len(numbers) // 8), bytes(numbers), bytes(positions), bytes(cell), bytes(pbc)
        )

    def _take_geometry(self) -> tuple[NDArray[Any], ...]:
        held = _Arrays()
        self._library.rows_arrays(self._rows, ctypes.byref(held))
        return (
            _copy(held.numbers, held.atoms, np.int64),
            _copy(held.positions, 3 * held.atoms, np.float64),
            _copy(held.cells, 9 * held.structures, np.float64),
            _copy(held.pbc, 3 * held.structures, np.bool_),
        )

    def _take_columns(self) -> dict[str, Column]:
        """Return the columns of structures that need no other look; all others join those that Python holds."""
        held, column = _Arrays(), _Column()
        self._library.rows_arrays(self._rows, ctypes.byref(held))
        found: dict[str, list[tuple[int, NDArray[np.int64], NDArray[Any]]]] = {}
        for k in range(held.columns):
            self._library.rows_column(self._rows, ctypes.c_int64(k), ctypes.byref(column))
            if not column.rows:  # of blocks before
                continue
            key = ctypes.string_at(column.key, column.key_size).decode("ascii")
            places = _copy(column.place, column.rows, np.int64)
            if column.kind in (ATOM_REALS, ATOM_WHOLES):
                self._join_atoms(key, column, places)
            elif column.kind == RAW:
                for place, text in zip(places.tolist(), _texts(column), strict=True):
                    self._note(key, to_plain(json.loads(text)), place, self.counts[place])
            else:
                found.setdefault(key, []).append((column.kind, places, _values(column)))
        return self._join(found)

    def _join_atoms(self, key: str, column: _Column, places: NDArray[np.int64]) -> None:
        kind = "i" if column.kind == ATOM_WHOLES else "d"
        flat = (
            _copy(column.whole, column.n_whole, np.int64) if kind == "i" else _copy(column.real, column.n_real, float)
        )
        width = int(_copy(column.shape, 1, np.int64)[0])
        rows, held = places.tolist(), flat.tobytes()
        other = self.arrays.get((key, width, kind))
        if other is not None:  # some of the rows were read in Python: put all in their order
            parts = {**_cut(rows, held, self.counts, width), **_cut(*other, self.counts, width)}
            rows = sorted(parts)
            held = b"".join(parts[row] for row in rows)
        self.arrays[key, width, kind] = (rows, bytearray(held))

    def _join(self, found: Mapping[str, list[tuple[int, NDArray[np.int64], NDArray[Any]]]]) -> dict[str, Column]:
        out: dict[str, Column] = {}
        for key, parts in found.items():
            if len(parts) == 1 and key not in self.info and key != "id":
                has = np.zeros(len(self.counts), bool)
                has[parts[0][1]] = True
                out[key] = Column(has, parts[0][2])
                continue
            rows = [*zip(*self.info.pop(key, ([], [])), strict=True)]
            for kind, places, values in parts:
                rows += zip(places.tolist(), list(values) if kind == ARRAYS else values.tolist(), strict=True)
            rows.sort(key=lambda row: row[0])
            self.info[key] = ([place for place, _ in rows], [value for _, value in rows])
        return out


def _values(column: _Column) -> NDArray[Any]:
    if column.kind == TEXTS:
        out = np.empty(column.rows, object)
        out[:] = _texts(column)
        return out
    if column.kind in (WHOLES, TRUTHS):
        return _copy(column.whole, column.n_whole, np.int64).astype(np.int64 if column.kind == WHOLES else bool)
    values = _copy(column.real, column.n_real, np.float64)
    return values.reshape(-1, *_copy(column.shape, column.axes, np.int64)) if column.kind == ARRAYS else values


def _texts(column: _Column) -> list[str]:
    ends = _copy(column.ends, column.rows, np.int64).tolist()
    text = ctypes.string_at(column.text, ends[-1]).decode("ascii") if ends[-1] else ""
    return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _copy(pointer: int | None, count: int, dtype: Any) -> NDArray[Any]:
    if not count:
        return np.zeros(0, dtype)
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(pointer or 0), dtype).copy()


def _cut(rows: list[int], held: bytes | bytearray, counts: list[int], width: int) -> dict[int, bytes]:
    """Return the bytes of each row."""
    out, at = {}, 0
    for row in rows:
        size = 8 * counts[row] * width
        out[row] = bytes(held[at : at + size])
        at += size
    return out
