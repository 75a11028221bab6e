"""Chemical formulas of screened structures."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.screen.results.record import Results
from atomsieve.screen.results.screened_input import open_screened_input, read_batches_at
from atomsieve.structures import StructureReader


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


def read_formulas_at(positions: NDArray[np.int64], reader: StructureReader) -> dict[int, str]:
    """Return the formula of each structure at `positions` of the input."""
    wanted = np.unique(positions)
    found = {}
    for inside, batch in read_batches_at(reader, wanted, ()):
        for k, position in enumerate(wanted[inside].tolist()):
            found[position] = hill_formula(batch.numbers[int(batch.ptr[k]) : int(batch.ptr[k + 1])])
    return found


def read_formulas(results: Results, rows: NDArray[Any]) -> dict[int, str]:
    """Return the formula of each structure of `rows` by position; empty if the input is no longer there."""
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(open_screened_input(results, convert=False))
        except AtomSieveError:
            return {}
        return read_formulas_at(rows["position"], reader)
