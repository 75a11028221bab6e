"""POSCAR and CONTCAR of VASP, plain or gzip; read only."""

from __future__ import annotations

from collections.abc import Iterator

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.small_text import parse_text
from atomsieve.structures.item import BadItem, Item, ReadRequest, item_from_atoms


def read_poscar(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the one structure of a POSCAR file."""
    path, tick = request.path, request.tick
    from ase.io.vasp import read_vasp

    for atoms in parse_text(path, lambda file: [read_vasp(file)]):
        yield atoms if isinstance(atoms, BadItem) else item_from_atoms(atoms, str(path))
    tick(1.0)


ROW = Format(
    name="poscar",
    about="VASP POSCAR, CONTCAR",
    endings=(".vasp", ".poscar"),
    read=read_poscar,
    lacks="labels",
    beginnings=("POSCAR", "CONTCAR"),
    compressed=True,
)
