"""Output of FHI-aims: every ionic step, each parsed by ASE. The energy is the electronic free energy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import (
    ENDS_WITHIN,
    judge,
    open_lines,
    parse_step,
    refuse,
    units_by_ase,
)
from atomsieve.structures.item import BadItem, Item, ReadRequest

if TYPE_CHECKING:
    from ase import Atoms

UNITS = units_by_ase("aims")
CONVERGED = "Self-consistency cycle converged"
CORRECTED = "| Total energy corrected"
ENDED = "Have a nice day."


def read_aims(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the ionic steps; molecules have no cell.

    Raises
    ------
    DataError
        if there is no self-consistency cycle in the file.
    """
    from ase.io import aims as ase

    with open_lines(request) as lines, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this reader will move out of ASE
        try:
            header = ase.get_header_chunk(lines)
            header.header_summary  # noqa: B018  # parsed when it is asked for
        except Exception as error:  # a parser of free text fails in every way there is
            raise refuse(request, f"FHI-aims ({error})") from error
        charge = _read_charge(header.lines)
        step, usual = 0, set[str]()
        held: tuple[Any, int] | None = None
        for chunk in ase.get_aims_out_chunks(lines, header):
            if held is not None:
                item = _read_step(held[0], held[1], charge, request, usual=None)
                usual = set(item.labels) if isinstance(item, Item) else usual
                yield item
            held = None
            if _has_energy(chunk):
                step += 1
                held = chunk, step
            elif not any(ENDED in line for line in chunk.lines):
                yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step {step + 1}")
        if held is not None:
            yield _read_step(held[0], held[1], charge, request, usual)
        elif step == 0:
            yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step 1")


def _has_energy(chunk: Any) -> bool:
    return any("| Electronic free energy" in line for line in chunk.lines)


def _read_step(
    chunk: Any, step: int, charge: float | None, request: ReadRequest, usual: set[str] | None
) -> Item | BadItem:
    """Return a step; `usual` are the labels of the others where it is the last."""
    where = f"{request.path}: ionic step {step}"

    def parse() -> Atoms:
        return chunk.atoms

    item = parse_step(parse, where, UNITS)
    ended = usual is None or any(ENDED in line for line in chunk.lines)
    if isinstance(item, BadItem):
        return item if ended else BadItem(ENDS_WITHIN, where, item.detail)
    item.labels.pop("free_energy", None)  # of the same value
    lacking = (usual or set()) - set(item.labels)
    if not ended and lacking:
        return BadItem(ENDS_WITHIN, where, f"no {min(lacking)}")
    item.info = {}
    if chunk.constraints and "forces" in item.labels:  # zero for atoms that were held
        item.labels["constrained_forces"] = item.labels.pop("forces")
        item.note = "FHI-aims prints forces with relaxation constraints applied: not taken as forces"
    if charge is not None:
        item.info["charge"] = charge
    corrected = [line for line in chunk.lines if line.startswith(CORRECTED) and line.rstrip().find("eV") > 0]
    if corrected and (match := re.search(r":\s*([-+.\dE]+)\s*eV", corrected[-1])):
        item.labels["energy_corrected"] = float(match[1])
    return judge(item, any(CONVERGED in line for line in chunk.lines), request)


def _read_charge(head: list[str]) -> float | None:
    """Return the charge that the control file sets, or that the code counts before the first step."""
    for line in head:
        if match := re.match(r"\s*(?:Charge\s*=|charge\s+is set to|\|\s*Total charge \[e\]\s*:)\s*([-+.\dE]+)", line):
            return float(match[1])
    return None


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of an output of FHI-aims."""
    return b"Invoking FHI-aims" in head


ROW = Format(
    name="aims",
    about="output of FHI-aims, every ionic step",
    endings=(),
    read=read_aims,
    compressed=True,
    looks_like=looks_like,
)
