"""Reads frames of extended XYZ through ASE: those that the compiled parser does not know, or all without it."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.item import BadItem, Item, ReadRequest, Tick, item_from_atoms, open_with_progress
from atomsieve.structures.units import Units

log = logging.getLogger(__name__)

LARGEST_FRAME = 50_000_000
UNKNOWN_UNIT = "a unit that is not known"
_LOWER_CASE = re.compile(r"(?<!\S)(lattice|properties)(?=\s*=)")

_QUANTITIES = {
    "energy": "energy",
    "energies": "energy",
    "force": "forces",
    "forces": "forces",
    "length": "length",
    "position": "length",
    "positions": "length",
    "pos": "length",
    "stress": "stress",
    "virial": "virial",
    "virials": "virial",
}
"""Quantities by the word before `-unit` or `_unit` in a key of a header, as dpdata writes them."""


def find_units(info: Mapping[str, Any]) -> Units:
    """Return the units that keys such as `energy-unit` state.

    Raises
    ------
    UsageError
        if a unit is not known.
    """
    found: dict[str, Any] = {}
    for key, unit in info.items():
        base = key.lower().rstrip("s")
        quantity = _QUANTITIES.get(base[:-5]) if base.endswith(("-unit", "_unit")) else None
        if quantity is not None:
            found[quantity] = str(unit)
    return replace(Units(), **found, origin="the file") if found else Units()


def parse_with_ase(text: str, where: str) -> Item | BadItem:
    """Return the one frame of a text; keys that GPUMD and NEP write in lower case are known."""
    from ase.io.extxyz import read_extxyz as parse

    count, _, rest = text.partition("\n")
    header, _, atoms = rest.partition("\n")
    header = _LOWER_CASE.sub(lambda match: match.group().capitalize(), header)
    try:
        image = next(parse(io.StringIO(f"{count}\n{header}\n{atoms}"), index=0))
    except Exception as error:  # a parser of free text fails in every way there is
        log.debug("%s: %s", where, error, exc_info=True)
        return BadItem(f"not readable ({type(error).__name__})", where, " ".join(str(error).split())[:200])
    item = item_from_atoms(image, where)
    try:
        item.units = find_units(item.info)
    except UsageError as error:
        return BadItem(UNKNOWN_UNIT, where, str(error))
    return item


def read_through_ase(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the frames of a file, all parsed by ASE.

    Raises
    ------
    DataError
        if a line that must count atoms does not: where the next frame begins is not known then.
    """
    path = request.path
    for frame, text in _frames(path, request.tick):
        where = f"{path}: frame {frame}"
        yield BadItem("the file ends within a structure", where) if text is None else parse_with_ase(text, where)


def _frames(path: Path, tick: Tick) -> Iterator[tuple[int, str | None]]:
    """Yield the text of each frame; None for one that is cut off by the end of the file."""
    with open_with_progress(path) as (file, fraction):
        frame = line_number = 0
        try:
            while header := file.readline():
                line_number += 1
                if not header.strip():
                    continue
                count = int(header) if header.strip().isdigit() else -1
                if not 0 <= count <= LARGEST_FRAME:
                    shown = header[:40].decode(errors="replace").strip()
                    raise DataError(f"{path}, line {line_number}: a number of atoms was expected, got {shown!r}")
                lines = [header]
                lines += [line for _ in range(count + 1) if (line := file.readline())]
                line_number += len(lines) - 1
                whole = len(lines) == count + 2
                yield frame, b"".join(lines).decode(errors="replace") if whole else None
                frame += 1
                tick(fraction())
        except (EOFError, OSError) as error:  # the compressed stream ends early or is damaged
            log.debug("%s: %s", path, error)
            yield frame, None
