"""Position files of CP2K (`NAME-pos-1.xyz`), with the forces, the cell and the periodicity that lie beside them.

A frame is plain XYZ with the comment `i = STEP, time = FS, E = ENERGY`: positions in Angstrom, the energy in hartree.
Forces are in `NAME-frc-1.xyz`, hartree/bohr; the cell of each step in `NAME-1.cell`, or one for all in `NAME-1.restart`
or `NAME.inp`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.cp2k_input import Cell, read_cell
from atomsieve.structures.formats.codes.lammps import element_of_symbol
from atomsieve.structures.formats.codes.steps import ENDS_WITHIN, refuse
from atomsieve.structures.item import BadItem, Item, ReadRequest, Tick, open_with_progress
from atomsieve.structures.units import Units

UNITS = Units("hartree", "angstrom", "hartree/bohr", origin="format cp2k-xyz")
COMMENT = re.compile(r"\bi\s*=\s*(\d+)\b(?:.*?\btime\s*=\s*([-+.\dEe]+))?.*?\bE\s*=\s*([-+.\dEeDd*]+)")
LARGEST_FRAME = 50_000_000
NO_CELL = "no file beside the positions of CP2K states the cell: taken as molecules; --topology FILE states one"


@dataclass
class _Frame:
    """A frame of one of the files: its step, the energy of its comment, symbols and three numbers of each atom."""

    number: int
    step: int
    time: float | None
    energy: float
    symbols: list[str]
    values: NDArray[np.float64]


@dataclass
class _Broken:
    """A frame that cannot be read; after one that is cut off nothing follows."""

    number: int
    reason: str
    detail: str = ""


@dataclass
class _Beside:
    """Values by step of a file that is read along; those of steps before the one that was asked for are forgotten."""

    rows: Iterator[tuple[int, NDArray[np.float64], list[str]]]
    ahead: tuple[int, NDArray[np.float64], list[str]] | None = None
    ended: bool = field(default=False)

    def find(self, step: int) -> tuple[NDArray[np.float64], list[str]] | None:
        """Return the values of a step, None if the file has none."""
        while not self.ended and (self.ahead is None or self.ahead[0] < step):
            self.ahead = next(self.rows, None)
            self.ended = self.ahead is None
        return self.ahead[1:] if self.ahead is not None and self.ahead[0] == step else None


def read_cp2k_xyz(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the frames with their energies, and forces where `NAME-frc-1.xyz` has the step.

    Raises
    ------
    DataError
        if the file is no position file of CP2K.
    """
    forces = _beside(request.path, "-frc-", "")
    forces_of = None if forces is None else _Beside(_steps_of(forces))
    cells = _beside(request.path, "-", ".cell")
    cells_of = None if cells is None else _Beside(_read_cells(cells))
    fixed = _fixed_cell(request)
    begun = False
    for frame in _read_frames(request.path, request.tick):
        where = f"{request.path}: frame {frame.number}"
        if isinstance(frame, _Broken):
            if not begun and frame.reason != ENDS_WITHIN:
                raise refuse(request, f"a position file of CP2K ({frame.detail})")
            yield BadItem(frame.reason, where, frame.detail)
            continue
        begun = True
        numbers = np.array([element_of_symbol(re.sub(r"[\d_].*", "", symbol)) for symbol in frame.symbols], np.int64)
        if (numbers == 0).any():
            yield BadItem("not readable", where, f"{frame.symbols[int(np.argmin(numbers))]!r} is no element")
            continue
        item = Item(numbers, frame.values, fixed.vectors, fixed.pbc, where, units=UNITS)
        item.labels["energy"] = frame.energy
        item.info = {"step": frame.step} | ({} if frame.time is None else {"time": frame.time})
        if cells_of is not None and (row := cells_of.find(frame.step)) is not None:
            item.cell, item.pbc = row[0].reshape(3, 3), fixed.pbc if fixed.stated else np.array([True] * 3)
        elif cells_of is not None:
            yield BadItem("the file of cells has no such step", where, f"step {frame.step} in {cells}")
            continue
        elif not fixed.stated:
            item.note = NO_CELL
        found = None if forces_of is None else forces_of.find(frame.step)
        if found is not None:
            if found[1] != frame.symbols:
                yield BadItem("forces of other atoms", where, f"in {forces}")
                continue
            item.labels["forces"] = found[0]
        yield item
    if not begun:
        raise refuse(request, "a position file of CP2K")


