"""What a relaxation did to each structure of a group: the values of the table beyond energies and forces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.calculators.structure_change import StructureChange, measure_change
from atomsieve.screen.selection.groups import UNKNOWN, find_space_group
from atomsieve.structures import StructureBatch

SYMPREC = 0.1
"""Angstrom within which positions count as symmetric, before and after: forces below the limit leave some noise."""
PREFIX = "change."
VALUES = (
    "volume_ratio",
    "strain",
    "bonds_kept",
    "bonds_formed",
    "coordination_before",
    "coordination",
    "contact_before",
    "contact",
    "fragments_before",
    "fragments",
    "gap_before",
    "gap",
)
"""Numbers of the table, as in `StructureChange`."""
GROUPS = ("space_group_before", "space_group")
Arrays = dict[str, NDArray[Any]]


def measure_outcome(start: StructureBatch, after: StructureBatch, energy: NDArray[np.float64]) -> Arrays:
    """Return, under names that begin with `PREFIX`, what happened to the structures [S] of a group.

    start : as in the input. energy : [S], NaN for a structure that never had a result; it has NaN and "" here too.
    """
    known = np.isfinite(energy)
    change: StructureChange = measure_change(start, after, known)
    out: Arrays = {PREFIX + name: getattr(change, name) for name in VALUES}
    for name, batch in zip(GROUPS, (start, after), strict=True):
        symbols = [_name_space_group(batch, s) if known[s] else "" for s in range(len(batch))]
        out[PREFIX + name] = np.array(symbols, str)
    return out


def _name_space_group(batch: StructureBatch, s: int) -> str:
    number, symbol = find_space_group(batch.slice(s, s + 1), SYMPREC)
    return f"{symbol} ({number})" if 0 < number < UNKNOWN else ""
