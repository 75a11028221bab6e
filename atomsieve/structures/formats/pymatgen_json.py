"""pymatgen's JSON: structures, molecules and entries, one or a list of them, read as a stream and without pymatgen."""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.errors import DataError
from atomsieve.structures.formats.base import Format
from atomsieve.structures.item import BadItem, Item, ReadRequest, Tick, open_with_progress

log = logging.getLogger(__name__)

BLOCK = 1 << 20
FULL = 1e-3
_BETWEEN = " \t\r\n,[]"


def read_pymatgen(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the structures of a JSON file: a Structure, a Molecule, a ComputedStructureEntry, lists or lines of them.

    An entry's energy is its `energy` as calculated, without corrections. Sites shared by several species, or partly
    empty, make a structure `BadItem`.

    Raises
    ------
    DataError
        if the file is not JSON, or holds something else.
    """
    path, tick = request.path, request.tick
    known = False
    for k, element in enumerate(_elements(path, tick)):
        where = f"{path}: element {k}"
        try:
            item = _item(element, where)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            if not known:
                raise DataError(
                    f"{where} is not a pymatgen Structure, Molecule or ComputedStructureEntry ({type(error).__name__}: "
                    f"{error})"
                ) from error
            log.debug("%s: %s", where, error, exc_info=True)
            item = BadItem(f"not readable ({type(error).__name__})", where)
        known = True
        yield item


def _elements(path: Path, tick: Tick) -> Iterator[Any]:
    """Yield the elements of a JSON list, or of concatenated JSON texts, holding no more than one of them in memory."""
    decoder, text, done, blocks = json.JSONDecoder(), "", False, codecs.getincrementaldecoder("utf-8")()
    with open_with_progress(path) as (file, fraction):
        while not done or text:
            text = text.lstrip(_BETWEEN)
            try:
                element, end = decoder.raw_decode(text) if text else (None, 0)
            except ValueError as error:
                if done:
                    raise DataError(f"{path} is not complete JSON: {error}") from error
                element, end = None, 0
            complete = end and (done or end < len(text))  # a number at the end of the block may go on
            if complete:
                yield element
                text = text[end:]
                tick(fraction())
                continue
            # An element longer than a block: read as much again as there is, so that the work stays linear.
            try:
                block = file.read(max(BLOCK, len(text)))
                text += blocks.decode(block, final=not block)
            except (EOFError, OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read: {error}") from error
            done = not block
            if done and not text.strip(_BETWEEN):
                return


def _item(element: Any, where: str) -> Item | BadItem:
    info: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    structure = element
    if "structure" in element:
        structure = element["structure"]
        info = {name: value for name, value in element.items() if isinstance(value, str | int | float)}
        info.update({n: v for n, v in (element.get("data") or {}).items() if not isinstance(v, dict)})
        if element.get("energy") is not None:
            labels["energy"] = float(element["energy"])
    numbers, coordinates = [], []
    lattice = structure.get("lattice")
    cell = np.zeros((3, 3)) if lattice is None else np.asarray(lattice["matrix"], np.float64).reshape(3, 3)
    for site in structure["sites"]:
        species = site["species"]
        if len(species) != 1 or abs(float(species[0].get("occu", 1)) - 1) > FULL:
            return BadItem("partly occupied sites", where)
        numbers.append(_atomic_number(species[0]["element"]))
        coordinates.append(site["xyz"] if "xyz" in site else np.asarray(site["abc"], np.float64) @ cell)
    arrays = _site_properties(structure["sites"])
    for name, key in (("charge", "charge"), ("spin", "spin_multiplicity")):
        if structure.get(key) is not None:
            info.setdefault(name, structure[key])
    pbc = (lattice.get("pbc") or [True] * 3) if lattice is not None else [False] * 3
    return Item(
        numbers=np.asarray(numbers, np.int64),
        positions=np.asarray(coordinates, np.float64).reshape(-1, 3),
        cell=cell,
        pbc=np.asarray(pbc, bool),
        where=where,
        info={**(structure.get("properties") or {}), **info},
        labels=labels,
        arrays=arrays,
    )


def _site_properties(sites: list[dict[str, Any]]) -> dict[str, Any]:
    """Return properties that every site has as arrays per atom."""
    names = set(sites[0].get("properties") or {}) if sites else set()
    out = {}
    for name in names:
        values = [(site.get("properties") or {}).get(name) for site in sites]
        if all(isinstance(value, int | float | list) for value in values):
            out[name] = values
    return out


def _atomic_number(symbol: str) -> int:
    """Return the atomic number of `Fe`, `Fe2+` or `D`; 0 for a dummy species."""
    from ase.data import atomic_numbers

    bare = re.match(r"[A-Z][a-z]?", symbol)
    name = bare.group() if bare else ""
    return 1 if name in ("D", "T") else int(atomic_numbers.get(name, 0))


ROW = Format(
    name="pymatgen",
    about="pymatgen JSON: Structure, Molecule, ComputedStructureEntry; one, a list or lines",
    endings=(".json", ".jsonl"),
    read=read_pymatgen,
    compressed=True,
)
