"""Text dumps of LAMMPS, frame by frame."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.lammps import (
    ask_for_elements,
    element_of_mass,
    element_of_symbol,
    elements_of_types,
    units_of_style,
)
from atomsieve.structures.formats.codes.steps import ENDS_WITHIN, refuse
from atomsieve.structures.item import BadItem, Item, ReadRequest, open_with_progress

log = logging.getLogger(__name__)

LARGEST_COUNT = 500_000_000
ITEM = b"ITEM: "
XYZ = ("x", "y", "z")


class _BrokenFrameError(Exception):
    """A frame that cannot be read: a reason, and what is particular."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass
class _Frame:
    """A frame: what stands before its atoms, the names of their columns, and these: numbers, or words."""

    where: str
    style: str | None = None
    info: dict[str, float] = field(default_factory=dict)
    count: int = -1
    bounds: list[str] = field(default_factory=list)
    box: list[list[float]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    table: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0)))

    def has(self, *names: str) -> bool:
        """Return True if all of these columns are there."""
        return all(name in self.columns for name in names)

    def numbers(self, *names: str) -> NDArray[np.float64]:
        """Return columns as numbers `[n, columns]`."""
        return self.table[:, [self.columns.index(name) for name in names]].astype(np.float64)

    def words(self, name: str) -> NDArray[Any]:
        """Return a column as it is: of numbers, or of words."""
        return self.table[:, self.columns.index(name)]


