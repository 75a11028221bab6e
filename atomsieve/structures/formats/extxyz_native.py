"""Calls the compiled parser of extended XYZ, and turns what it found into blocks."""

from __future__ import annotations

import ctypes
import json
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_uint8, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.native import text_library
from atomsieve.structures.block import Block, Column, Places
from atomsieve.structures.formats.extxyz_ase import UNKNOWN_UNIT, find_units
from atomsieve.structures.item import BadItem

MORE, FOREIGN, SPLIT, STOPPED, ENDED, LOST = range(6)
"""How a call of the parser ended: the piece is used up; a frame that it does not know; the next frames need a block of
their own; the span ends; the file ends; it looks for the next frame behind a damaged one."""

HEAVY_HYDROGEN = "D or T was taken as hydrogen"
MORE_COLUMNS = "lines of atoms have more columns than Properties state; those were left out"
_INTS, _REALS, _BOOLS, _TEXT, _JSON = 1, 2, 4, 8, 16
_DTYPES = {c_int64: np.int64, c_double: np.float64, c_uint8: np.uint8, c_int32: np.int32}


class _Result(ctypes.Structure):
    _fields_: ClassVar[Any] = (
        [(name, c_int64) for name in ("status", "consumed", "line", "previous_fits", "foreign_begin", "foreign_end")]
        + [(name, c_int64) for name in ("line_after_foreign", "frames", "atoms", "bad", "info", "columns")]
        + [(name, c_int64) for name in ("heavy_hydrogen", "more_words", "units_size")]
        + [("ptr", POINTER(c_int64)), ("starts", POINTER(c_int64))]
        + [("numbers", POINTER(c_uint8)), ("pbc", POINTER(c_uint8))]
        + [("positions", POINTER(c_double)), ("cells", POINTER(c_double)), ("units", c_void_p)]
    )


class _Info(ctypes.Structure):
    _fields_: ClassVar[Any] = (
        [(name, c_int64) for name in ("key_size", "rows", "kinds", "one_shape", "numbers", "texts")]
        + [("key", c_void_p), ("text", c_void_p), ("place", POINTER(c_int32)), ("shape", POINTER(c_int32))]
        + [("kind", POINTER(c_uint8)), ("at", POINTER(c_int64)), ("ints", POINTER(c_int64))]
        + [("text_end", POINTER(c_int64)), ("reals", POINTER(c_double))]
    )


class _Column(ctypes.Structure):
    _fields_: ClassVar[Any] = (
        [(name, c_int64) for name in ("name_size", "type", "width", "frames", "values")]
        + [("name", c_void_p), ("text", c_void_p), ("place", POINTER(c_int32)), ("reals", POINTER(c_double))]
        + [("ints", POINTER(c_int64)), ("text_end", POINTER(c_int64)), ("bools", POINTER(c_uint8))]
    )


class _Bad(ctypes.Structure):
    _fields_: ClassVar[Any] = [(name, c_int64) for name in ("place", "start", "at", "line", "detail_size")] + [
        ("reason", c_char_p),
        ("detail", c_void_p),
    ]


def _library() -> ctypes.CDLL | None:
    library = text_library()
    if library is not None and library.extxyz_open.restype is not c_void_p:
        library.extxyz_open.restype = c_void_p
        library.extxyz_close.argtypes = [c_void_p]
        library.extxyz_fits.argtypes = [c_char_p, c_int64]
        library.extxyz_parse.argtypes = [c_void_p, c_char_p, *[c_int64] * 9, POINTER(_Result)]
        for name, kind in (("extxyz_info", _Info), ("extxyz_column", _Column), ("extxyz_bad", _Bad)):
            getattr(library, name).argtypes = [c_void_p, c_int64, POINTER(kind)]
    return library


