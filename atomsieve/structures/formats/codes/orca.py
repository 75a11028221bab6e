"""Output of ORCA: every step of a geometry optimisation, each parsed by ASE; molecules, without a cell."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import (
    ENDS_WITHIN,
    StepText,
    judge,
    open_lines,
    parse_step,
    refuse,
    units_by_ase,
)
from atomsieve.structures.item import BadItem, Item, ReadRequest

if TYPE_CHECKING:
    from ase import Atoms

UNITS = units_by_ase("orca")
ENERGY = "FINAL SINGLE POINT ENERGY"
STEP_ENDS = ("ORCA GEOMETRY RELAXATION STEP", "ORCA TERMINATED NORMALLY")
NOT_CONVERGED = ("SCF NOT CONVERGED", "not fully converged")


def read_orca(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the steps; forces where the output prints the gradient.

    Raises
    ------
    DataError
        if there is no output of ORCA in the file.
    """
    text, step, whole = StepText(request, "ORCA"), 0, True
    stated: dict[str, float] = {}
    with open_lines(request) as lines:
        begun = False
        for line in lines:
            begun = begun or "O   R   C   A" in line or "CARTESIAN COORDINATES (ANGSTROEM)" in line
            if match := re.match(r"\s*(Total Charge|Multiplicity)\s+(?:Charge|Mult)\s+\.+\s+(-?\d+)", line):
                stated["charge" if match[1] == "Total Charge" else "spin"] = float(match[2])
            text.add(line)
            whole = whole and "CARTESIAN COORDINATES (ANGSTROEM)" not in line
            if any(word in line for word in STEP_ENDS):
                body, whole = text.take(), True
                if any(ENERGY in one for one in body):
                    body[-1] = f"{STEP_ENDS[-1]}\n"  # which ASE needs
                    step += 1
                    yield _read_step(body, stated, step, request)
    if not begun:
        raise refuse(request, "ORCA")
    if not whole or step == 0:
        yield BadItem(ENDS_WITHIN, f"{request.path}: step {step + 1}")


def _read_step(body: list[str], stated: dict[str, float], step: int, request: ReadRequest) -> Item | BadItem:
    where = f"{request.path}: step {step}"
    failed = [line for line in body if any(word in line for word in NOT_CONVERGED)]
    # ASE gives no number where ORCA adds a remark to the energy; the remark is kept in `failed`.
    plain = [re.sub(rf"({ENERGY}\s+-?[\d.]+).*", r"\1", line) if ENERGY in line else line for line in body]
    item = parse_step(partial(_parse, "".join(plain)), where, UNITS)
    if isinstance(item, BadItem):
        return item
    item.labels.pop("free_energy", None)  # of the same value
    item.info = dict(stated)
    return judge(item, not failed, request, failed[0].strip() if failed else "")


def _parse(text: str) -> Atoms:
    from ase.io.orca import read_orca_output

    return read_orca_output(io.StringIO(text), index=slice(None))[0]


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of an output of ORCA."""
    return b"* O   R   C   A *" in head


ROW = Format(
    name="orca",
    about="output of ORCA, every step of an optimisation",
    endings=(),
    read=read_orca,
    lacks="stress",
    compressed=True,
    looks_like=looks_like,
)
