"""OUTCAR of VASP: every ionic step, one at a time, each parsed by ASE."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import (
    ENDS_WITHIN,
    StepText,
    charge_of,
    judge,
    open_lines,
    parse_step,
    refuse,
    units_by_ase,
)
from atomsieve.structures.item import BadItem, Item, ReadRequest

if TYPE_CHECKING:
    from ase.io.vasp_parsers.vasp_outcar_parsers import OutcarChunkParser

UNITS = units_by_ase("outcar")
STEP_ENDS = "FREE ENERGIE OF THE ION-ELECTRON SYSTEM"
LINES_OF_ENERGY = 4
"""Lines after `STEP_ENDS` that hold the energies."""
CONVERGED = "aborting loop because EDIFF is reached"


def read_outcar(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the ionic steps: the energy extrapolated to zero smearing, and the free energy that forces derive from.

    Raises
    ------
    DataError
        if there is no ionic step in the file.
    """
    parser: OutcarChunkParser | None = None
    charge, step = None, 0
    text, left = StepText(request, "OUTCAR"), -1
    with open_lines(request) as lines:
        for line in lines:
            text.add(line)
            if parser is None and "Iteration" in line:
                head = text.take()
                parser = _open_parser(head, request)
                charge = _read_charge(head)
            elif parser is not None and STEP_ENDS in line:
                left = LINES_OF_ENERGY
            elif left > 0:
                left -= 1
            if left == 0 and parser is not None:
                left, step = -1, step + 1
                body = text.take()
                item = parse_step(partial(parser.build, body), f"{request.path}: ionic step {step}", UNITS)
                if isinstance(item, Item) and charge is not None:
                    item.info["charge"] = charge
                yield judge(item, any(CONVERGED in line for line in body), request)
    if parser is None:
        raise refuse(request, "OUTCAR")
    if left > 0 or any("Iteration" in line for line in text.lines) or step == 0:
        yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step {step + 1}")


def _open_parser(head: list[str], request: ReadRequest) -> OutcarChunkParser:
    """Return ASE's parser of a step, with what the lines before the first one say, without bands."""
    from ase.io.vasp_parsers import vasp_outcar_parsers as ase

    try:
        header = ase.OutcarHeaderParser([ase.SpeciesTypes(), ase.IonsPerSpecies(), ase.Spinpol()]).build(head)
    except Exception as error:
        raise refuse(request, f"OUTCAR ({error})") from error
    wanted = (ase.Cell, ase.PositionsAndForces, ase.Stress, ase.Magmoms, ase.Magmom, ase.Energy)
    return ase.OutcarChunkParser(header, [one() for one in wanted])


def _read_charge(head: list[str]) -> float | None:
    """Return the total charge from the electrons of the calculation and those of its neutral atoms."""
    electrons = counts = valences = None
    for line in head:
        if match := re.match(r"\s*NELECT\s*=\s*([-+.\dE]+)", line):
            electrons = float(match[1])
        elif "ions per type =" in line:
            counts = [int(word) for word in line.split("=")[1].split()]
        elif re.match(r"\s*ZVAL\s*=(\s*\d+\.\d+)+\s*$", line):
            valences = [float(word) for word in re.findall(r"\d+\.\d\d", line)]
    if electrons is None or counts is None or valences is None or len(counts) != len(valences):
        return None
    return charge_of(valences, counts, electrons)


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of an OUTCAR."""
    return head.lstrip().startswith(b"vasp.") and b"POTCAR:" in head


ROW = Format(
    name="outcar",
    about="OUTCAR of VASP, every ionic step",
    endings=(".outcar",),
    beginnings=("OUTCAR",),
    read=read_outcar,
    compressed=True,
    looks_like=looks_like,
    covers=("xdatcar", "poscar"),
)
