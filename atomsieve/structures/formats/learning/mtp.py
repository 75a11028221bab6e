"""Configurations of moment tensor potentials (`.cfg` of MLIP-2 and MLIP-3); read only.

Energies are in eV, forces in eV/Angstrom; `PlusStress` is the virial in eV, minus the stress times the volume. Types
are numbers from 0 on, whose elements the file does not say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.learning.frames import read_numbers_of_types
from atomsieve.structures.formats.learning.text_frames import CutOff, iterate_frames
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import Units

UNITS = Units("eV", "angstrom", "eV/angstrom", virial="eV", origin="format mtp")
CARTESIAN, DIRECT = ("cartes_x", "cartes_y", "cartes_z"), ("direct_x", "direct_y", "direct_z")
FORCES = ("fx", "fy", "fz")
_TENSOR = {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}
LARGEST_TYPE = 1000
_TENSORS = {"PlusStress:": "virial", "Stress:": "Stress", "Virial:": "Virial"}
"""`PlusStress` alone has one meaning in all versions of MLIP; the others are named as they are, and not taken."""


def read_mtp(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the configurations of a file; one that cannot be read is `BadItem` with its line.

    Raises
    ------
    DataError
        if the elements of the types are not known.
    """
    count = 0
    for line, text in iterate_frames(request, "BEGIN_CFG", "END_CFG"):
        where = f"{request.path}: line {line}"
        count += 1
        if isinstance(text, CutOff):
            yield BadItem("a configuration without END_CFG", where, str(text))
            continue
        try:
            frame = _read_frame(text)
            if len(frame.types) == 0:
                raise ValueError("no atoms")
        except (ValueError, IndexError) as error:
            yield BadItem("a configuration that cannot be read", where, str(error))
            continue
        yield frame.build(request.elements, where)
    if not count:
        yield BadItem("no .cfg file of MTP: it has no BEGIN_CFG", str(request.path))


class _Frame:
    """What a configuration states."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.lattice: list[list[float]] = []
        self.types = np.zeros(0, np.int64)
        self.columns: dict[str, NDArray[np.float64]] = {}
        self.info: dict[str, Any] = {}

    def build(self, elements: tuple[str, ...], where: str) -> Item:
        highest = int(self.types.max())
        if highest >= len(elements):
            asked = "--elements O,H names those of the types 0, 1, ..."
            raise DataError(
                f"{where}: the elements of the types 0 to {highest} are not in the file; {asked}"
                + (f"; {len(elements)} were named" if elements else "")
            )
        cell, pbc = np.zeros((3, 3)), np.zeros(3, bool)
        cell[: len(self.lattice)] = np.array(self.lattice).reshape(-1, 3)
        pbc[: len(self.lattice)] = True
        names = DIRECT if DIRECT[0] in self.columns else CARTESIAN
        positions = np.stack([self.columns.pop(name) for name in names], axis=1)
        if names is DIRECT:
            positions = positions @ cell
        arrays: dict[str, Any] = {}
        if FORCES[0] in self.columns:
            arrays["forces"] = np.stack([self.columns.pop(name) for name in FORCES], axis=1)
        renamed = {"charge": "charges", "site_en": "energies"}
        arrays.update({renamed.get(name, name): values for name, values in self.columns.items()})
        numbers = read_numbers_of_types(elements, elements, where)[self.types]
        return Item(numbers, positions, cell, pbc, where, info=self.info, arrays=arrays, units=UNITS)


def _read_frame(lines: list[str]) -> _Frame:
    """Return what the lines between BEGIN_CFG and END_CFG state.

    Raises
    ------
    ValueError
        naming what does not fit.
    """
    frame, k = _Frame(), 0
    while k < len(lines):
        words = lines[k].split()
        k += 1
        if not words:
            continue
        word = words[0]
        if word == "Size":
            frame.size = int(lines[k])
            k += 1
        elif word in ("Supercell", "SuperCell", "Lattice"):
            while k < len(lines) and len(frame.lattice) < 3 and (row := _read_vector(lines[k])) is not None:
                frame.lattice.append(row)
                k += 1
        elif word in ("AtomData:", "Atomic_data:"):
            if frame.size is None or not 0 < frame.size <= len(lines) - k:
                raise ValueError(f"Size {frame.size}, but {len(lines) - k} lines follow AtomData")
            _read_atoms(frame, words[1:], lines[k : k + frame.size])
            k += frame.size
        elif word == "Energy":
            frame.info["energy"] = float(lines[k])
            k += 1
        elif word in _TENSORS:
            frame.info[_TENSORS[word]] = _read_tensor(word, words[1:], lines[k].split())
            k += 1
        elif word == "Feature" and len(words) > 1:
            key, value = words[1], " ".join(words[2:])
            frame.info[key] = f"{frame.info[key]}\n{value}" if key in frame.info else value
        else:
            raise ValueError(f"{lines[k - 1].strip()[:60]!r} was not expected")
    return frame


def _read_tensor(word: str, names: list[str], values: list[str]) -> NDArray[np.float64]:
    unknown = [name for name in names if name not in _TENSOR]
    if unknown or len(values) != len(names):
        what = f"a component {unknown[0]!r}" if unknown else f"{len(values)} numbers for {len(names)} components"
        raise ValueError(f"{word} has {what}")
    tensor = np.zeros((3, 3))
    for name, value in zip(names, values, strict=True):
        a, b = _TENSOR[name]
        tensor[a, b] = tensor[b, a] = float(value)
    return tensor


def _read_vector(line: str) -> list[float] | None:
    words = line.split()
    try:
        return [float(word) for word in words] if len(words) == 3 else None
    except ValueError:
        return None


def _read_atoms(frame: _Frame, names: list[str], lines: list[str]) -> None:
    rows = [line.split() for line in lines]
    wrong = next((k for k, row in enumerate(rows) if len(row) != len(names)), None)
    if wrong is not None:
        raise ValueError(f"atom {wrong + 1} has {len(rows[wrong])} words for the {len(names)} columns of AtomData")
    table = np.array([[float(word) for word in row] for row in rows])
    columns = dict(zip(names, table.T, strict=True))
    for group in (CARTESIAN, DIRECT, FORCES):
        if 0 < sum(name in columns for name in group) < 3:
            raise ValueError(f"AtomData has some of {', '.join(group)}, but not all")
    if (CARTESIAN[0] in columns) == (DIRECT[0] in columns):
        raise ValueError("AtomData must have either cartes_x or direct_x")
    if DIRECT[0] in columns and len(frame.lattice) < 3:
        raise ValueError("direct coordinates without three lattice vectors")
    if "type" not in columns:
        raise ValueError("AtomData has no type")
    types = columns.pop("type")
    if not (np.isfinite(types) & (types >= 0) & (types == np.rint(types)) & (types < LARGEST_TYPE)).all():
        raise ValueError(f"types {types.min():g} to {types.max():g}; whole numbers from 0 on were expected")
    frame.types = types.astype(np.int64)
    columns.pop("id", None)
    frame.columns = columns


ROW = Format(
    name="mtp",
    about="configurations of MTP (MLIP-2, MLIP-3)",
    endings=(".cfg",),
    read=read_mtp,
    compressed=True,
)
