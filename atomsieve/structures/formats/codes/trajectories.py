"""Trajectories of molecular dynamics that hold positions alone (XTC, DCD), read by MDTraj some frames at a time.

The elements come from another file, the topology. XTC is in nanometres and states its box as vectors; DCD is in
Angstrom and states lengths and angles: then a is along x, and b in the plane of x and y.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, require
from atomsieve.structures.block import Block, Places
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import ENDS_WITHIN
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import Units

log = logging.getLogger(__name__)

ATOMS_AT_ONCE = 1_000_000
CELL_OF_TOPOLOGY = "the trajectory states no cell: that of the topology is taken"

Read = Callable[[Any, int], tuple[NDArray[Any], NDArray[np.float64]]]
"""Returns positions `[F,n,3]` and vectors `[F,3,3]` of the next frames, in the unit of the file."""


def read_xtc(request: ReadRequest) -> Iterator[Block | BadItem]:
    """Yield the frames of an XTC trajectory.

    Raises
    ------
    DataError
        if the file is no such trajectory, or no topology names the elements of its atoms.
    AtomSieveError
        if MDTraj is missing.
    """
    yield from _read(request, "XTCTrajectoryFile", _next_xtc, Units(length="nm", origin="format xtc"))


def read_dcd(request: ReadRequest) -> Iterator[Block | BadItem]:
    """Yield the frames of a DCD trajectory; errors as of `read_xtc`."""
    yield from _read(request, "DCDTrajectoryFile", _next_dcd, Units(length="angstrom", origin="format dcd"))


def _next_xtc(file: Any, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    positions, _, _, box = file.read(count)
    return positions, np.asarray(box, np.float64)


def _next_dcd(file: Any, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    from ase.geometry import cellpar_to_cell

    positions, lengths, angles = file.read(count)
    cells = np.zeros((len(positions), 3, 3))
    if lengths is not None:
        for k, (sides, corners) in enumerate(zip(lengths, angles, strict=True)):
            if np.all(sides > 0):
                cells[k] = cellpar_to_cell([*sides, *corners], a_direction=(1, 0, 0))
    return positions, cells


def _read(request: ReadRequest, name: str, read: Read, units: Units) -> Iterator[Block | BadItem]:
    path, reference = request.path, request.reference
    if reference is None:
        why = "" if request.topology is None else f", of a format that can be read, not {request.topology}"
        raise DataError(f"{path} holds positions alone; name its elements with --topology FILE{why}")
    formats = require("mdtraj.formats", "trajectories", f"reading {path}")
    try:
        with _silence():
            file = getattr(formats, name)(str(path))
    except Exception as error:
        raise DataError(f"{path} is no trajectory that MDTraj can read: {error}") from error
    with file:
        done = 0
        count = max(1, ATOMS_AT_ONCE // max(1, len(reference.numbers)))
        while True:
            try:
                with _silence():
                    positions, cells = read(file, count)
            except Exception as error:  # the library raises whatever its readers return
                log.debug("%s: %s", path, error, exc_info=True)
                for positions, cells in _read_singly(formats, name, request, read, done):
                    yield _build(request, reference, positions, cells, done, units)
                    done += 1
                if not done:
                    raise DataError(f"{path} is no trajectory that MDTraj can read: {error}") from error
                yield BadItem(ENDS_WITHIN, f"{path}: frame {done}", str(error))
                return
            if not len(positions):
                if name.startswith("DCD") and _announced(path) > done:
                    yield BadItem(ENDS_WITHIN, f"{path}: frame {done}", f"it announces {_announced(path)} frames")
                return
            yield _build(request, reference, positions, cells, done, units)
            done += len(positions)


def _read_singly(
    formats: Any, name: str, request: ReadRequest, read: Read, done: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.float64]]]:
    """Yield frames one by one from the place `done`, up to the one that cannot be read."""
    with _silence():
        file = getattr(formats, name)(str(request.path))
    with file:
        try:
            if done:
                read(file, done)
            while len((found := read(file, 1))[0]):
                yield found
        except Exception as error:
            log.debug("%s: %s", request.path, error)


def _announced(path: Path) -> int:
    """Return the number of frames in the head of a DCD file, which begins with the length of a record, 84."""
    with path.open("rb") as file:
        head = file.read(12)
    return int.from_bytes(head[8:12], "little" if head[:1] == b"T" else "big", signed=True)


def _build(
    request: ReadRequest,
    reference: Item,
    positions: NDArray[Any],
    cells: NDArray[np.float64],
    done: int,
    units: Units,
) -> Block:
    frames, atoms = positions.shape[:2]
    if atoms != len(reference.numbers):
        raise DataError(
            f"{request.path} has {atoms} atoms a frame, but {request.topology} has {len(reference.numbers)} atoms"
        )
    stated = np.asarray(cells.any(axis=(1, 2)), bool)
    pbc = np.repeat(stated[:, None], 3, axis=1)
    notes = {}
    if not stated.all() and reference.cell.any():
        cells = np.where(stated[:, None, None], cells, reference.cell / units.factor("length"))
        pbc = np.where(stated[:, None], pbc, reference.pbc)
        notes = {CELL_OF_TOPOLOGY: int((~stated).sum())}
    return Block(
        ptr=np.arange(frames + 1, dtype=np.int64) * atoms,
        numbers=np.tile(reference.numbers, frames),
        positions=positions.reshape(-1, 3).astype(np.float64),
        cell=cells,
        pbc=pbc,
        places=Places(str(request.path), "frame", np.arange(done, done + frames)),
        units=units,
        notes=notes,
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what compiled code prints on standard output away from it: the reader of DCD tells there what it sees."""
    sys.stdout.flush()
    held = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(held, 1)
        os.close(held)
        os.close(nowhere)


XTC_ROW = Format(
    name="xtc",
    about="XTC trajectory of GROMACS; elements from `--topology`",
    endings=(".xtc",),
    read=read_xtc,
    lacks="elements, labels; digits beyond its precision",
    extra="trajectories",
)
DCD_ROW = Format(
    name="dcd",
    about="DCD trajectory of NAMD, CHARMM, OpenMM, LAMMPS; elements from `--topology`",
    endings=(".dcd",),
    read=read_dcd,
    lacks="elements, labels; digits beyond float32",
    extra="trajectories",
)
