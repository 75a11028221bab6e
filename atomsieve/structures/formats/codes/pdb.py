"""PDB files that state their elements, read by ASE; topologies of trajectories above all."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.lammps import element_of_symbol
from atomsieve.structures.formats.codes.steps import StepText, open_lines, parse_step, refuse
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import Units

if TYPE_CHECKING:
    from ase import Atoms

UNITS = Units(length="angstrom", origin="format pdb")
ATOM = ("ATOM  ", "HETATM")


def read_pdb(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the models. A cell of unit length is what such files state where there is none.

    Raises
    ------
    DataError
        if there are no atoms in the file.
    """
    text, head, model = StepText(request, "PDB"), list[str](), 0
    with open_lines(request) as lines:
        for line in lines:
            if line.startswith("CRYST1"):
                head = [line]
            elif line.startswith((*ATOM, "ANISOU")):
                text.add(line)
            elif line.startswith("ENDMDL") and text.lines:
                model += 1
                yield _read_model(head, text.take(), f"{request.path}: model {model}")
    if text.lines:
        yield _read_model(head, text.take(), f"{request.path}: model {model + 1}")
    elif not model:
        raise refuse(request, "PDB")


def _read_model(head: list[str], rows: list[str], where: str) -> Item | BadItem:
    atoms = [row for row in rows if row.startswith(ATOM)]
    symbols = [row[76:78].strip().capitalize() for row in atoms]
    numbers = np.array([element_of_symbol(symbol) for symbol in symbols], np.int64)
    if (numbers == 0).any():
        k = int(np.argmin(numbers))
        return BadItem("an atom without an element (columns 77-78)", where, atoms[k].rstrip()[:30])
    if any(row[16:17].strip() for row in atoms):
        return BadItem("atoms with alternate locations", where)
    item = parse_step(partial(_parse, "".join([*head, *atoms])), where, UNITS)
    if isinstance(item, Item):
        item.numbers, item.arrays, item.info = numbers, {}, {}
        if np.allclose(np.abs(np.linalg.det(item.cell)), 1.0):
            item.cell, item.pbc = np.zeros((3, 3)), np.zeros(3, bool)
    return item


def _parse(text: str) -> Atoms:
    from ase.io.proteindatabank import read_proteindatabank

    return read_proteindatabank(io.StringIO(text + "END\n"), index=0, read_arrays=False)


ROW = Format(
    name="pdb",
    about="Protein Data Bank",
    endings=(".pdb",),
    read=read_pdb,
    lacks="labels; digits beyond 0.001 Angstrom",
    compressed=True,
)
