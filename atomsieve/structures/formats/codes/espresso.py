"""Output of pw.x of Quantum ESPRESSO: every ionic step, each parsed by ASE.

The text of each step is given to ASE behind the lines that tell cell, species and positions at the start, so that a
long run is never held whole. The energy is that of the last line that begins with `!`, in rydberg: the free energy, of
which the forces are derivatives.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import (
    ENDS_WITHIN,
    UNCONVERGED,
    StepText,
    charge_of,
    judge,
    open_lines,
    parse_step,
    refuse,
    units_by_ase,
)
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import energy_factor

if TYPE_CHECKING:
    from ase import Atoms

UNITS = units_by_ase("espresso")
PROGRAM, POSITIONS, CELL = "Program PWSCF", "ATOMIC_POSITIONS", "CELL_PARAMETERS"
CELL_LINES = 5
"""Lines from the first of a cell to the one before the positions of its step."""
HEAD_ENDS = "number of k points="
BANDS = (HEAD_ENDS, "End of self-consistent calculation", "End of band structure calculation")
"""Lines from which on ASE would read k-points and bands."""


class _Run:
    """A run of pw.x: the lines that describe its start, the charge they tell, and the labels that its steps have."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.open = True
        self.charge: float | None = None
        self.usual: set[str] = set()


def read_espresso(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the ionic steps; those of several runs in one file follow each other.

    Raises
    ------
    DataError
        if there is no run of pw.x in the file.
    """
    run: _Run | None = None
    text, step = StepText(request, "pw.x"), 0
    with open_lines(request) as lines:
        for line in lines:
            cell: list[str] = []
            if PROGRAM in line or line.startswith(POSITIONS):
                body = text.take()
                if line.startswith(POSITIONS) and len(body) >= CELL_LINES and body[-CELL_LINES].startswith(CELL):
                    body, cell = body[:-CELL_LINES], body[-CELL_LINES:]
                if run is not None and (item := _read_step(run, body, step + 1, request, last=False)) is not None:
                    step += 1
                    yield item
                if PROGRAM in line:
                    run = _Run()
            if run is not None and run.open:
                if HEAD_ENDS in line:
                    run.open = False
                    run.charge = _read_charge(run.head)
                else:
                    run.head.append(line)
            for one in (*cell, line):
                text.add(one)
    if run is None:
        raise refuse(request, "pw.x")
    item = _read_step(run, text.take(), step + 1, request, last=True)
    if item is not None:
        yield item
    elif step == 0:
        yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step 1")


def _read_step(run: _Run, body: list[str], step: int, request: ReadRequest, *, last: bool) -> Item | BadItem | None:
    """Return the step of which these are the lines; None where they repeat a structure without calculating it."""
    where = f"{request.path}: ionic step {step}"
    energies = [line for line in body if line.startswith("!") and "total energy" in line]
    done = any("JOB DONE" in line for line in body)
    if not energies:
        begun = any("iteration #" in line for line in body)
        failed = any("convergence NOT achieved" in line for line in body)
        if failed:
            return BadItem(UNCONVERGED, where, "no energy is printed")
        return BadItem(ENDS_WITHIN, where) if begun and not done else None
    first = any(PROGRAM in line for line in body)
    kept = [line for line in body if not any(word in line for word in BANDS)]
    item = parse_step(partial(_parse, "".join(kept if first else [*run.head, *kept])), where, UNITS)
    if isinstance(item, BadItem):
        return BadItem(ENDS_WITHIN, where, item.detail) if last and not done else item
    item.labels.pop("free_energy", None)  # of the same value
    item.labels["energy"] = float(energies[-1].split("=")[1].split()[0]) * energy_factor("rydberg")
    lacking = run.usual - set(item.labels)
    if last and not done and lacking:
        return BadItem(ENDS_WITHIN, where, f"no {min(lacking)}")
    run.usual = set(item.labels)
    if run.charge is not None:
        item.info["charge"] = run.charge
    return judge(item, not any("convergence NOT achieved" in line for line in body), request)


def _parse(text: str) -> Atoms:
    from ase.io.espresso import read_espresso_out

    *_, atoms = read_espresso_out(io.StringIO(text), index=slice(None), results_required=True)
    return atoms


def _read_charge(head: list[str]) -> float | None:
    """Return the total charge: valence electrons of the species, less the electrons of the run."""
    electrons, valences, labels = None, dict[str, float](), list[str]()
    table = False
    for line in head:
        words = line.split()
        if match := re.search(r"number of electrons\s*=\s*([\d.]+)", line):
            electrons = float(match[1])
        elif "atomic species" in line and "valence" in line:
            table = True
        elif table and len(words) >= 3:
            valences[words[0]] = float(words[1])
        elif table:
            table = False
        elif match := re.match(r"\s*\d+\s+(\S+)\s+tau\(\s*\d+\)", line):
            labels.append(match[1])
    if electrons is None or not labels or not set(labels) <= set(valences):
        return None
    return charge_of([valences[label] for label in labels], [1] * len(labels), electrons)


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of an output of pw.x."""
    return PROGRAM.encode() in head


ROW = Format(
    name="espresso",
    about="output of pw.x of Quantum ESPRESSO, every ionic step",
    endings=(".pwo",),
    read=read_espresso,
    compressed=True,
    looks_like=looks_like,
)
