"""Limits of neighbour lists, and the one-line errors for structures beyond them."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.structures.batch import StructureBatch

MAX_NEIGHBORS_PER_ATOM = 20_000
"""An atom with more neighbours within the cutoff is an error: its cell or its positions are absurd."""

MAX_EDGES = 2**29
"""A batch with more edges is an error: about 25 GB of indices and vectors."""

SHORTEST_VECTOR = 1e-4
"""A periodic cell vector shorter than this (Angstrom) makes the cell singular."""

LONGEST_VECTOR = 1e8
"""A periodic cell vector longer than this (Angstrom) is absurd: in double precision, images lose their places."""

LARGEST_DEFECT = 1e8
"""A periodic cell is singular if the product of its lengths exceeds its volume by this factor."""

BAD_POSITIONS, BAD_CELL, TOO_DENSE, TOO_MANY_EDGES, TOO_FAR, NO_MEMORY = 1, 2, 3, 4, 5, 6
"""The fault codes of `native/lattice.h`."""


def refuse_long_vectors(batch: StructureBatch, cutoff: float) -> None:
    """Raise the error for the first structure with a periodic cell vector beyond `LONGEST_VECTOR`, if there is one."""
    with np.errstate(over="ignore"):
        long = (batch.pbc & ~(np.abs(batch.cell).max(2) <= LONGEST_VECTOR)).any(1)
    if long.any():
        raise_graph_error(BAD_CELL, int(np.flatnonzero(long)[0]), batch, cutoff)


def raise_graph_error(code: int, structure: int, batch: StructureBatch, cutoff: float) -> NoReturn:
    """Raise the error for a fault code; `structure` is the index in the batch, or -1."""
    where = f"structure {structure}" + (f" (id {batch.id[structure]})" if structure >= 0 else "")
    many = f"a batch of {batch.n_structures} structures; use smaller batches"
    reasons = {
        BAD_POSITIONS: f"{where}: positions are not finite; remove it before building a neighbour list",
        BAD_CELL: f"{where}: a periodic cell vector is not finite, shorter than {SHORTEST_VECTOR} or longer than "
        f"{LONGEST_VECTOR:g} Angstrom, or the periodic vectors are linearly dependent; give a valid cell or switch pbc "
        "off",
        TOO_DENSE: f"{where}: an atom has more than {MAX_NEIGHBORS_PER_ATOM} neighbours within {cutoff} Angstrom; "
        "check the units of its cell and positions",
        TOO_MANY_EDGES: f"more than {MAX_EDGES} edges in {many}",
        TOO_FAR: f"{where}: atoms lie more than 1e9 cells away from each other; wrap them into the cell",
    }
    if code in reasons:
        raise DataError(reasons[code])
    if code == NO_MEMORY:
        raise AtomSieveError(f"out of memory in the neighbour list of {many}")
    raise AtomSieveError(f"neighbour list failed with the unknown code {code}")
