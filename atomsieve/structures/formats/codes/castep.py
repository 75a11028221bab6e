"""Output of CASTEP (.castep): every ionic step, parsed by ASE, which reads the file whole."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from atomsieve.errors import DataError
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import ENDS_WITHIN, judge, parse_step, refuse, units_by_ase
from atomsieve.structures.item import BadItem, Item, ReadRequest, open_with_progress

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)

UNITS = units_by_ase("castep")
LARGEST_FILE = 512 << 20


def read_castep(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the ionic steps: the energy that ASE takes (0 K where it is printed), and the free energy.

    Raises
    ------
    DataError
        if the file is no output of CASTEP, or larger than `LARGEST_FILE`.
    """
    from ase.io.castep import read_castep_castep

    with open_with_progress(request.path) as (file, _):
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise DataError(f"{request.path} is larger than {LARGEST_FILE >> 20} MB, which are read whole")
    text = data.decode("latin-1")
    if "CASTEP" not in text:
        raise refuse(request, "CASTEP")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = read_castep_castep(io.StringIO(text), index=slice(None))
    except Exception as error:  # a parser of free text fails in every way there is
        log.debug("%s: %s", request.path, error, exc_info=True)
        raise refuse(request, f"CASTEP that ASE can read ({type(error).__name__})") from error
    charge = re.search(r"net charge of system\s*:\s*([-+.\d]+)", text)
    failed = "SCF cycles performed but system has not reached the groundstate" in text
    for step, atoms in enumerate(images, 1):
        where = f"{request.path}: ionic step {step}"
        item = parse_step(partial(_return, atoms), where, UNITS)
        if isinstance(item, Item):
            item.info = {} if charge is None else {"charge": float(charge[1])}
            if "energy" not in item.labels:
                item = BadItem(ENDS_WITHIN, where)
        yield judge(item, not failed, request, "a step of this file did not")
    if not images:
        yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step 1")
    request.tick(1.0)


def _return(atoms: Atoms) -> Atoms:
    return atoms


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of an output of CASTEP."""
    return b"Welcome to" in head and b"CASTEP" in head


ROW = Format(
    name="castep",
    about="output of CASTEP, every ionic step; read whole",
    endings=(".castep",),
    read=read_castep,
    compressed=True,
    looks_like=looks_like,
)
