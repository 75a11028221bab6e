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
    """What the output has said so far; `cut_off` and `wrong` tell why the step cannot be used."""

    cell: dict[str, list[float]] = field(default_factory=dict)
    pbc: str = ""
    charge: float | None = None
    spin: float | None = None
    numbers: list[int] = field(default_factory=list)
    positions: list[list[float]] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    converged: bool = True
    cut_off: str = ""
    wrong: str = ""


def read_cp2k_output(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the first step; later ones, whose positions are not printed, are bad.

    Raises
    ------
    DataError
        if the file is no output of CP2K.
    """
    run, step = _Run(), 0
    with open_lines(request) as lines:
        for line in lines:
            if "ENERGY| Total FORCE_EVAL" in line and run.labels:
                step += 1
                yield _build(run, step, request)
            try:
                _take(run, line, lines)
            except (ValueError, IndexError) as error:
                run.wrong = f"{line.strip()[:40]}: {error}"
    if not run.positions and not run.labels:
        raise refuse(request, "CP2K")
    if run.labels:
        yield _build(run, step + 1, request)
    elif step == 0:
        yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step 1")


def _take(run: _Run, line: str, lines: Iterator[str]) -> None:
    """Take what a line, and the rows of a table that follow it, say."""
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
        run.labels = {"energy": float(line.split()[-1])}
    elif "ATOMIC FORCES in" in line or line.startswith(" FORCES| Atomic forces"):
        run.cut_off = _read_forces(lines, run) or run.cut_off
    elif "STRESS| Analytical stress tensor" in line or "STRESS TENSOR [GPa]" in line:
        run.cut_off = _read_stress(lines, line, run) or run.cut_off


def _build(run: _Run, step: int, request: ReadRequest) -> Item | BadItem:
    """Return a step, and forget what holds for it alone."""
    where = f"{request.path}: ionic step {step}"
    labels, converged, cut_off, wrong = run.labels, run.converged, run.cut_off, run.wrong
    run.labels, run.converged, run.cut_off, run.wrong = {}, True, "", ""
    if wrong:
        return BadItem("not readable", where, wrong)
    if cut_off:
        return BadItem(ENDS_WITHIN, where, cut_off)
    if step > 1:
        return BadItem(LATER, where)
    if not run.positions:
        return BadItem("the coordinates are not printed", where)
    if any(len(row) != 3 for row in (*run.cell.values(), *run.positions)):
        return BadItem("not readable", where, "a cell or a position without three numbers")
    pbc = np.array([axis in run.pbc.upper() for axis in "XYZ"])
    cell = np.array([run.cell.get(axis, [0.0] * 3) for axis in "abc"], np.float64)
    info = {name: value for name, value in (("charge", run.charge), ("spin", run.spin)) if value is not None}
    item = Item(np.array(run.numbers), np.array(run.positions), cell, pbc, where, info, labels, units=UNITS)
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
