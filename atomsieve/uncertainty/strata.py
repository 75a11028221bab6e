"""Groups of structures whose errors are calibrated separately: by elements, by size, or by both (Mondrian taxonomy).

A structure belongs to one group of elements, by its elements; the first that applies:

metallic : a metal or metalloid, and no oxygen, halogen, chalcogen or pnictogen of those below.
oxide : a metal or metalloid with O.
halide : with F, Cl, Br or I, no O.
chalcogenide_pnictide : with N, P, As, S, Se, Sb or Te, none of the above.
nonmetallic : nonmetals alone (molecules, organic matter, water, solids of nonmetals).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures import StructureBatch

ELEMENT_GROUPS = ("metallic", "oxide", "halide", "chalcogenide_pnictide", "nonmetallic")
SIZES = ("small", "medium", "large")
_NONMETALS = (1, 2, 6, 7, 8, 9, 10, 15, 16, 17, 18, 34, 35, 36, 53, 54)
_HALOGENS = (9, 17, 35, 53)
_CHALCOGENS_PNICTOGENS = (7, 15, 33, 16, 34, 51, 52)


def find_element_group(batch: StructureBatch) -> NDArray[np.int64]:
    """Return the group of elements of each structure [S], an index into ELEMENT_GROUPS."""
    metal = ~_has(batch, _NONMETALS, every=True)
    out = np.zeros(len(batch), np.int64)
    for group, elements in ((3, _CHALCOGENS_PNICTOGENS), (2, _HALOGENS), (1, (8,))):
        out[_has(batch, elements)] = group
    return np.where(metal, out, 4)


def _has(batch: StructureBatch, elements: Collection[int], *, every: bool = False) -> NDArray[np.bool_]:
    """Return for each structure [S] whether an atom (or every atom) is of these elements."""
    known = np.zeros(256, bool)
    known[list(elements)] = True
    number = np.bincount(batch.structure_of_atom, weights=known[batch.numbers], minlength=len(batch))
    return np.asarray(number == batch.counts if every else number > 0)


def find_size_edges(natoms: NDArray[np.int64]) -> list[int]:
    """Return where the second and the third class of size begin: the tertiles of the numbers of atoms [S].

    Structures of one size are in one class; the edges are the sizes that divide the structures nearest to thirds.
    """
    if not len(natoms):
        return []
    sizes, number = np.unique(natoms, return_counts=True)
    below = np.cumsum(number) - number  # structures smaller than each size
    if len(sizes) > 1:
        sizes, below = sizes[1:], below[1:]
    return [int(sizes[np.abs(below - part * len(natoms) // 3).argmin()]) for part in (1, 2)]


def list_groups(elements: NDArray[np.int64], natoms: NDArray[np.int64], edges: Sequence[int]) -> NDArray[np.str_]:
    """Return the names [S,3] of the groups that each structure belongs to, the finest first.

    They are elements and size ("oxide/small"), elements ("oxide"), and size ("small"); of these the first that was
    calibrated applies.
    """
    size = np.array(SIZES)[np.searchsorted(np.asarray(edges), natoms, side="right")]
    element = np.array(ELEMENT_GROUPS)[elements]
    both = np.char.add(np.char.add(element, "/"), size)
    return np.stack([both, element.astype(both.dtype), size.astype(both.dtype)], axis=1)


def choose_group(names: NDArray[np.str_], known: Collection[str]) -> NDArray[np.int64]:
    """Return [S] which column of `candidates` applies: the first whose name is known, else 3 for all structures."""
    unique, inverse = np.unique(names, return_inverse=True)
    there = np.isin(unique, list(known))[inverse.reshape(names.shape)]
    return np.where(there.any(1), there.argmax(1), names.shape[1])
