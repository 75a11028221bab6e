"""Standard crystals and molecules of the elements, from the libraries of ASE and pymatgen.

The lattice constants are experimental; the energy of an element comes from the ensemble, after relaxation with cell.
Sources: the reference states of ASE (`ase.data`), the encyclopedia of crystallographic prototypes in pymatgen
(M. J. Mehl et al., Comput. Mater. Sci. 136, S1 (2017)), and molecules of two atoms with experimental bond lengths
(K. P. Huber and G. Herzberg, Constants of Diatomic Molecules (1979)) alone in a large periodic box.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from atomsieve.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

BONDS: Mapping[str, float] = {"H": 0.741, "N": 1.098, "O": 1.208, "F": 1.412, "Cl": 1.988, "Br": 2.281, "I": 2.666}
"""Angstrom; elements of molecules of two atoms."""
BOX = 12.0
"""Angstrom between molecules."""
LIBRARY: Mapping[str, tuple[str, ...]] = {
    "As": ("A_hR2_166_c",),
    "B": ("A_hR12_166_2h",),
    "C": ("A_hP4_194_bc", "A_cF8_227_a"),
    "Cl": ("A_tP16_138_j",),
    "Ga": ("A_oC8_64_f",),
    "Hg": ("A_hR1_166_a",),
    "I": ("A_oC8_64_f",),
    "La": ("A_hP4_194_ac",),
    "Mn": ("A_cI58_217_ac2g",),
    "N": ("A_cP8_205_c",),
    "Np": ("A_oP8_62_2c",),
    "O": ("A_mC4_12_i",),
    "P": ("A_oC8_64_f",),
    "Pa": ("A_tI2_139_a",),
    "Po": ("A_cP1_221_a",),
    "Pu": ("A_mP16_11_8e",),
    "S": ("A_oF128_70_4h",),
    "Se": ("A_hP3_152_a",),
    "Sm": ("A_hR3_166_ac",),
    "Sn": ("A_tI4_141_a",),
    "U": ("A_oC4_63_c",),
}
"""Prototypes in pymatgen's encyclopedia that are crystals of the element itself, by its AFLOW labels."""
LIKE: Mapping[str, tuple[str, str, float]] = {"Br": ("I", "A_oC8_64_f", 32.0), "Te": ("Se", "A_hP3_152_a", 34.0)}
"""Elements that crystallise like another one of `LIBRARY`: that element, the label, and Angstrom^3 per atom."""
CLOSE_PACKED = ("fcc", "hcp", "bcc")
"""Tried where no library knows the element."""


def list_prototypes(symbol: str) -> list[tuple[str, Atoms]]:
    """Return the standard crystals and molecules of an element with their names; at least one."""
    found = [*_from_library(symbol), *_from_ase(symbol), *_molecule(symbol)]
    return found or list(_close_packed(symbol))


def _molecule(symbol: str) -> Iterator[tuple[str, Atoms]]:
    if symbol in BONDS:
        from ase import Atoms

        pair = Atoms([symbol] * 2, [[0, 0, 0], [0, 0, BONDS[symbol]]], cell=[BOX, BOX + 1, BOX + 2], pbc=True)
        yield f"{symbol}2 molecule", pair


def _from_ase(symbol: str) -> Iterator[tuple[str, Atoms]]:
    from ase.build import bulk
    from ase.data import atomic_numbers, reference_states

    number = atomic_numbers[symbol]
    state = reference_states[number] if number < len(reference_states) else None
    if not state or state.get("symmetry") in (None, "atom", "diatom"):
        return
    try:
        yield f"{symbol} {state['symmetry']}", bulk(symbol)
    except (ValueError, KeyError, TypeError, RuntimeError):  # a state that ASE knows and cannot build
        return


def _from_library(symbol: str) -> Iterator[tuple[str, Atoms]]:
    known = _library()
    for label in LIBRARY.get(symbol, ()):
        if (symbol, label) in known:
            yield f"{symbol} {label}", known[symbol, label].copy()
    if symbol in LIKE:
        other, label, volume = LIKE[symbol]
        if (other, label) in known:
            made = known[other, label].copy()
            made.symbols[:] = symbol
            made.set_cell(made.cell * (volume * len(made) / made.get_volume()) ** (1 / 3), scale_atoms=True)
            yield f"{symbol} {label}", made


@cache
def _library() -> dict[tuple[str, str], Atoms]:
    """Return the crystals of `LIBRARY` in pymatgen's encyclopedia, by element and label."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
    from pymatgen.io.ase import AseAtomsAdaptor

    wanted = {(symbol, label) for symbol, labels in LIBRARY.items() for label in labels}
    found: dict[tuple[str, str], Atoms] = {}
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure
        if len(structure.composition) == 1:
            key = (structure.composition.elements[0].symbol, entry["tags"]["aflow"])
            if key in wanted:
                atoms = AseAtomsAdaptor.get_atoms(structure)
                atoms.info.clear()
                found[key] = atoms
    return found


def _close_packed(symbol: str) -> Iterator[tuple[str, Atoms]]:
    from ase.build import bulk
    from ase.data import atomic_numbers, covalent_radii

    number = atomic_numbers.get(symbol)
    if number is None:
        raise DataError(f"{symbol!r} is no element")
    near = max(2.1 * float(covalent_radii[number]), 2.8)  # metals: somewhat more than covalent radii; noble gases: 2.8
    for kind, side in zip(CLOSE_PACKED, (near * np.sqrt(2), near, near * 2 / np.sqrt(3)), strict=True):
        yield f"{symbol} {kind}", bulk(symbol, kind, a=side)
