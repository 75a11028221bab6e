"""Layouts of public HDF5 data sets: what their groups hold, told by their keys, in which units."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from atomsieve.structures.units import Units


@dataclass(frozen=True)
class Layout:
    """What a group of molecules or conformers holds.

    Attributes
    ----------
    name : of the data set, for messages.
    positions, numbers : keys of the positions and of the atomic numbers or symbols.
    names : keys of labels that the data set fixes, all at one level of theory.
    units : units that the data set fixes; those that the file itself states go before them.
    absent : NaN stands for a value that was not computed.
    general : none of the data sets that are known: only what the file states has a unit.
    """

    name: str
    positions: str
    numbers: str
    names: Mapping[str, str] = field(default_factory=dict)
    units: Units = field(default_factory=Units)
    absent: bool = False
    general: bool = False


ANI1X = Layout(
    "ANI-1x",
    "coordinates",
    "atomic_numbers",
    {"energy": "wb97x_dz.energy", "forces": "wb97x_dz.forces"},
    Units("hartree", "angstrom", "hartree/angstrom", origin="data set ANI-1x"),
    absent=True,
)
ANI2X = Layout(
    "ANI-2x",
    "coordinates",
    "species",
    {"energy": "energies", "forces": "forces"},
    Units("hartree", "angstrom", "hartree/angstrom", origin="data set ANI-2x"),
)
ANI1 = Layout(
    "ANI-1, COMP6",
    "coordinates",
    "species",
    {"energy": "energies", "forces": "forces"},
    Units(
        "hartree",
        "angstrom",
        origin="data set ANI-1 or COMP6",
        needed=(("forces", "-hartree/angstrom for the gradients of COMP6, hartree/angstrom for forces"),),
    ),
)
SPICE = Layout(
    "SPICE",
    "conformations",
    "atomic_numbers",
    {"energy": "dft_total_energy", "forces": "dft_total_gradient"},
    Units("hartree", "bohr", "-hartree/bohr", origin="data set SPICE"),
)
QM7X = Layout(
    "QM7-X",
    "atXYZ",
    "atNUM",
    {"energy": "ePBE0+MBD", "forces": "totFOR"},
    Units("eV", "angstrom", "eV/angstrom", origin="data set QM7-X"),
)
POSITIONS = ("coordinates", "positions", "pos", "geometry", "conformations", "xyz", "R")
NUMBERS = ("atomic_numbers", "numbers", "species", "symbols", "elements", "Z", "z")


def find_layout(keys: Collection[str], is_text: Callable[[str], bool]) -> Layout | None:
    """Return the layout of a group by its keys; None if it holds no structures."""
    have = set(keys)
    if {"atXYZ", "atNUM"} <= have:
        return QM7X
    if {"conformations", "atomic_numbers"} <= have and "dft_total_energy" in have:
        return SPICE
    if {"coordinates", "atomic_numbers"} <= have and "wb97x_dz.energy" in have:
        return ANI1X
    if {"coordinates", "species", "energies"} <= have:
        return ANI1 if is_text("species") else ANI2X
    positions = next((key for key in POSITIONS if key in have), None)
    numbers = next((key for key in NUMBERS if key in have), None)
    if positions is None or numbers is None:
        return None
    return Layout("", positions, numbers, general=True)
