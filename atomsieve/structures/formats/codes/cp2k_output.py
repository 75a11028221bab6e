"""Output of CP2K: the structure whose coordinates it prints, with its energy, forces and stress.

An output prints the coordinates of the first step alone; those of later steps are in `NAME-pos-1.xyz`. The cell is
printed to 0.001 Angstrom.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import ENDS_WITHIN, judge, open_lines, refuse
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import Units

UNITS = Units("hartree", "angstrom", "hartree/bohr", "gpa", None, -1, "format cp2k")
LATER = "CP2K does not print the positions of this step: convert NAME-pos-1.xyz"
NUMBER = r"[-+]?\d+\.\d+(?:[ED][-+]?\d+)?"


@dataclass
class _Run:
    """What the output has said so far."""

    cell: dict[str, list[float]] = field(default_factory=dict)
    pbc: str = ""
    charge: float | None = None
    spin: float | None = None
    numbers: list[int] = field(default_factory=list)
    positions: list[list[float]] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    converged: bool = True


def read_cp2k_output(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the first step; later ones, whose positions are not printed, are bad.

    Raises
    ------
    DataError
        if the file is no output of CP2K.
    """
    run, step, pending, failed = _Run(), 0, False, ""
    with open_lines(request) as lines:
        for line in lines:
            if line.startswith(" CELL| Vector "):
                run.cell[line.split()[2]] = [float(word) for word in re.findall(NUMBER, line)[:3]]
            elif line.startswith((" CELL| Periodicity", " POISSON| Periodicity")):
                run.pbc = run.pbc or line.split()[-1]
            elif line.startswith(" DFT| Charge"):
                run.charge = float(line.split()[-1])
            elif line.startswith(" DFT| Multiplicity"):
                run.spin = float(line.split()[-1])
            elif "ATOMIC COORDINATES IN" in line.upper() and not run.positions:
                _read_coordinates(lines, run, bohr="ANGSTROM" not in line.upper())
            elif "SCF run NOT converged" in line:
                run.converged = False
            elif "ENERGY| Total FORCE_EVAL" in line:
                if pending:
                    step += 1
                    yield _build(run, step, request, failed)
                    failed = ""
                run.labels, pending = {"energy": float(line.split()[-1])}, True
            elif "ATOMIC FORCES in" in line or line.startswith(" FORCES| Atomic forces"):
                failed = _read_forces(lines, run) or failed
            elif "STRESS| Analytical stress tensor" in line or "STRESS TENSOR [GPa]" in line:
                failed = _read_stress(lines, line, run) or failed
    if not run.positions and not pending:
        raise refuse(request, "CP2K")
    if pending:
        yield _build(run, step + 1, request, failed)
    elif step == 0:
        yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step 1")


def _build(run: _Run, step: int, request: ReadRequest, failed: str) -> Item | BadItem:
    where = f"{request.path}: ionic step {step}"
    converged, run.converged = run.converged, True
    if failed:
        return BadItem(ENDS_WITHIN, where, failed)
    if step > 1:
        return BadItem(LATER, where)
    if not run.positions:
        return BadItem("the coordinates are not printed", where)
    pbc = np.array([axis in run.pbc.upper() for axis in "XYZ"])
    cell = np.array([run.cell.get(axis, [0.0] * 3) for axis in "abc"], np.float64)
    info = {name: value for name, value in (("charge", run.charge), ("spin", run.spin)) if value is not None}
    item = Item(np.array(run.numbers), np.array(run.positions), cell, pbc, where, info, run.labels, units=UNITS)
    return judge(item, converged, request)


def _read_coordinates(lines: Iterator[str], run: _Run, *, bohr: bool) -> None:
    """Read rows `atom kind symbol number x y z ...`, which end with an empty line after the first of them."""
    if bohr:
        return  # printed so on request only
    for line in lines:
        words = line.split()
        if len(words) >= 7 and words[0].isdigit():
            run.numbers.append(int(words[3]))
            run.positions.append([float(word) for word in words[4:7]])
        elif run.positions:
            return


def _read_forces(lines: Iterator[str], run: _Run) -> str:
    """Read rows of either layout: `FORCES| atom x y z norm` or `atom kind symbol x y z`; return what is wrong."""
    rows: list[list[float]] = []
    for line in lines:
        words = line.replace("FORCES|", "").split()
        if words and words[0].isdigit():
            numbers = words[1:4] if "FORCES|" in line else words[-3:]
            rows.append([float(word) for word in numbers])
        elif rows or (words and words[0] in ("Sum", "SUM")):
            break
    if len(rows) != len(run.positions):
        return f"{len(rows)} forces of {len(run.positions)} atoms"
    run.labels["forces"] = np.array(rows)
    return ""


def _read_stress(lines: Iterator[str], title: str, run: _Run) -> str:
    """Read three rows that begin with the name of an axis; return what is wrong."""
    if "GPa" not in title:
        return ""
    rows = []
    for line in lines:
        words = line.replace("STRESS|", "").split()
        if words and words[0].lower() in ("x", "y", "z") and len(words) == 4 and re.search(NUMBER, line):
            rows.append([float(word) for word in words[1:]])
        if len(rows) == 3:
            run.labels["stress"] = np.array(rows)
            return ""
    return "the stress is cut off"


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of an output of CP2K."""
    return b"CP2K| version string" in head


ROW = Format(
    name="cp2k",
    about="output of CP2K: its first step",
    endings=(),
    read=read_cp2k_output,
    lacks="steps after the first; digits of the cell beyond 0.001 Angstrom",
    compressed=True,
    looks_like=looks_like,
)
