"""Data files of LAMMPS, parsed by ASE."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from atomsieve.errors import DataError
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.lammps import (
    ask_for_elements,
    element_of_mass,
    element_of_symbol,
    units_of_style,
)
from atomsieve.structures.formats.codes.steps import parse_step
from atomsieve.structures.item import BadItem, Item, ReadRequest, open_with_progress

if TYPE_CHECKING:
    from ase import Atoms


def read_lammps_data(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the one structure of a data file, unwrapped by its image flags and periodic in all directions.

    Raises
    ------
    DataError
        if the file is no data file, or neither it nor the user names the elements of its types.
    """
    with open_with_progress(request.path) as (file, _):
        text = file.read().decode("latin-1")
    match = re.search(r"^\s*(\d+)\s+atom types\b", text, re.MULTILINE)
    if match is None or not re.search(r"^\s*\d+\s+atoms\b", text, re.MULTILINE):
        raise DataError(f"{request.path} is no data file of LAMMPS: it does not count its atoms and atom types")
    first = text.partition("\n")[0]
    stated = re.search(r"\bunits = (\w+)", first)
    units = units_of_style(stated[1] if stated else None, request.path)
    elements = _find_elements(text, int(match[1]), stated[1] if stated else None, request)

    def parse() -> Atoms:
        from ase.io.lammpsdata import read_lammps_data as read

        return read(io.StringIO(text), Z_of_type=elements, units="metal")  # lengths stay as they are

    item = parse_step(parse, str(request.path), units)
    if isinstance(item, Item):
        item.note = "data files of LAMMPS state no boundaries: taken as periodic along all three vectors"
        item.arrays = {"charges": item.arrays["mmcharges"]} if "mmcharges" in item.arrays else {}
    yield item
    request.tick(1.0)


def _find_elements(text: str, count: int, style: str | None, request: ReadRequest) -> dict[int, int]:
    """Return the atomic number of each type: as the user names them, by labels, comments or masses that are certain."""
    if request.elements:
        if len(request.elements) < count:
            raise DataError(f"{request.path} has {count} types, but --elements names {len(request.elements)}")
        return {k: element_of_symbol(symbol) for k, symbol in enumerate(request.elements, 1)}
    labels = {int(k): element_of_symbol(name) for k, name in _section(text, "Atom Type Labels", r"(\d+)\s+(\S+)")}
    if len(labels) == count and all(labels.values()):
        return labels
    found = {}
    for k, mass, comment in _section(text, "Masses", r"(\d+)\s+(\S+)[ \t]*(?:#[ \t]*(\S+))?"):
        by_mass = element_of_mass(float(mass)) if style in ("metal", "real", "electron", None) else 0
        named = element_of_symbol(comment)
        if named and by_mass and named != by_mass:
            raise ask_for_elements(request.path, f"type {k} has the mass {mass}, but the comment {comment!r}")
        found[int(k)] = named or by_mass
    unknown = [k for k in range(1, count + 1) if not found.get(k)]
    if unknown:
        raise ask_for_elements(request.path, f"no mass or label says surely which element type {unknown[0]} is")
    return found


def _section(text: str, title: str, row: str) -> list[tuple[str, ...]]:
    """Return the rows of a section, up to the first line that is none."""
    match = re.search(rf"^\s*{title}[ \t]*(?:#.*)?\n\s*\n((?:[ \t]*{row}.*\n)+)", text, re.MULTILINE)
    return re.findall(rf"^[ \t]*{row}", match[1], re.MULTILINE) if match else []


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of a data file."""
    return (
        re.search(rb"^\s*\d+\s+atoms\s*$", head[:2000], re.MULTILINE) is not None
        and re.search(rb"^\s*\d+\s+atom types", head[:4000], re.MULTILINE) is not None
    )


ROW = Format(
    name="lammps-data",
    about="data file of LAMMPS",
    endings=(".lmp", ".lammpsdata"),
    read=read_lammps_data,
    lacks="labels; boundaries: periodic in all directions",
    compressed=True,
    looks_like=looks_like,
)