def read_lammps_dump(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the frames, their atoms sorted by id; forces are the columns `fx fy fz`.

    Raises
    ------
    DataError
        if the file is no dump, its units have no scale, or neither it nor the user names the elements.
    """
    with open_with_progress(request.path) as (file, fraction):
        lines = _Lines(file)
        style: str | None = None
        frames = 0
        for line in lines:
            if not line.strip():
                continue
            if not line.startswith(ITEM):
                if not frames:
                    raise refuse(request, "a LAMMPS dump")
                continue  # what is left of a frame that was refused
            frame = _Frame(f"{request.path}: frame {frames}", style)
            lines.push([line])
            try:
                rows = _read_head(frame, lines)
                broken = next((k for k, row in enumerate(rows) if row.startswith(ITEM)), None)
                if broken is not None:
                    lines.push(rows[broken:])
                    raise _BrokenFrameError("a frame with too few atoms", f"{broken} of {frame.count}")
                if len(rows) < frame.count:
                    raise _BrokenFrameError(ENDS_WITHIN)
                _split_rows(frame, rows)
                yield _build(frame, request)
            except _BrokenFrameError as error:
                yield BadItem(error.reason, frame.where, error.detail)
            except ValueError as error:
                yield BadItem("not readable", frame.where, str(error))
            style = frame.style
            frames += 1
            request.tick(fraction())
    if not frames:
        raise refuse(request, "a LAMMPS dump")


class _Lines(Iterator[bytes]):
    """Lines of a file, some of which may be put back; they end where a damaged compressed file ends."""

    def __init__(self, file: Iterable[bytes]) -> None:
        self._file = iter(file)
        self._back: list[bytes] = []

    def push(self, lines: list[bytes]) -> None:
        """Put lines back, in their order."""
        self._back.extend(reversed(lines))

    def __next__(self) -> bytes:
        if self._back:
            return self._back.pop()
        try:
            return next(self._file)
        except (EOFError, OSError) as error:
            log.debug("the file ends early: %s", error)
            raise StopIteration from None


def _read_head(frame: _Frame, lines: Iterator[bytes]) -> list[bytes]:
    """Fill in what stands before the atoms of a frame; return the lines of its atoms, fewer where the file ends."""
    for line in lines:
        name = line[len(ITEM) :].decode("latin-1").strip()
        if name == "UNITS":
            frame.style = next(lines, b"").decode("latin-1").strip()
        elif name in ("TIME", "TIMESTEP"):
            frame.info[name.lower()] = float(next(lines, b"nan"))
        elif name == "NUMBER OF ATOMS":
            frame.count = int(next(lines, b"-1"))
        elif name.startswith("BOX BOUNDS"):
            frame.bounds = name.split()[2:]
            frame.box = [[float(word) for word in row.split()] for row in islice(lines, 3)]
        elif name.startswith("ATOMS"):
            frame.columns = name.split()[1:]
            if not 0 <= frame.count <= LARGEST_COUNT:
                raise _BrokenFrameError("the number of atoms is missing or wrong", f"{frame.count}")
            return list(islice(lines, frame.count))
        else:
            raise _BrokenFrameError("not readable", f"{line[:60]!r}")
    raise _BrokenFrameError(ENDS_WITHIN)


def _split_rows(frame: _Frame, rows: list[bytes]) -> None:
    text, size = b"".join(rows), frame.count * len(frame.columns)
    table = _parse_numbers(text) if not frame.has("element") and not frame.has("typelabel") else None
    if table is None or table.size != size:
        words = text.split()
        if len(words) != size:
            last = rows and not rows[-1].endswith(b"\n")
            raise _BrokenFrameError(ENDS_WITHIN if last else "rows do not fit the names of their columns")
        table = np.array(words, np.bytes_)
    frame.table = table.reshape(frame.count, len(frame.columns))
    if frame.has("id"):
        ids = frame.words("id").astype(np.int64)
        order = np.argsort(ids, kind="stable")
        twice = ids[order][1:] == ids[order][:-1]
        if twice.any():
            raise _BrokenFrameError("an id of two atoms", f"id {ids[order][1:][twice][0]}")
        frame.table = frame.table[order]


def _parse_numbers(text: bytes) -> NDArray[np.float64] | None:
    """Return all words as numbers, None if one of them is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return np.fromstring(text.decode("latin-1"), np.float64, sep=" ")
    except (ValueError, DeprecationWarning):
        return None


def _build(frame: _Frame, request: ReadRequest) -> Item:
    units = units_of_style(frame.style, request.path)
    cell, origin, pbc = _read_box(frame)
    item = Item(_find_elements(frame, request), _positions(frame, cell, origin), cell, pbc, frame.where)
    item.units, item.info = units, dict(frame.info)
    if frame.has("fx", "fy", "fz"):
        item.labels["forces"] = frame.numbers("fx", "fy", "fz")
    if frame.has("vx", "vy", "vz"):
        item.arrays["velocities"] = frame.numbers("vx", "vy", "vz")
    if frame.has("q"):
        item.arrays["charges"] = frame.numbers("q")[:, 0]
    for name in frame.columns:
        if name.startswith(("c_", "f_", "v_", "i_", "d_")):
            item.arrays[name] = frame.numbers(name)[:, 0]
    return item


def _read_box(frame: _Frame) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return cell, origin and periodicity. Bounds of a triclinic box are those of the box around it (LAMMPS manual)."""
    flags = frame.bounds[-3:]
    if len(frame.box) < 3 or len(flags) < 3 or not all(flag.strip("pfsm") == "" for flag in flags):
        raise _BrokenFrameError("the box or its boundaries are not stated", f"BOX BOUNDS {' '.join(frame.bounds)}")
    pbc = np.array([flag == "pp" for flag in flags])
    rows = np.array(frame.box, np.float64)
    if frame.bounds[0] == "abc":  # any orientation: three vectors, each with a component of the origin
        return rows[:, :3], rows[:, 3], pbc
    tilts = rows[:, 2] if frame.bounds[0] == "xy" else np.zeros(3)
    xy, xz, yz = tilts
    low = rows[:, 0] - [min(0.0, xy, xz, xy + xz), min(0.0, yz), 0.0]
    high = rows[:, 1] - [max(0.0, xy, xz, xy + xz), max(0.0, yz), 0.0]
    lx, ly, lz = high - low
    return np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]), low, pbc


def _positions(frame: _Frame, cell: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions, unwrapped where the dump says how: by its columns, or by the counts of images."""
    for names, scaled, wrapped in (
        (("xu", "yu", "zu"), False, False),
        (("xsu", "ysu", "zsu"), True, False),
        (XYZ, False, True),
        (("xs", "ys", "zs"), True, True),
    ):
        if not frame.has(*names):
            continue
        positions = frame.numbers(*names)
        if scaled:
            positions = origin + positions @ cell
        if wrapped and frame.has("ix", "iy", "iz"):
            positions = positions + frame.numbers("ix", "iy", "iz") @ cell
        return positions
    raise _BrokenFrameError("no columns of positions", " ".join(frame.columns))


def _find_elements(frame: _Frame, request: ReadRequest) -> NDArray[np.int64]:
    """Return the atomic numbers: as the user names the types, by the symbols in the dump, or by masses.

    Raises
    ------
    DataError
        if there is nothing that is certain.
    """
    if request.elements and frame.has("type"):
        return elements_of_types(frame.words("type").astype(np.int64), request.elements, request.path)
    for column in ("element", "typelabel", "type"):
        if not frame.has(column) or frame.table.dtype.kind == "f":
            continue
        symbols, of_atom = np.unique(frame.words(column), return_inverse=True)
        numbers = np.array([element_of_symbol(symbol.decode("latin-1")) for symbol in symbols], np.int64)
        if column == "element" and symbols.tolist() == [b"C"] and frame.has("type"):
            types = np.unique(frame.words("type"))
            if len(types) > 1:  # what LAMMPS writes where nobody named the elements
                raise ask_for_elements(
                    request.path, f"every one of its {len(types)} types is element C, LAMMPS's default"
                )
        if (numbers > 0).all():
            return numbers[of_atom]
        if column != "type":
            shown = symbols[numbers == 0][0].decode("latin-1")
            raise ask_for_elements(request.path, f"{shown!r} in the column {column} is no element")
    if frame.has("mass") and frame.style in ("metal", "real", "electron"):
        masses, of_atom = np.unique(frame.numbers("mass")[:, 0], return_inverse=True)
        numbers = np.array([element_of_mass(mass) for mass in masses], np.int64)
        if (numbers > 0).all():
            return numbers[of_atom]
    raise ask_for_elements(request.path, "it numbers its elements")


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of a dump."""
    return head.startswith(ITEM) and (b"ITEM: TIMESTEP" in head or b"ITEM: UNITS" in head)


ROW = Format(
    name="lammps-dump",
    about="text dump of LAMMPS",
    endings=(".lammpstrj", ".dump", ".lammpsdump"),
    beginnings=("dump.",),
    read=read_lammps_dump,
    lacks="energy, stress; elements, unless a column names them; units, unless `dump_modify units yes`",
    compressed=True,
    looks_like=looks_like,
)
