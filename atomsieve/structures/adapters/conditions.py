"""Finds the total charge and the multiplicity that one structure states, under the names that files use too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.errors import DataError
from atomsieve.structures.labels import NAMES, round_residue

if TYPE_CHECKING:
    from ase import Atoms

IN_WORDS = {"charge": "total charge", "spin": "multiplicity"}


def find_condition(label: str, places: Mapping[str, Mapping[str, Any]], atoms: int | None = None) -> float:
    """Return the "charge" (e) or "spin" (multiplicity 2S+1) of a structure; NaN where none is stated.

    places : what is stated, by key, for each place that may state it; the name of a place is for messages.
    atoms : number of atoms, where a list of one number may be that of the one atom.

    An array of several values belongs to atoms and is passed over. What summing leaves of a charge is rounded away.

    Raises
    ------
    DataError
        for a value that is no number, a list of one number for one atom, or two values that differ.
    """
    found, where = np.nan, ""
    for place, stated in places.items():
        for name in NAMES[label]:
            given = stated.get(name)
            if given is None:
                continue
            try:
                array = np.asarray(given, np.float64)
            except (TypeError, ValueError) as error:
                raise DataError(f"{place} {name!r} must be a number, got {given!r}") from error
            if array.size != 1:
                continue
            if array.ndim and atoms == 1:
                raise DataError(
                    f"{place} {name!r} is a list of one number, {given!r}, which may be that of the one atom; give a "
                    "plain number where it is that of the structure"
                )
            value = float(round_residue(array.reshape(())))
            if value != value:
                continue
            if found == found and value != found:
                raise DataError(
                    f"two values of the {IN_WORDS[label]}: {where} is {found:g}, {place} {name!r} is {value:g}; keep "
                    "one of them"
                )
            found, where = value, f"{place} {name!r}"
    return found


def charge_and_spin(atoms: Atoms) -> tuple[float, float]:
    """Return total charge (e) and multiplicity of ASE atoms, NaN where they state none.

    They are stated in `atoms.info`, or as attributes that a converter has set (pymatgen's adapter sets `atoms.charge`
    and `atoms.spin_multiplicity`). Initial charges and magnetic moments of the atoms state neither.

    Raises
    ------
    DataError
        for a value that is no number, or two values that differ.
    """
    places = {"info": atoms.info, "attribute": vars(atoms)}
    return find_condition("charge", places, len(atoms)), find_condition("spin", places, len(atoms))


def copy_atoms(atoms: Atoms) -> Atoms:
    """Return a copy whose `info` has total charge and multiplicity where attributes state them: ASE copies no others.

    Raises
    ------
    DataError
        as of `charge_and_spin`.
    """
    copy: Atoms = atoms.copy()
    for name, value in zip(("charge", "spin"), charge_and_spin(atoms), strict=True):
        if value == value and not any(key in copy.info for key in NAMES[name]):
            copy.info[name] = value
    return copy
