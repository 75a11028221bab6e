"""Symmetry of a data block of CIF: its operators, and the atoms that they make of its sites."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.formats.records.geometry import UnusableError

OPERATORS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz", "_space_group_symop.operation_xyz")
HALL = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
HERMANN_MAUGUIN = (
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_full",
    "_space_group_name_H-M_ref",
)
NUMBER = ("_space_group_IT_number", "_symmetry_Int_Tables_number")
SETTING = ("_space_group_IT_coordinate_system_code", "_space_group.IT_coordinate_system_code")
MEETING = 0.05
"""Angstrom. Images of one site nearer than this are one atom: coordinates have three digits at least."""
ATOMS = 1_000_000

Operators = tuple[NDArray[np.float64], NDArray[np.float64], list[str]]


def find_operators(block: Any) -> Operators:
    """Return rotations `[k,3,3]` and translations `[k,3]` of fractional coordinates, and notes for the report.

    Raises
    ------
    UnusableError
        if the block names a space group that is unknown, or whose setting it leaves open.
    """
    import gemmi

    for tag in OPERATORS:
        texts = [gemmi.cif.as_string(value) for value in block.find_values(tag)]
        texts = [text for text in texts if text.strip(" .?")]
        if texts:
            try:
                return (*_to_arrays([gemmi.Op(text) for text in texts]), [])
            except (ValueError, RuntimeError) as error:
                raise UnusableError("an operator that cannot be read", str(error)) from error
    hall = _first(block, HALL)
    if hall:
        try:
            return (*_to_arrays(list(gemmi.symops_from_hall(hall))), [])
        except (ValueError, RuntimeError) as error:
            raise UnusableError("an unknown space group", hall) from error
    name, number = _first(block, HERMANN_MAUGUIN), _first(block, NUMBER)
    if name or number:
        group = _find_group(block, name, number)
        return (*_to_arrays(list(group.operations())), [])
    told = "no symmetry is stated: its sites are taken for all atoms of the cell"
    return np.eye(3)[None], np.zeros((1, 3)), [told]


def _first(block: Any, tags: tuple[str, ...]) -> str:
    from gemmi import cif

    for tag in tags:
        value = block.find_value(tag)
        if value is not None and (text := cif.as_string(value).strip()) and text not in "?.":
            return text
    return ""


def _find_group(block: Any, name: str, number: str) -> Any:
    """Return the space group of a name or a number.

    Raises
    ------
    UnusableError
        if it is unknown, or several settings have that name or number and the block does not say which.
    """
    import gemmi

    alpha, gamma = (float(gemmi.cif.as_number(block.find_value(f"_cell_angle_{name}"))) for name in ("alpha", "gamma"))
    said, code = name or number, _first(block, SETTING)
    group: Any
    if name:
        group = gemmi.find_spacegroup_by_name(name.replace("_", ""), alpha, gamma)  # P2_1/c, as pymatgen writes
        stated = any(mark in name for mark in (":", " S", " Z")) or name.rstrip().endswith(("S", "Z", "H", "R"))
    else:
        group, stated = gemmi.find_spacegroup_by_number(int(number)) if number.isdigit() else None, False
        if group is not None and group.hm.startswith("R"):
            group = gemmi.find_spacegroup_by_name(group.hm, alpha, gamma)
    if group is None:
        raise UnusableError("an unknown space group", said)
    if code:
        alike = [
            one for one in gemmi.spacegroup_table() if one.number == group.number and code in (one.ext, one.qualifier)
        ]
        return alike[0] if len(alike) == 1 else group
    if group.ext in ("1", "2") and not stated:
        raise UnusableError("a space group with two origins", f"{said}: operators or the choice of origin are missing")
    return group


def _to_arrays(operators: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rotations = np.array([operator.rot for operator in operators], np.float64) / operators[0].DEN
    shifts = np.array([operator.tran for operator in operators], np.float64) / operators[0].DEN
    return rotations, shifts


def expand_sites(
    places: NDArray[np.float64], rotations: NDArray[np.float64], shifts: NDArray[np.float64], cell: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return fractional coordinates of all atoms `[N,3]`, and the site `[N]` that each is an image of, in that order.

    With the identity alone the coordinates stay as they are; images lie within the cell.

    Raises
    ------
    UnusableError
        if there are more than `ATOMS`.
    """
    count, order = len(places), len(rotations)
    if order == 1 and np.array_equal(rotations[0], np.eye(3)) and not np.mod(shifts[0], 1).any():
        return places, np.arange(count)
    if count * order > ATOMS:
        raise UnusableError("too many atoms", f"{count:,} sites under {order} operators")
    images = np.einsum("kij,nj->nki", rotations, places) + shifts  # [n,k,3]
    images = images - np.floor(images)
    images[images > 1 - 1e-9] = 0.0
    first = np.zeros((count, order), bool)
    for n in range(count):
        left = np.ones(order, bool)
        while left.any():  # an image that meets one before it is the same atom
            k = int(np.argmax(left))
            first[n, k] = True
            apart = images[n] - images[n, k]
            apart = (apart - np.round(apart)) @ cell
            left &= (apart * apart).sum(axis=1) >= MEETING**2
            left[k] = False
    owner = np.repeat(np.arange(count), order).reshape(count, order)
    return images[first], owner[first]