def _beside(path: Path, word: str, ending: str) -> Path | None:
    """Return a file of the same run: `NAME-frc-1.xyz` or `NAME-1.cell` of `NAME-pos-1.xyz`."""
    name, found, rest = path.name.rpartition("-pos-")
    if not found:
        return None
    rest = rest if not ending else re.sub(r"\.xyz(\.gz)?$", "", rest) + ending
    other = path.with_name(f"{name}{word}{rest}")
    return other if other.is_file() else None


def _fixed_cell(request: ReadRequest) -> Cell:
    """Return the cell of all frames, as the user, the restart file or the input says; else none, as of a molecule."""
    if request.reference is not None:
        return Cell(request.reference.cell, request.reference.pbc, stated=True)
    project = request.path.name.partition("-pos-")[0]
    for name in (f"{project}-1.restart", f"{project}.restart", f"{project}.inp"):
        file = request.path.with_name(name)
        if file.is_file() and (cell := read_cell(file)) is not None:
            return cell
    return Cell(np.zeros((3, 3)), np.zeros(3, bool), stated=False)


def _read_frames(path: Path, tick: Tick = lambda fraction: None) -> Iterator[_Frame | _Broken]:
    with open_with_progress(path) as (file, fraction):
        number = 0
        try:
            while header := file.readline():
                if not header.strip():
                    continue
                if not header.strip().isdigit() or int(header) > LARGEST_FRAME:
                    shown = header[:40].decode("latin-1").strip()
                    yield _Broken(
                        number, "a number of atoms was expected", f"a number of atoms was expected, got {shown!r}"
                    )
                    return
                count = int(header)
                comment = file.readline().decode("latin-1")
                rows = [line for _ in range(count) if (line := file.readline())]
                yield _parse_frame(number, comment, rows, count)
                number += 1
                tick(fraction())
        except (EOFError, OSError):  # a compressed file that is damaged
            yield _Broken(number, ENDS_WITHIN)


def _parse_frame(number: int, comment: str, rows: list[bytes], count: int) -> _Frame | _Broken:
    if len(rows) < count or (rows and len(rows[-1].split()) < 4):
        return _Broken(number, ENDS_WITHIN)
    match = COMMENT.search(comment)
    if match is None:
        return _Broken(number, "not readable", f"the comment {comment.strip()[:60]!r} has no step and energy")
    words = [row.split() for row in rows]
    try:
        values = np.array([row[1:4] for row in words], np.float64).reshape(count, 3)
        energy = float(match[3].replace("D", "E").replace("d", "e"))
    except (ValueError, IndexError) as error:
        return _Broken(number, "not readable", str(error))
    time = None if match[2] is None else float(match[2])
    return _Frame(number, int(match[1]), time, energy, [row[0].decode("latin-1") for row in words], values)


def _steps_of(path: Path) -> Iterator[tuple[int, NDArray[np.float64], list[str]]]:
    for frame in _read_frames(path):
        if isinstance(frame, _Frame):
            yield frame.step, frame.values, frame.symbols


def _read_cells(path: Path) -> Iterator[tuple[int, NDArray[np.float64], list[str]]]:
    """Yield step and nine components, Angstrom, of rows `step time Ax Ay Az Bx ... Cz volume`."""
    with path.open(encoding="latin-1") as file:
        for line in file:
            words = line.split()
            if len(words) >= 11 and words[0].isdigit():
                yield int(words[0]), np.array(words[2:11], np.float64), []


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of a file of positions whose comment has a step and an energy."""
    lines = head[:500].split(b"\n")
    if len(lines) < 3 or not lines[0].strip().isdigit():
        return False
    return re.match(rb"\s*i\s*=\s*\d+\s*,.*\bE\s*=\s*[-+.\d]", lines[1]) is not None


ROW = Format(
    name="cp2k-xyz",
    about="positions of CP2K (NAME-pos-1.xyz), with NAME-frc-1.xyz and NAME-1.cell beside them",
    endings=(),
    patterns=("*-pos-*.xyz",),
    read=read_cp2k_xyz,
    lacks="stress; the cell, unless a file beside it states one",
    compressed=True,
    looks_like=looks_like,
    parts=("*-frc-*.xyz", "*-vel-*.xyz"),
)