def _array(pointer: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a copy of an array of the library."""
    out = np.empty(shape, _DTYPES[pointer._type_])
    if out.nbytes:
        ctypes.memmove(out.ctypes.data, pointer, out.nbytes)
    return out


def _text(address: int | None, size: int) -> str:
    return ctypes.string_at(address, size).decode(errors="replace") if address and size else ""


@dataclass
class Parsed:
    """What one call found, and where the next one goes on.

    Attributes
    ----------
    block : the frames, None if there are none, whole or not.
    status : how the call ended.
    consumed : bytes of the data that are done with.
    line : number of the line that comes next; `previous_fits`: a frame may begin there.
    foreign : begin and end in the file, and the line after it, of a frame that the parser does not know.
    """

    block: Block | None
    status: int
    consumed: int
    line: int
    previous_fits: bool
    foreign: tuple[int, int, int]


class NativeParser:
    """The compiled parser with its state for one file. A context manager.

    Attributes
    ----------
    frame : number of the next frame of the file, or of the span.
    of_file : the first line is that of the file, so that lines can be numbered; else bytes are named.
    """

    def __init__(self, path: Path, of_file: bool) -> None:
        library = _library()
        assert library is not None  # its caller asked
        self._library = library
        self._reader = c_void_p(library.extxyz_open())
        self.path, self.of_file = path, of_file
        self.frame = 0

    def __enter__(self) -> NativeParser:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.extxyz_close(self._reader)

    def parse(
        self,
        data: bytes,
        at: int,
        *,
        final: bool,
        offset: int,
        line: int,
        left: int,
        stop: int,
        lost: int,
        previous_fits: bool,
    ) -> Parsed:
        """Parse `data[at:]` until the piece ends or something else happens.

        `data[0]` is byte `offset` of the file, and `data[at]` begins the line of that number. `final`: no bytes follow;
        otherwise `left` bytes do, -1 if that is not known. Frames that begin at byte `stop` or later are not read (-1:
        all are). `lost` is 1 if a frame must be looked for, 2 if none was read yet; `previous_fits` as in `Parsed`.
        """
        result = _Result()
        self._library.extxyz_parse(
            self._reader,
            data,
            len(data),
            at,
            final,
            offset,
            line,
            left,
            stop,
            lost,
            previous_fits,
            ctypes.byref(result),
        )
        block = self._block(result) if result.frames or result.bad else None
        foreign = (result.foreign_begin, result.foreign_end, result.line_after_foreign)
        if block is not None:
            block.stop = foreign[0] if result.status == FOREIGN else offset + result.consumed
        return Parsed(block, result.status, result.consumed, result.line, bool(result.previous_fits), foreign)

    def fits(self, line: bytes) -> bool:
        """Return True for a line behind which a frame may begin."""
        return bool(self._library.extxyz_fits(line, len(line)))

    def _block(self, result: _Result) -> Block:
        count, atoms = result.frames, result.atoms
        bad = [self._bad(k) for k in range(result.bad)]
        block = Block(
            ptr=_array(result.ptr, (count + 1,)),
            numbers=_array(result.numbers, (atoms,)),
            positions=_array(result.positions, (atoms, 3)),
            cell=_array(result.cells, (count, 3, 3)),
            pbc=_array(result.pbc, (count, 3)).astype(bool),
            places=[],
            bad=[(place, one) for place, _, one in bad],
        )
        starts = _array(result.starts, (count,))
        block.start = int(min([*starts[:1].tolist(), *[start for _, start, _ in bad[:1]]]))
        block.places = Places(str(self.path), "frame", self.frame + block.ordinals)
        self.frame += block.read
        for k in range(result.info):
            info = self._info(k, count)
            if info is not None:
                block.info[info[0]] = info[1]
        for k in range(result.columns):
            found = self._column(k, block)
            if found is not None:
                block.arrays[found[0]] = found[1]
        units = _text(result.units, result.units_size)
        if units:
            block = _with_units(block, units)
        if result.heavy_hydrogen:
            block.notes[HEAVY_HYDROGEN] = result.heavy_hydrogen
        if result.more_words:
            block.notes[MORE_COLUMNS] = result.more_words
        return block

    def _bad(self, k: int) -> tuple[int, int, BadItem]:
        bad = _Bad()
        self._library.extxyz_bad(self._reader, k, ctypes.byref(bad))
        detail = _text(bad.detail, bad.detail_size)
        line = f"line {bad.line}" if self.of_file else f"the line at byte {bad.at}"
        where = f"{self.path}: frame {self.frame + bad.place}"
        return bad.place, bad.start, BadItem(bad.reason.decode(), where, f"{line}: {detail}" if detail else line)

    def _info(self, k: int, count: int) -> tuple[str, Column] | None:
        info = _Info()
        self._library.extxyz_info(self._reader, k, ctypes.byref(info))
        rows = info.rows
        if not rows:
            return None
        has = np.zeros(count, bool)
        has[_array(info.place, (rows,))] = True
        mixed = bool(info.kinds & _BOOLS) and info.kinds != _BOOLS  # truth values stay what they are
        if info.one_shape and not mixed and not info.kinds & (_TEXT | _JSON):
            rank, *lengths = _array(info.shape, (rows, 3))[0].tolist()
            shape = (rows, *lengths[:rank])
            if info.kinds & _REALS:
                values = _array(info.reals, shape)
            else:
                values = _array(info.ints, shape)
                values = values.astype(bool) if info.kinds == _BOOLS else values
        else:
            values = _objects(info)
        return _text(info.key, info.key_size), Column(has, values)

    def _column(self, k: int, block: Block) -> tuple[str, Column] | None:
        column = _Column()
        self._library.extxyz_column(self._reader, k, ctypes.byref(column))
        if not column.frames:
            return None
        has = np.zeros(len(block), bool)
        has[_array(column.place, (column.frames,))] = True
        kind, width = chr(column.type), column.width
        shape = (column.values // width, width) if width > 1 else (column.values,)
        values: NDArray[Any]
        if kind == "R":
            values = _array(column.reals, shape)
        elif kind == "I":
            values = _array(column.ints, shape)
        elif kind == "L":
            values = _array(column.bools, shape).astype(bool)
        else:
            words = _split_texts(column.text, _array(column.text_end, (column.values,)))
            values = np.array(words, np.str_).reshape(shape)
        return _text(column.name, column.name_size), Column(has, values)


def _split_texts(address: int | None, ends: NDArray[np.int64]) -> list[str]:
    """Return the texts that lie one after another and end at `ends`."""
    stops = ends.tolist()
    blob = ctypes.string_at(address, stops[-1]) if address and stops and stops[-1] else b""
    starts = [0, *stops][:-1]
    if blob.isascii():
        text = blob.decode()
        return [text[a:b] for a, b in zip(starts, stops, strict=True)]
    return [blob[a:b].decode(errors="replace") for a, b in zip(starts, stops, strict=True)]


def _objects(info: _Info) -> NDArray[Any]:
    """Return the values of a key whose kinds or shapes differ, or which are texts, as objects."""
    rows = info.rows
    at, kinds = _array(info.at, (rows,)), _array(info.kind, (rows,))
    texts = np.array(_split_texts(info.text, _array(info.text_end, (info.texts,))), object)
    if info.kinds == _TEXT:
        return texts[at]
    reals, ints = _array(info.reals, (info.numbers,)), _array(info.ints, (info.numbers,))
    shapes = _array(info.shape, (rows, 3))
    values = np.empty(rows, object)
    for k, (first, kind, (rank, *lengths)) in enumerate(zip(at.tolist(), kinds.tolist(), shapes.tolist(), strict=True)):
        if kind & (_TEXT | _JSON):
            values[k] = texts[first] if kind == _TEXT else _from_json(texts[first])
            continue
        count = int(np.prod(lengths[:rank])) if rank else 1
        own = (reals if kind == _REALS else ints)[first : first + count]
        own = own.astype(bool) if kind == _BOOLS else own
        values[k] = own.reshape(lengths[:rank]) if rank else own[0].item()
    return values


def _from_json(text: str) -> Any:
    """Return the value of a text `_JSON ...`, an array if it is one of numbers; the text if it is not JSON."""
    try:
        value = json.loads(text.removeprefix("_JSON "))
    except ValueError:
        return text
    try:
        array = np.array(value)
    except ValueError:  # rows of different lengths
        return value
    return array if array.dtype.kind in "ifb" else value


def _with_units(block: Block, stated: str) -> Block:
    """Return the block with the units that its headers state; without its structures if a unit is not known."""
    words = stated.split("\n")
    try:
        by_key = dict(zip(words[::2], words[1::2], strict=False))
        block.units = find_units(by_key)
        for key, unit in by_key.items():
            if find_units({key: unit}).stated:
                block.info.pop(key, None)  # it was taken
        return block
    except UsageError as error:
        refused = [
            (int(place), BadItem(UNKNOWN_UNIT, block.places[s], str(error))) for s, place in enumerate(block.ordinals)
        ]
    bad = sorted([*block.bad, *refused], key=lambda row: row[0])
    return Block(
        np.zeros(1, np.int64), block.numbers[:0], block.positions[:0], block.cell[:0], block.pbc[:0], [],
        bad=bad, start=block.start, stop=block.stop,
    )  # fmt: skip
