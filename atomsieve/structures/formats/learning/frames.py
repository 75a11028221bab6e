"""Blocks of frames that share their atoms, as data sets of molecules and of simulations keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.block import Block, Column
from atomsieve.structures.units import Units

FRAME_ATOMS = 200_000
"""Atoms in one block of frames."""


def frames_per_block(atoms: int) -> int:
    """Return how many frames of so many atoms make a block."""
    return max(1, min(20_000, FRAME_ATOMS // max(atoms, 1)))


def build_frames(
    numbers: NDArray[Any],
    positions: NDArray[Any],
    places: Sequence[str],
    *,
    cell: NDArray[Any] | None = None,
    pbc: bool = False,
    info: Mapping[str, NDArray[Any]] | None = None,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    units: Units | None = None,
    absent: bool = False,
    start: int = 0,
) -> Block:
    """Return S frames of n atoms as a block.

    `numbers` are `[S,n]`, or `[n]` where all frames have the same atoms; a number of -1 is no atom and is left out.
    `positions` are `[S,n,3]`, `cell` `[S,3,3]`; `pbc` is that of all directions. `info` `[S, ...]` and `arrays`
    `[S,n, ...]` hold values by key; with `absent`, NaN among the numbers of one frame means that it has no such value.
    `start` is the place of the first frame in its file.
    """
    count, atoms = positions.shape[:2]
    numbers = np.broadcast_to(np.asarray(numbers), (count, atoms))
    there = numbers != -1
    whole = bool(there.all())
    kept = there.sum(axis=1)

    def flatten(values: NDArray[Any], has: NDArray[np.bool_]) -> NDArray[Any]:
        values = values[has] if not has.all() else values
        return values.reshape(-1, *values.shape[2:]) if whole else values[there[has]]

    every = np.ones(count, bool)
    columns = {}
    of_atoms = {}
    for key, values in (info or {}).items():
        has = _find_present(values) if absent else every
        if has.any():
            columns[key] = Column(has, values if has.all() else values[has])
    for key, values in (arrays or {}).items():
        has = _find_present(values) if absent else every
        if has.any():
            of_atoms[key] = Column(has, flatten(values, has))
    return Block(
        ptr=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        numbers=flatten(numbers, every),
        positions=flatten(positions, every).astype(np.float64, copy=False),
        cell=np.zeros((count, 3, 3)) if cell is None else cell.astype(np.float64, copy=False),
        pbc=np.full((count, 3), pbc),
        places=places,
        info=columns,
        arrays=of_atoms,
        units=units or Units(),
        start=start,
        stop=start + count,
    )


def _find_present(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind != "f":
        return np.ones(len(values), bool)
    return ~np.isnan(values.reshape(len(values), -1)).any(axis=1)


def read_numbers_of_types(names: Sequence[str], elements: Sequence[str], where: str) -> NDArray[np.int64]:
    """Return the atomic number of each type by the name that the file gives it, or by `elements`, which go first.

    Raises
    ------
    DataError
        for a name that is no element, naming the option that states the elements.
    """
    from ase.data import atomic_numbers

    chosen = list(elements) or list(names)
    if len(chosen) < len(names):
        raise DataError(
            f"{where}: {len(names)} types, but --elements names {len(chosen)} ({', '.join(chosen)}); name one for each"
        )
    wrong = [name for name in chosen if atomic_numbers.get(name, 0) < 1]
    if wrong:
        raise DataError(
            f"{where}: the type {wrong[0]!r} is no element; name the elements of the {len(chosen)} types in order with "
            "--elements, such as --elements O,H"
        )
    return np.array([atomic_numbers[name] for name in chosen], np.int64)
