"""Text output of GPAW: every step, each parsed by ASE."""

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

UNITS = units_by_ase("gpaw")
BEGINS = "Positions:"


def read_gpaw(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the steps: the energy extrapolated to zero smearing, and the free energy.

    Raises
    ------
    DataError
        if there are no positions in the file.
    """
    text, step, begun = StepText(request, "GPAW"), 0, False
    charge: float | None = None
    usual = set[str]()
    with open_lines(request) as lines:
        for line in lines:
            if match := re.match(r"\s*Total charge:\s*([-+.\d]+)", line, re.IGNORECASE):
                charge = float(match[1])
            if line.strip() == BEGINS:
                body = text.take()
                if begun:
                    step += 1
                    item = _read_step(body, charge, step, request)
                    usual |= set(item.labels) if isinstance(item, Item) else set()
                    yield item
                begun = True
            text.add(line)
    if not begun:
        raise refuse(request, "GPAW")
    body = text.take()
    item = _read_step(body, charge, step + 1, request)
    lacking = usual - set(item.labels) if isinstance(item, Item) else set()
    ended = any(line.startswith(("Date:", "Memory usage", "Timing:")) for line in body)
    if isinstance(item, BadItem) and not ended:
        item = BadItem(ENDS_WITHIN, item.where, item.detail)
    yield BadItem(ENDS_WITHIN, item.where, f"no {min(lacking)}") if lacking and not ended else item


def _read_step(body: list[str], charge: float | None, step: int, request: ReadRequest) -> Item | BadItem:
    where = f"{request.path}: step {step}"
    free = [line for line in body if line.strip().startswith("Free energy:")]
    if not free:
        return BadItem("no energy", where)
    item = parse_step(partial(_parse, "".join(body)), where, UNITS)
    if isinstance(item, BadItem):
        return item
    item.labels["free_energy"] = float(free[-1].split(":")[1])
    item.labels.pop("magmom", None)
    if charge is not None:
        item.info["charge"] = charge
    return judge(item, not any("Did not converge" in line for line in body), request)


def _parse(text: str) -> Atoms:
    from ase.io.gpaw_out import read_gpaw_out

    return read_gpaw_out(io.StringIO(text), index=-1)


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of an output of GPAW: its name drawn in characters."""
    return b"|___|_|" in head and b"___ ___ ___ _ _ _" in head


ROW = Format(
    name="gpaw",
    about="text output of GPAW, every step",
    endings=(),
    read=read_gpaw,
    compressed=True,
    looks_like=looks_like,
)
