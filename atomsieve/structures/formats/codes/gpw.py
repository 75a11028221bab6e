"""Restart files of GPAW (.gpw): the structure and its results, through ASE's ULM; nothing in them is code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from atomsieve.errors import DataError
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import judge, parse_step, units_by_ase
from atomsieve.structures.item import BadItem, Item, ReadRequest

log = logging.getLogger(__name__)

UNITS = units_by_ase("gpw")
TAKEN = ("energy", "free_energy", "forces", "stress", "magmoms", "magmom", "dipole")


def read_gpw(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the one structure of the file.

    Raises
    ------
    DataError
        if the file is no ULM file of GPAW.
    """
    from ase.io import ulm
    from ase.io.trajectory import read_atoms

    try:
        reader = ulm.open(str(request.path))
        tag = reader.get_tag()
    except Exception as error:  # the reader raises whatever it stumbles over
        log.debug("%s: %s", request.path, error, exc_info=True)
        raise DataError(f"{request.path} is no .gpw file: {type(error).__name__}") from error
    with reader:
        if tag.lower() != "gpaw":
            raise DataError(f"{request.path} is no .gpw file: it was written as {tag!r}")
        where = str(request.path)

        def parse() -> Any:
            return read_atoms(reader.atoms, _try_except=False)

        item = parse_step(parse, where, UNITS)
        if isinstance(item, Item):
            item = _add_results(item, reader)
    converged = not isinstance(item, Item) or bool(item.info.pop("converged", True))
    yield judge(item, converged, request)
    request.tick(1.0)


def _add_results(item: Item, reader: Any) -> Item | BadItem:
    """Return the structure with the results of the file, its charge, and whether its electrons converged."""
    try:
        results = reader.results.asdict()
        scf = reader.get("scf")
        parameters = reader.get("parameters")
        item.labels = {name: results[name] for name in TAKEN if results.get(name) is not None}
        if parameters is not None and parameters.get("charge") is not None:
            item.info["charge"] = float(parameters.charge)
        item.info["converged"] = True if scf is None else scf.get("converged", True)
    except Exception as error:  # as above
        log.debug("%s: %s", item.where, error, exc_info=True)
        return BadItem("not readable", item.where, f"{type(error).__name__}: {error}")
    return item


ROW = Format(
    name="gpw",
    about="restart file of GPAW (.gpw)",
    endings=(".gpw",),
    read=read_gpw,
)
