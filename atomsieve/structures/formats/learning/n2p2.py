"""Data sets of n2p2 and RuNNer (`input.data`); read only.

The format fixes no units: data sets in Hartree and bohr are as common as those in eV and Angstrom, so they are stated
by the user.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.learning.text_frames import CutOff, iterate_frames
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import Units

UNITS = Units(origin="format n2p2", needed=(("energy", "hartree or eV"), ("length", "bohr or angstrom")))
COLUMNS = 9


def read_n2p2(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the structures of a file; one that cannot be read is `BadItem` with its line."""
    count = 0
    for line, text in iterate_frames(request, "begin", "end"):
        where = f"{request.path}: line {line}"
        count += 1
        if isinstance(text, CutOff):
            yield BadItem("a structure without end", where, str(text))
            continue
        try:
            yield _read_frame(text, where)
        except ValueError as error:
            yield BadItem("a structure that cannot be read", where, str(error))
    if not count:
        yield BadItem("no data set of n2p2: it has no line 'begin'", str(request.path))


def _read_frame(lines: list[str], where: str) -> Item:
    """Return the structure of the lines between begin and end.

    Raises
    ------
    ValueError
        naming what does not fit.
    """
    from ase.data import atomic_numbers

    lattice: list[list[float]] = []
    symbols: list[str] = []
    rows: list[list[float]] = []
    info: dict[str, Any] = {}
    for line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key, rest = words[0], words[1:]
        if key == "atom":
            if len(rest) != COLUMNS:
                raise ValueError(f"an atom with {len(rest)} words, {COLUMNS} were expected: x y z symbol q e fx fy fz")
            if atomic_numbers.get(rest[3], 0) < 1:
                raise ValueError(f"{rest[3]!r} is no element")
            symbols.append(rest[3])
            rows.append([float(word) for word in (*rest[:3], *rest[4:])])
        elif key == "lattice":
            if len(rest) != 3:
                raise ValueError(f"a lattice vector of {len(rest)} numbers")
            lattice.append([float(word) for word in rest])
        elif key in ("energy", "charge"):
            if len(rest) != 1 or key in info:
                raise ValueError(f"{key} {' '.join(rest)!r} of a structure" + (", given twice" if key in info else ""))
            info[key] = float(rest[0])
        elif key == "comment":
            info["comment"] = "\n".join(filter(None, (info.get("comment", ""), line.strip()[len(key) :].strip())))
        else:
            raise ValueError(f"a line {key!r}; atom, lattice, energy, charge, comment were expected")
    if len(lattice) not in (0, 3):
        raise ValueError(f"{len(lattice)} lattice vectors; three or none were expected")
    table = np.array(rows, np.float64).reshape(-1, COLUMNS - 1)
    return Item(
        numbers=np.array([atomic_numbers[symbol] for symbol in symbols], np.int64),
        positions=table[:, :3],
        cell=np.array(lattice).reshape(3, 3) if lattice else np.zeros((3, 3)),
        pbc=np.full(3, bool(lattice)),
        where=where,
        info=info,
        arrays={"charges": table[:, 3], "energies": table[:, 4], "forces": table[:, 5:]},
        units=UNITS,
    )


ROW = Format(
    name="n2p2",
    about="data sets of n2p2 and RuNNer; --unit states their units",
    endings=(),
    read=read_n2p2,
    patterns=("input.data",),
    compressed=True,
)
