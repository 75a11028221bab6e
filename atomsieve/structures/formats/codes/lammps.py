"""What files of LAMMPS share: its styles of units, and elements from symbols, types and masses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.units import LAMMPS_STYLES, Units

MASS_TOLERANCE = 0.05
"""Grams per mole within which a mass tells its element; no two elements are so near to each other."""
DEUTERIUM = 2.014

NEEDED = (
    ("length", "angstrom for LAMMPS units metal or real, or --unit metal, --unit real"),
    ("forces", "ev/angstrom for metal, kcal/mol/angstrom for real"),
)


@cache
def units_of_style(style: str | None, path: Path) -> Units:
    """Return the units of a style of LAMMPS such as `metal`; of None, that they must be stated.

    Raises
    ------
    DataError
        for a style without a scale, or an unknown one.
    """
    if style is None:
        return Units(needed=NEEDED)
    if style not in LAMMPS_STYLES:
        raise DataError(f"{path} is in units {style!r} of LAMMPS; read are {', '.join(LAMMPS_STYLES)}")
    return replace(Units.parse(style), origin=f"the file (LAMMPS units {style})")


def element_of_symbol(symbol: str) -> int:
    """Return the atomic number of a symbol, 0 for what is none; deuterium and tritium are hydrogen."""
    from ase.data import atomic_numbers

    return 1 if symbol in ("D", "T") else atomic_numbers.get(symbol, 0)


def element_of_mass(mass: float) -> int:
    """Return the element of which this is the mass in g/mol, 0 if none has it, or more than one."""
    from ase.data import atomic_masses

    if abs(mass - DEUTERIUM) < 0.01:
        return 1
    near = np.flatnonzero(np.abs(atomic_masses[1:] - mass) < MASS_TOLERANCE) + 1
    return int(near[0]) if len(near) == 1 else 0


def elements_of_types(types: NDArray[np.int64], elements: Sequence[str], path: Path) -> NDArray[np.int64]:
    """Return the atomic numbers of types 1, 2, ... whose elements the user named.

    Raises
    ------
    DataError
        for a type that has no name.
    """
    if len(types) and not 1 <= int(types.min()) <= int(types.max()) <= len(elements):
        wrong = int(types.min()) if types.min() < 1 else int(types.max())
        raise DataError(f"{path} has atoms of type {wrong}, but --elements names {len(elements)}: {','.join(elements)}")
    return np.array([0, *(element_of_symbol(symbol) for symbol in elements)], np.int64)[types]


def ask_for_elements(path: Path, why: str) -> DataError:
    """Return the error for a file that does not say which elements its types are."""
    return DataError(f"{path}: {why}; name the elements of types 1, 2, ... with --elements, e.g. --elements Al,Ni")
