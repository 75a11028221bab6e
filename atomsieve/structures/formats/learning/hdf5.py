"""HDF5 data sets of molecules: ANI-1, ANI-1x, ANI-2x, COMP6, SPICE, QM7-X, DeePMD-kit's, and others that state units.

A group holds `[S,n,3]` positions of S conformers of n atoms with arrays beside them, or one conformer `[n,3]`. Only
what may be a label is read; all else is named. Links to other files are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, require
from atomsieve.structures.block import Block, Places, build_block
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.learning.deepmd import read_system
from atomsieve.structures.formats.learning.frames import build_frames, frames_per_block
from atomsieve.structures.formats.learning.hdf5_files import (
    LARGEST_ATOMS,
    GroupFiles,
    find_links,
    is_text,
    open_array,
    open_group,
    read_unit,
)
from atomsieve.structures.formats.learning.hdf5_layouts import Layout, find_layout
from atomsieve.structures.formats.learning.units_of_keys import choose_units
from atomsieve.structures.item import Item, ReadRequest
from atomsieve.structures.labels.names import NAMES
from atomsieve.structures.units import Units

log = logging.getLogger(__name__)

DEPTH = 8
OF_STRUCTURES = ("stress", "virial", "cell", "lattice", "pbc")
SINGLES = 2000
"""Conformers in groups of their own that make a block."""
EVERYTHING = "*"
CERTAIN = ("cell", "pbc", *(name for names in NAMES.values() for name in names))
"""Keys that are read whatever the data set; of others only those that it fixes, or that the user names."""


def count_groups(path: Path) -> int:
    """Return the number of groups at the top of a file, the unit of its spans; 0 where they are not the structures."""
    with _open(path) as file:
        links = find_links(file, str(path))
        return len(links) if all(links.values()) else 0


def read_hdf5(request: ReadRequest) -> Iterator[Block]:
    """Yield the structures of a file, group by group; spans count the groups at its top.

    Raises
    ------
    DataError
        if it is no such file, is damaged, links to other files, or holds no structures that are understood.
    """
    path = request.path
    h5py = require("h5py", "data", "reading HDF5 files")
    with _open(path) as file:
        try:
            yield from _read_file(file, request)
        except (OSError, RuntimeError, KeyError, MemoryError, ValueError, TypeError) as error:  # all of them of h5py
            log.debug("%s: %s", path, error, exc_info=True)
            raise DataError(
                f"{path} is damaged, or of a kind that h5py {h5py.__version__} cannot read: {error}"
            ) from error


def _open(path: Path) -> Any:
    h5py = require("h5py", "data", "reading HDF5 files")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is not a readable HDF5 file: {error}") from error


def _read_file(file: Any, request: ReadRequest) -> Iterator[Block]:
    links = find_links(file, str(request.path))
    tops: Sequence[str] = ["/"] if not all(links.values()) else list(links)
    stop = len(tops) if request.stop is None else min(request.stop, len(tops))
    walk = _Walk(request)
    count = 0
    for k in range(request.start, stop):
        last = None
        for block in _gather_singles(walk.read(file[tops[k]])):
            if last is not None:
                yield last
            block.start = block.stop = k
            last = block
        if last is not None:
            last.stop, count = k + 1, count + 1
            yield last
        request.tick((k + 1 - request.start) / max(stop - request.start, 1))
    if not count and request.start == 0 and stop == len(tops):
        shown = ", ".join(sorted(walk.keys)[:12]) or "none"
        raise DataError(
            f"{request.path} holds no structures that are understood: no group has positions ('coordinates', "
            f"'positions', 'conformations', ...) and elements ('atomic_numbers', 'species', ...); its keys: {shown}"
        )


class _Walk:
    """Goes through the groups of a file, each once.

    Attributes
    ----------
    keys : names of all arrays that were seen.
    """

    def __init__(self, request: ReadRequest) -> None:
        self.request = request
        self.keys: set[str] = set()
        self._seen: set[Any] = set()
        self._known: Mapping[str, bool] | None = None

    def read(self, group: Any, depth: int = 0) -> Iterator[Block | _Molecule]:
        """Yield the structures of a group and of the groups in it; a group of one conformer as it is."""
        h5py = require("h5py", "data", "reading HDF5 files")
        where = f"{self.request.path}: {group.name}"
        identity = h5py.h5g.get_objinfo(group.id).objno
        if depth > DEPTH or identity in self._seen:
            raise DataError(f"{where}: the group lies in more than one place of the file, or too deep")
        self._seen.add(identity)
        links = find_links(group, str(self.request.path), self._known)
        if "type.raw" in links:
            whole = replace(self.request, start=0, stop=None, tick=lambda fraction: None)
            yield from read_system(GroupFiles(group, where), whole)
            return
        names = [name for name, is_group in links.items() if not is_group]
        self.keys.update(names)
        layout = find_layout(names, lambda name: is_text(open_array(group, name, where)))
        if layout is not None:
            self._known = links  # conformers in groups of their own all have the same arrays
            molecule = _Molecule(group, names, layout, self.request, where)
            if molecule.single:
                yield molecule
            else:
                yield from molecule.build_frames()
        for name, is_group in links.items():
            if is_group:
                yield from self.read(open_group(group, name, where), depth + 1)


def _gather_singles(found: Iterator[Block | _Molecule]) -> Iterator[Block]:
    """Yield blocks as they are, and conformers that have groups of their own some thousands at a time."""
    items: list[Item] = []
    kind: _Molecule | None = None
    for one in found:
        fits = isinstance(one, _Molecule) and kind is not None and one.is_like(kind) and len(items) < SINGLES
        if items and kind is not None and not fits:
            yield kind.describe(build_block(items))
            items = []
        if isinstance(one, Block):
            yield one
        else:
            kind = one if not items else kind
            items.append(one.build_single())
    if items and kind is not None:
        yield kind.describe(build_block(items))


class _Molecule:
    """The arrays of one group; those that are not read are not opened."""

    def __init__(self, group: Any, names: list[str], layout: Layout, request: ReadRequest, where: str) -> None:
        self.layout, self.where = layout, where
        certain = {layout.positions, layout.numbers, *layout.names.values(), *CERTAIN, *request.wanted}
        opened = [name for name in names if name in certain or EVERYTHING in request.wanted]
        self.arrays = {name: open_array(group, name, where) for name in opened}
        shape = self.arrays[layout.positions].shape
        if len(shape) not in (2, 3) or shape[-1] != 3 or shape[-2] > LARGEST_ATOMS:
            raise DataError(f"{where}: {layout.positions} has shape {shape}; [conformers,atoms,3] was expected")
        self.single = len(shape) == 2
        self.frames: int = 1 if self.single else shape[0]
        self.atoms: int = shape[-2]
        self.read = [
            name for name in opened if name not in (layout.positions, layout.numbers) and self._find_axis(name)
        ]
        self.left = sorted({*names} - {layout.positions, layout.numbers, *self.read})
        self.units = self._find_units()

    def _find_axis(self, name: str) -> str:
        """Return what an array has a row for: "atoms", "frames", "frames and atoms", "all" of one value, or "" else."""
        array = self.arrays[name]
        shape = array.shape
        if shape is None or (array.dtype.kind not in "biuf" and not is_text(array)):
            return ""
        if shape in ((), (1,)):
            return "all"
        if self.single:
            return "atoms" if shape[0] == self.atoms and not self._of_structures(name) else "frame"
        if shape[0] == self.frames:
            of_atoms = len(shape) > 1 and shape[1] == self.atoms and not self._of_structures(name)
            return "frames and atoms" if of_atoms else "frames"
        return "atoms" if shape[0] == self.atoms else "all" if self._of_structures(name) else ""

    def _of_structures(self, name: str) -> bool:
        return any(word in name.lower() for word in OF_STRUCTURES)

    def _find_units(self) -> Units:
        stated = {name: read_unit(array) for name, array in self.arrays.items() if array.dtype.kind == "f"}
        length = stated.pop(self.layout.positions)
        table = stated if self.layout.general else {name: unit for name, unit in stated.items() if unit}
        for name, unit in table.items():
            if "grad" in name.lower() and unit and not unit.startswith("-"):
                table[name] = f"-{unit}"
        try:
            units = choose_units(table, length or None, "the file", self.layout.names)
        except UsageError as error:
            raise DataError(f"{self.where}: {error}; rewrite the attribute") from error
        if self.layout.general and not length:
            units = replace(units, needed=(*units.needed, ("length", "positions without a unit")))
        if self.layout.general:
            return units
        return replace(units.over(self.layout.units), needed=(*units.needed, *self.layout.units.needed))

    def _read_numbers(self, rows: slice) -> NDArray[np.int64]:
        array = self.arrays[self.layout.numbers]
        if array.shape not in ((self.atoms,), (self.frames, self.atoms)):
            raise DataError(
                f"{self.where}: {self.layout.numbers} has shape {array.shape}, which does not fit "
                f"{self.layout.positions} of {self.frames} conformers with {self.atoms} atoms"
            )
        values = array[:] if len(array.shape) == 1 else array[rows]
        if is_text(array):
            from ase.data import atomic_numbers

            words = [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in values.flat]
            unknown = [word for word in words if atomic_numbers.get(word, 0) < 1]
            if unknown:
                raise DataError(f"{self.where}: {self.layout.numbers} holds {unknown[0]!r}, which is no element")
            values = np.array([atomic_numbers[word] for word in words]).reshape(values.shape)
        if values.dtype.kind not in "iu":
            raise DataError(f"{self.where}: {self.layout.numbers} holds {array.dtype}, no atomic numbers")
        return np.maximum(values.astype(np.int64), 0)  # what is no element, or padding, is found by the validation

    def _read(self, name: str, rows: slice) -> NDArray[Any]:
        array = self.arrays[name]
        axis = self._find_axis(name)
        values = array[rows] if axis.startswith("frames") else array[()]
        if is_text(array):
            flat = [word.decode(errors="replace") if isinstance(word, bytes) else word for word in np.ravel(values)]
            values = np.empty(np.shape(values), object)
            values.reshape(-1)[:] = flat
        return np.asarray(values)

    def is_like(self, other: _Molecule) -> bool:
        """Return True if a conformer can lie in one block with another one."""
        return (self.layout, self.left, self.units) == (other.layout, other.left, other.units)

    def build_single(self) -> Item:
        """Return the one conformer of a group."""
        info, arrays = {}, {}
        for name in self.read:
            value = self._read(name, slice(None))
            if self._find_axis(name) == "atoms":
                arrays[name] = value
            else:
                info[name] = value.reshape(-1)[0] if value.size == 1 else value
        cell, pbc = self._split_cell({name: np.asarray(info[name])[None] for name in ("cell", "pbc") if name in info})
        return Item(
            self._read_numbers(slice(None)).reshape(-1),
            np.asarray(self.arrays[self.layout.positions][()], np.float64),
            cell[0],
            pbc[0],
            self.where,
            info={name: value for name, value in info.items() if name not in ("cell", "pbc")},
            arrays=arrays,
            units=self.units,
        )

    def build_frames(self) -> Iterator[Block]:
        """Yield the conformers of a group."""
        step = frames_per_block(self.atoms)
        for start in range(0, self.frames, step):
            rows = slice(start, min(start + step, self.frames))
            count = rows.stop - start
            info, arrays = {}, {}
            for name in self.read:
                values, axis = self._read(name, rows), self._find_axis(name)
                if axis == "frames and atoms":
                    arrays[name] = values
                elif axis == "atoms":
                    arrays[name] = np.broadcast_to(values, (count, *values.shape))
                elif axis == "frames":
                    info[name] = values.reshape(count) if values.size == count else values
                else:
                    one = values.reshape(-1)[0] if values.size == 1 else values
                    info[name] = np.broadcast_to(np.asarray(one), (count, *np.shape(one)))
            cell, pbc = self._split_cell(info)
            block = build_frames(
                self._read_numbers(rows),
                np.asarray(self.arrays[self.layout.positions][rows]),
                Places(self.where, "conformer", np.arange(start, rows.stop)),
                cell=cell,
                info={name: values for name, values in info.items() if name not in ("cell", "pbc")},
                arrays=arrays,
                units=self.units,
                absent=self.layout.absent,
            )
            block.pbc = pbc
            yield self.describe(block)

    def _split_cell(self, info: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return cells and periodicity of conformers; none where the file has none."""
        count = len(next(iter(info.values()))) if info else self.frames
        cell, pbc = info.get("cell"), info.get("pbc")
        if cell is None:
            return np.zeros((count, 3, 3)), np.zeros((count, 3), bool)
        if pbc is None or cell.size != 9 * count or pbc.size not in (count, 3 * count):
            raise DataError(f"{self.where} has a cell; 'cell' [3,3] and 'pbc' [3] must both be there, of these shapes")
        return cell.reshape(count, 3, 3).astype(np.float64), np.broadcast_to(
            pbc.reshape(count, -1) != 0, (count, 3)
        ).copy()

    def describe(self, block: Block) -> Block:
        """Add to a block what the data set fixes, and what was not read."""
        block.names = dict(self.layout.names)
        if self.left:
            shown = ", ".join(self.left[:30]) + (", ..." if len(self.left) > 30 else "")
            block.notes[f"with arrays that are not read unless an option names one (--energy-key): {shown}"] = len(
                block
            )
        return block


ROW = Format(
    name="hdf5",
    about="HDF5 data sets: ANI-1, ANI-1x, ANI-2x, COMP6, SPICE, QM7-X, DeePMD-kit's, and others that state their units",
    endings=(".h5", ".hdf5", ".hdf"),
    read=read_hdf5,
    extra="data",
    extent=count_groups,
)
