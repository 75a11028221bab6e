"""XDATCAR of VASP: positions of every ionic step, without labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import ENDS_WITHIN, open_lines, refuse
from atomsieve.structures.formats.codes.vasp_names import numbers_of
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.units import Units

UNITS = Units(length="angstrom", origin="format xdatcar")
STEP = "Direct configuration="
HEADER_LINES = 7
LARGEST_COUNT = 50_000_000


def read_xdatcar(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the steps; a run with a changing cell repeats the header before each of them.

    Raises
    ------
    DataError
        if the file is no XDATCAR.
    """
    numbers: NDArray[np.int64] | None = None
    cell = np.zeros((3, 3))
    step, header = 0, list[str]()
    with open_lines(request) as lines:
        for line in lines:
            if STEP not in line:
                header.append(line)
                if len(header) > HEADER_LINES + 1:
                    raise refuse(request, f"XDATCAR (a line {STEP!r} was expected, got {line.strip()[:40]!r})")
                continue
            if header:
                numbers, cell = _read_header(header, request)
                header = []
            if numbers is None:
                raise refuse(request, "XDATCAR (no header)")
            step += 1
            where = f"{request.path}: ionic step {step}"
            rows = [found for _ in range(len(numbers)) if (found := next(lines, None)) is not None]
            if len(rows) < len(numbers):
                yield BadItem(ENDS_WITHIN, where)
                return
            try:
                scaled = np.array([row.split()[:3] for row in rows], np.float64).reshape(-1, 3)
            except ValueError as error:
                yield BadItem("not readable", where, str(error))
                continue
            yield Item(numbers, scaled @ cell, cell, np.array([True] * 3), where, units=UNITS)
    if not step:
        raise refuse(request, "XDATCAR")
    if any(line.strip() for line in header):
        yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step {step + 1}")


def _read_header(lines: list[str], request: ReadRequest) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the atomic numbers and the cell of the lines before a step."""
    try:
        _, scale, *vectors, symbols, counts = [line for line in lines if line.strip()][-HEADER_LINES:]
        cell = float(scale) * np.array([line.split() for line in vectors], np.float64).reshape(3, 3)
        repeats = [int(word) for word in counts.split()]
        if sum(repeats) > LARGEST_COUNT or min(repeats) < 0:
            raise ValueError(f"{sum(repeats)} atoms")
        return np.repeat(numbers_of(symbols.split()), repeats), cell
    except (ValueError, IndexError) as error:
        raise refuse(request, f"XDATCAR ({error})") from None


ROW = Format(
    name="xdatcar",
    about="XDATCAR of VASP, every ionic step",
    endings=(".xdatcar",),
    beginnings=("XDATCAR",),
    read=read_xdatcar,
    lacks="labels",
    compressed=True,
    covers=("poscar",),
)
