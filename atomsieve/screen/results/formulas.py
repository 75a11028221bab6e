"""Chemical formulas of screened structures."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import open_screened_input, read_numbers_at
from atomsieve.structures import StructureReader

BLOCK = 65_536  # structures whose elements are counted at once: 50 MB


def hill_formula(numbers: NDArray[np.uint8]) -> str:
    """Return the chemical formula in Hill order: C, H, then by symbol; without C all by symbol."""
    from ase.data import chemical_symbols

    found, counts = np.unique(numbers, return_counts=True)
    amounts = {
        chemical_symbols[z] if z < len(chemical_symbols) else f"[{z}]": int(n)
        for z, n in zip(found, counts, strict=True)
    }
    first = [s for s in ("C", "H") if s in amounts] if "C" in amounts else []
    order = first + sorted(set(amounts) - set(first))
    return "".join(s + (str(amounts[s]) if amounts[s] > 1 else "") for s in order)


def count_elements(
    ptr: NDArray[np.int64], numbers: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the elements of each structure: (structure, atomic number, atoms), each [P], sorted by the first two."""
    width, n = int(numbers.max(initial=0)) + 1, len(ptr) - 1
    parts = [(np.zeros(0, np.int64),) * 3]
    for first in range(0, n, BLOCK):
        own = ptr[first : first + BLOCK + 1]
        owner = np.repeat(np.arange(len(own) - 1, dtype=np.int64), np.diff(own))
        table = np.bincount(owner * width + numbers[own[0] : own[-1]], minlength=(len(own) - 1) * width)
        found = np.flatnonzero(table)
        parts.append((found // width + first, found % width, table[found]))
    structure, element, count = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return structure, element, count


def format_formulas(ptr: NDArray[np.int64], numbers: NDArray[np.uint8], kind: str = "formula") -> NDArray[Any]:
    """Return the formulas [S] (objects of type str) of structures; empty for those without atoms.

    kind : `formula`; `reduced_formula`, divided by the greatest common divisor; or `chemsys`, the symbols in
        alphabetical order, joined by -. Formulas are in the order of `hill_formula`.
    """
    structure, element, count = count_elements(ptr, numbers)
    out = np.full(len(ptr) - 1, "", object)
    if not len(structure):
        return out
    starts = np.flatnonzero(np.diff(structure, prepend=-1))
    if kind == "reduced_formula":
        count = count // np.repeat(np.gcd.reduceat(count, starts), np.diff(starts, append=len(count)))
    symbols = np.array([hill_formula(np.array([z], np.uint8)) for z in range(256)])
    rank = np.argsort(np.argsort(symbols))[element]
    if kind == "chemsys":
        count = np.ones_like(count)
    else:
        carbon = (np.bincount(structure[element == 6], minlength=len(out)) > 0)[structure]
        rank = np.where(carbon & (element == 6), -2, np.where(carbon & (element == 1), -1, rank))
    order = np.lexsort((rank, structure))
    kinds, which = np.unique(element[order] << 32 | count[order], return_inverse=True)
    words = [symbols[k >> 32] + (str(k & 0xFFFFFFFF) if k & 0xFFFFFFFF > 1 else "") for k in kinds.tolist()]
    parts = np.array(words, object)[which.reshape(-1)].tolist()
    glue = "-" if kind == "chemsys" else ""
    ends = np.append(starts[1:], len(parts)).tolist()
    out[structure[starts]] = [glue.join(parts[a:b]) for a, b in zip(starts.tolist(), ends, strict=True)]
    return out


class FormulaReader:
    """Formulas of the screened structures by position; the input is opened when it is first asked for."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._reader: StructureReader | None = None

    def read(self, positions: NDArray[np.int64], kind: str = "formula") -> NDArray[Any]:
        """Return the formulas [n] (objects of type str) of the structures at `positions [n]`, in any order.

        Raises
        ------
        AtomSieveError
            if the input is missing; DataError if it changed.
        """
        if not len(positions):
            return np.zeros(0, object)
        if self._reader is None:
            stack = ExitStack()
            self._reader = stack.enter_context(open_screened_input(self._results))
            weakref.finalize(self, stack.close)
        wanted, place = np.unique(positions, return_inverse=True)
        return format_formulas(*read_numbers_at(self._reader, wanted), kind)[place.reshape(-1)]


def read_formulas_at(positions: NDArray[np.int64], reader: StructureReader) -> dict[int, str]:
    """Return the formula of each structure at `positions` of the input."""
    wanted = np.unique(positions)
    return dict(zip(wanted.tolist(), format_formulas(*read_numbers_at(reader, wanted)).tolist(), strict=True))


def read_formulas(results: Results, rows: NDArray[Any]) -> dict[int, str]:
    """Return the formula of each structure of `rows` by position; empty if the input is no longer there."""
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(open_screened_input(results, convert=False))
        except AtomSieveError:
            return {}
        return read_formulas_at(rows["position"], reader)
