"""Formation energies and energies above the convex hull of chosen rows, by phase diagrams of pymatgen.

There is one phase diagram for each chemical system among the rows, from all references within it. pymatgen builds it
(S. P. Ong et al., Chem. Mater. 20, 1798 (2008)); the energies of all rows of the system are then taken from its facets
at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.followup.hull_references import Entries, join_entries
from atomsieve.screen.selection.groups import make_composition_keys

ROOM = 1 << 22  # numbers held at once while facets are looked up
ROUNDING = 1e-6
"""eV/atom; an energy in single precision depends on its batch by so much. A smaller distance from the hull counts as 0,
in the table and in the counts."""
TINY = 1e-7  # smallest fraction of a phase that is listed; rounding gives smaller ones


@dataclass(frozen=True)
class Hull:
    """Energies of n rows, eV/atom; NaN where the hull is not known.

    Attributes
    ----------
    formation : [n] from the elements, each in its lowest reference.
    above : [n] above the hull of the references; negative below it, 0 within `ROUNDING` of it.
    above_all : [n] above the hull of references and rows together: 0 on it.
    phases : [n] the phases on the hull of the references that the row would decompose to: (fraction of atoms,
        reference).
    missing : [n] atomic numbers of its elements without a reference; if there are any, the hull is not known.
    systems : number of chemical systems of the rows whose hull is known.
    """

    formation: NDArray[np.float64]
    above: NDArray[np.float64]
    above_all: NDArray[np.float64]
    phases: list[list[tuple[float, int]]]
    missing: list[list[int]]
    systems: int


def find_lowest(entries: Entries) -> NDArray[np.int64]:
    """Return the usable entry of lowest energy of each reduced formula: others are never on the hull."""
    ptr = np.concatenate([[0], np.cumsum(np.bincount(entries.structure, entries.count, len(entries)))]).astype(np.int64)
    numbers = np.repeat(entries.element, entries.count).astype(np.uint8)
    keys = make_composition_keys(ptr, numbers, "reduced-formula")
    order = np.lexsort((np.arange(len(entries)), entries.energy, keys[:, 1], keys[:, 0], ~entries.usable))
    order = order[: np.count_nonzero(entries.usable)]
    first = np.ones(len(order), bool)
    first[1:] = (keys[order][1:] != keys[order][:-1]).any(axis=1)
    return np.sort(order[first])


def compute_hull(rows: Entries, references: Entries) -> Hull:
    """Return the energies of `rows` relative to `references`, all of one head."""
    n = len(rows)
    hull = Hull(
        np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan), [[] for _ in range(n)], [[] for _ in range(n)], 0
    )
    known, together = _Phases(references), _Phases(join_entries([references, rows]))
    masks = rows.masks()
    systems, member = np.unique(masks[rows.usable], axis=0, return_inverse=True)
    usable, member = np.flatnonzero(rows.usable), member.reshape(-1)
    complete = 0
    for k, system in enumerate(systems):
        mine = usable[member == k]
        elements = _elements_of(system)
        own = known.within(system)
        lacking = [z for z in elements if z not in known.elements]
        if lacking:
            for row in mine:
                hull.missing[row].extend(lacking)
            continue
        complete += 1
        content = rows.content(mine, np.array(elements))
        fraction = content / content.sum(axis=1, keepdims=True)
        pure = np.array([known.elements[z] for z in elements])
        hull.formation[mine] = rows.energy[mine] - fraction @ pure
        at, phases = known.hull(own, elements, fraction)
        hull.above[mine] = _clear_rounding(rows.energy[mine] - at)
        for row, found in zip(mine, phases, strict=True):
            hull.phases[row] = found
        at, _ = together.hull(together.within(system), elements, fraction)
        hull.above_all[mine] = _clear_rounding(rows.energy[mine] - at)
    return Hull(hull.formation, hull.above, hull.above_all, hull.phases, hull.missing, complete)


def _clear_rounding(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the differences, with 0 for those within `ROUNDING`: rows on the hull are not slightly above it."""
    return np.where(np.abs(difference) < ROUNDING, 0.0, difference)


def _elements_of(mask: NDArray[np.uint64]) -> list[int]:
    return [64 * word + bit for word in range(4) for bit in range(64) if int(mask[word]) >> bit & 1]


class _Phases:
    """Entries that may be on a hull, and the diagrams of systems of them."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.index = find_lowest(entries)
        self.masks = entries.masks()[self.index]
        single = np.bitwise_count(self.masks).sum(axis=1) == 1
        self.elements = {
            _elements_of(self.masks[k])[0]: float(entries.energy[self.index[k]]) for k in np.flatnonzero(single)
        }

    def within(self, system: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the entries that have no other elements than the system, sorted."""
        return self.index[((self.masks & ~system) == 0).all(axis=1)]

    def hull(
        self, chosen: NDArray[np.int64], elements: list[int], fraction: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], list[list[tuple[float, int]]]]:
        """Return the hull's energy [m] at compositions `fraction [m,d]`, eV/atom, and the phases there."""
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
        from pymatgen.core import Composition, Element

        symbols = [Element.from_Z(z) for z in elements]
        content = self.entries.content(chosen, np.array(elements))
        entries = [
            PDEntry(Composition(dict(zip(symbols, amount, strict=True))), energy * sum(amount), attribute=index)
            for amount, energy, index in zip(
                content.tolist(), self.entries.energy[chosen].tolist(), chosen.tolist(), strict=True
            )
        ]
        diagram = PhaseDiagram(entries, symbols)
        corners = np.array([np.atleast_1d(np.asarray(facet)) for facet in diagram.facets], np.int64)  # [f,d]
        points = diagram.qhull_entries
        made_of = np.array([[e.composition.get_atomic_fraction(s) for s in symbols] for e in points])
        energy = np.array([e.energy_per_atom for e in points])
        facet, share = _locate_in_facets(made_of[corners], fraction)
        at = (share * energy[corners[facet]]).sum(axis=1)
        index = np.array([int(e.attribute) for e in points])[corners[facet]]
        phases = [
            [(float(x), int(i)) for x, i in sorted(zip(xs, ids, strict=True), key=lambda pair: -pair[0]) if x > TINY]
            for xs, ids in zip(share, index, strict=True)
        ]
        return at, phases


def _locate_in_facets(
    corners: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each of `points [m,d]` the facet [m] it lies in, and the shares [m,d] of its corners.

    corners : [f,d,d] compositions of the corners of each facet. Where facets meet, the facet in which the point lies
    deepest is taken, because a facet of almost no volume would give rounding errors.
    """
    inverse = np.linalg.inv(corners.transpose(0, 2, 1))  # shares = inverse @ composition
    facet, share = np.zeros(len(points), np.int64), np.zeros(points.shape)
    step = max(ROOM // corners[..., 0].size, 1)
    for start in range(0, len(points), step):
        some = points[start : start + step]
        shares = np.einsum("fij,mj->mfi", inverse, some)
        best = shares.min(axis=2).argmax(axis=1)
        facet[start : start + step] = best
        share[start : start + step] = shares[np.arange(len(some)), best]
    return facet, share
