"""ML_AB and ML_ABN of VASP: the structures with which it trained a force field, one at a time.

Each configuration is a run of sections: a line of `=` or `*`, the title, a line of `-`, and the values. Energies are in
eV, forces in eV/Angstrom; the stress is in kbar with the sign of OUTCAR, in two rows: XX YY ZZ and XY YZ ZX.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import ENDS_WITHIN, StepText, open_lines, refuse
from atomsieve.structures.formats.codes.vasp_names import numbers_of
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import Units

UNITS = Units("ev", "angstrom", "ev/angstrom", "kbar", None, -1, "format ml_ab")
BEGINS = "Configuration num."
VOIGT = (0, 1, 2, 4, 5, 3)
"""From XX YY ZZ XY YZ ZX to xx, yy, zz, yz, xz, xy."""


def read_ml_ab(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the configurations with their energy, forces and stress.

    Raises
    ------
    DataError
        if there is no configuration in the file.
    """
    text, expected, count, title = StepText(request, "ML_AB"), 0, 0, ""
    usual = set[str]()
    with open_lines(request) as lines:
        for line in lines:
            if BEGINS in line:
                if count:
                    item = _read_configuration(text.take(), f"{request.path}: configuration {count}", last=False)
                    usual = set(item.labels) if isinstance(item, Item) else usual
                    yield item
                text.take()
                count += 1
            elif count:
                text.add(line)
            elif "number of configurations" in line:
                title = line
            elif title and line.strip().isdigit():
                expected, title = int(line), ""
    if not count:
        raise refuse(request, "ML_AB")
    item = _read_configuration(text.take(), f"{request.path}: configuration {count}", last=True)
    lacking = usual - set(item.labels) if isinstance(item, Item) else set()
    yield BadItem(ENDS_WITHIN, item.where, f"no {min(lacking)}") if lacking else item
    if count < expected:
        yield BadItem(ENDS_WITHIN, f"{request.path}: configuration {count + 1}", f"it announces {expected}")


def _read_configuration(lines: list[str], where: str, *, last: bool) -> Item | BadItem:
    found = _split_sections(lines)
    try:
        kinds = [row.split() for row in found["atom types and atom numbers"]]
        counts = [int(row[1]) for row in kinds]
        cell = _numbers(found["primitive lattice vectors"], 3)
        positions = _numbers(found["atomic positions"], sum(counts))
        labels: dict[str, Any] = {}
        if rows := found.get("total energy"):
            labels["energy"] = float(rows[0])
        if rows := found.get("forces"):
            labels["forces"] = _numbers(rows, sum(counts))
        if rows := [row for row in found.get("stress", []) if not row.startswith(("X", "x"))]:
            labels["stress"] = _numbers(rows, 2).reshape(6)[list(VOIGT)]
        numbers = np.repeat(numbers_of(row[0] for row in kinds), counts)
    except KeyError as error:
        return BadItem(ENDS_WITHIN if last else "a section is missing", where, f"no {error.args[0]}")
    except (ValueError, IndexError) as error:
        return BadItem(ENDS_WITHIN if last else "not readable", where, str(error))
    return Item(numbers, positions, cell, np.array([True] * 3), where, labels=labels, units=UNITS)


def _numbers(rows: list[str], count: int) -> NDArray[np.float64]:
    values = np.array([row.split()[:3] for row in rows], np.float64).reshape(-1, 3)
    if len(values) != count:
        raise ValueError(f"{len(values)} rows where {count} were expected")
    return values


def _split_sections(lines: list[str]) -> dict[str, list[str]]:
    """Return the rows of each section by its title in lower case, without the unit in brackets."""
    found: dict[str, list[str]] = {}
    rows: list[str] = []
    titled = False
    for line in lines:
        text = line.strip()
        if text.startswith(("====", "****")):
            titled = True
        elif text.startswith("----"):
            continue
        elif titled:
            rows = found.setdefault(text.partition("(")[0].strip().lower(), [])
            titled = False
        elif text:
            rows.append(text)
    return found


ROW = Format(
    name="ml_ab",
    about="ML_AB, ML_ABN of VASP: training set of its force field",
    endings=(),
    beginnings=("ML_AB",),
    read=read_ml_ab,
    compressed=True,
)
