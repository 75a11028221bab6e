"""Distances from lower convex hulls, many rows at once.

A hull of d elements is a set of facets. Facet f gives each element i a chemical potential mu[f,i]: the plane through
its d corners is sum_i x_i mu[f,i] at the atomic fractions x. The lower hull is convex, so its energy at x is the
largest of all planes, max_f x . mu[f] (for the construction see S. P. Ong et al., Chem. Mater. 20, 1798 (2008)).
Facets are found once for each chemical system, by Qhull; the rows of the system are then products of matrices.

A member m of the ensemble has potentials mu[f,i,m] of its own on the facet that the mean chooses, from its own energies
of the corners. Its distance is e_m - x . mu[f,:,m]: errors that a row and its references share cancel member by member.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.stability.phases import Compositions, ReferenceSet

ROOM = 1 << 21
"""Numbers held at once while facets are looked up."""
QHULL_ELEMENTS = 6
"""Elements of a system up to which Qhull lists all facets; beyond, those that rows need are found one by one."""
TOLERANCE = 1e-8  # eV/atom by which a plane may lie above a phase
FLAT = 1e-9  # volume of corners in composition below which they make no facet


@dataclass(frozen=True)
class Distances:
    """Energies of n rows relative to a reference set, eV/atom; NaN where an element has no reference.

    formation, above : [n] from the elements, and from the hull. formation_members, above_members : [n,K], of each
    member minus the mean; None where rows have no members. missing : [n] bool, an element has no reference.
    """

    formation: NDArray[np.float64]
    above: NDArray[np.float64]
    formation_members: NDArray[np.float32] | None
    above_members: NDArray[np.float32] | None
    missing: NDArray[np.bool_]


class HullFinder:
    """Hulls of a reference set by chemical system, built when they are first needed.

    Attributes
    ----------
    absent : atomic numbers of elements without reference that rows had so far.
    """

    def __init__(self, references: ReferenceSet) -> None:
        self.references = references
        self.absent: set[int] = set()
        self._masks = references.compositions.masks
        self._systems: dict[bytes, _System | None] = {}

    def measure(
        self,
        compositions: Compositions,
        energy: NDArray[np.float64],
        members: NDArray[np.float32] | None = None,
    ) -> Distances:
        """Return the distances of n rows.

        energy : [n] eV/atom. members : [n,K] eV/atom, of each member minus that of the row, None without members.
        """
        n = len(energy)
        if members is not None and members.shape[1] != self.references.members:
            members = None  # of another number of members: never matched by order alone
        formation, above, missing = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, bool)
        of_formation = None if members is None else np.full(members.shape, np.nan, np.float32)
        of_above = None if members is None else np.full(members.shape, np.nan, np.float32)
        for mask, own in _group_by_system(compositions.masks):
            system = self._find_system(mask)
            if system is None:
                missing[own] = True
                continue
            content = compositions.content(own, system.elements)
            x = content / content.sum(1, keepdims=True)
            formation[own] = energy[own] - x @ system.pure
            at, facet = system.look_up(x)
            above[own] = energy[own] - at
            if members is not None and of_formation is not None and of_above is not None:
                apart, thin = members[own], x.astype(np.float32)
                of_formation[own] = apart - thin @ system.pure_members
                order = np.argsort(facet, kind="stable")  # facet by facet: a product of matrices each
                ends = np.flatnonzero(np.diff(facet[order], append=-1)) + 1
                potentials = system.member_potentials()
                for some in np.split(order, ends[:-1]):
                    apart[some] -= thin[some] @ potentials[facet[some[0]]]
                of_above[own] = apart
        return Distances(formation, above, of_formation, of_above, missing)

    def decompose(self, compositions: Compositions, row: int) -> list[tuple[float, int]]:
        """Return the phases that a row would decompose to: (fraction of atoms, index of the phase), largest first."""
        system = self._find_system(compositions.masks[row])
        if system is None:
            return []
        content = compositions.content(np.array([row]), system.elements)
        x = content / content.sum()
        _, facet = system.look_up(x)
        corners = system.corners[int(facet[0])]
        share = np.linalg.lstsq(system.fractions[corners].T, x[0], rcond=None)[0]
        found = zip(share.tolist(), system.index[corners].tolist(), strict=True)
        return sorted(((s, k) for s, k in found if s > 1e-7), reverse=True)

    def _find_system(self, mask: NDArray[np.uint64]) -> _System | None:
        """Return the hull of the elements in a mask [2]; None where one has no reference, or there is no element."""
        key = mask.tobytes()
        if key not in self._systems:
            elements = np.array([64 * w + b for w in (0, 1) for b in range(64) if int(mask[w]) >> b & 1], np.int64)
            lacking = [z for z in elements.tolist() if z not in self.references.elements]
            self.absent.update(lacking)
            known = not lacking and len(elements) > 0
            self._systems[key] = _build_system(self.references, self._masks, mask, elements) if known else None
        return self._systems[key]


class _System:
    """The hull of one chemical system.

    elements : [d] sorted. pure, pure_members : [d], [d,K] energies of the elements. index : [p] phases,
    fractions : [p,d] their compositions, energy : [p], deviation : [p,K]. corners : phases (places in `index`) of each
    facet. planes : [F,d] chemical potentials of each facet. complete : all facets are known.
    """

    def __init__(
        self,
        elements: NDArray[np.int64],
        index: NDArray[np.int64],
        fractions: NDArray[np.float64],
        energy: NDArray[np.float64],
        deviation: NDArray[np.float64],
        pure: NDArray[np.int64],
    ) -> None:
        self.elements, self.index, self.fractions = elements, index, fractions
        self.energy, self.deviation = energy, deviation
        self.pure, self.pure_members = energy[pure], deviation[pure].astype(np.float32)
        self._pure = pure
        self.corners: list[NDArray[np.int64]] = []
        self.planes = np.zeros((0, len(elements)))
        self._members = np.zeros((0, len(elements), deviation.shape[1]), np.float32)
        self.complete = len(elements) <= QHULL_ELEMENTS
        if self.complete:
            self._list_facets()

    def _list_facets(self) -> None:
        """Find all facets of the lower hull with Qhull."""
        d = len(self.elements)
        formation = self.energy - self.fractions @ self.pure
        below = np.flatnonzero(formation < -TOLERANCE)
        points = np.concatenate([self._pure, below])
        simplices = np.arange(d)[None]
        if len(below) and d > 1:
            from scipy.spatial import ConvexHull

            coordinates = np.column_stack([self.fractions[points][:, 1:], formation[points]])
            hull = ConvexHull(coordinates, qhull_options="Qt")
            simplices = hull.simplices[hull.equations[:, -2] < 0]
        corners = points[simplices]
        corners = corners[np.abs(np.linalg.det(self.fractions[corners])) > FLAT]
        planes = np.linalg.solve(self.fractions[corners], self.energy[corners][..., None])[..., 0]
        good = np.zeros(len(planes), bool)
        for some in _slices(len(planes), len(self.index)):  # a facet of almost no volume may have a wrong plane
            good[some] = (planes[some] @ self.fractions.T - self.energy).max(1) < TOLERANCE
        self.corners, self.planes = list(corners[good]), planes[good]
        if not good.any():
            self.complete = False

    def look_up(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the energy [m] of the hull at atomic fractions `x [m,d]`, and the facet [m]."""
        if not self.complete:
            return self._look_up_one_by_one(x)
        at, facet = np.empty(len(x)), np.empty(len(x), np.int64)
        for some in _slices(len(x), len(self.planes)):
            heights = x[some] @ self.planes.T
            facet[some] = heights.argmax(1)
            at[some] = heights[np.arange(len(heights)), facet[some]]
        return at, facet

    def _look_up_one_by_one(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the same with the facets that these rows need, each found by a linear program.

        A row lies on a known facet if it is a mixture of its corners; else its own facet is found and added.
        """
        at, facet = np.full(len(x), np.nan), np.full(len(x), -1, np.int64)
        number = 0
        while (left := np.flatnonzero(facet < 0)).size:
            while number < len(self.corners) and left.size:
                corners = self.corners[number]
                share = np.linalg.lstsq(self.fractions[corners].T, x[left].T, rcond=None)[0]
                off = np.abs(self.fractions[corners].T @ share - x[left].T).max(0)
                inside = (share.min(0) > -1e-9) & (off < 1e-9)
                facet[left[inside]], at[left[inside]] = number, (self.energy[corners] @ share)[inside]
                left = left[~inside]
                number += 1
            if left.size:
                self.corners.append(self._solve(x[left[0]]))
        return at, facet

    def _solve(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the phases of the mixture of lowest energy at `x [d]`."""
        from scipy.optimize import linprog

        found = linprog(self.energy - self.energy.min(), A_eq=self.fractions.T, b_eq=x, method="highs-ds")
        if found.x is None:
            raise FloatingPointError(f"no mixture of phases at {x.tolist()}: {found.message}")
        return np.flatnonzero(found.x > 1e-10)

    def member_potentials(self) -> NDArray[np.float32]:
        """Return the chemical potentials [F,d,K] of each facet by each member, minus those of the mean."""
        if len(self._members) < len(self.corners):
            fresh = self.corners[len(self._members) :]
            if self.complete:
                every = np.array(fresh)
                more = np.linalg.solve(self.fractions[every], self.deviation[every])
            else:
                more = np.array([np.linalg.lstsq(self.fractions[c], self.deviation[c], rcond=None)[0] for c in fresh])
            self._members = np.concatenate([self._members, more.astype(np.float32)])
        return self._members


def _build_system(
    references: ReferenceSet, masks: NDArray[np.uint64], mask: NDArray[np.uint64], elements: NDArray[np.int64]
) -> _System:
    """Return the hull of all phases without other elements than those of `mask`."""
    index = np.flatnonzero(((masks & ~mask) == 0).all(1))
    content = references.compositions.content(index, elements)
    pure = np.searchsorted(index, [references.elements[z] for z in elements.tolist()])
    fractions = content / content.sum(1, keepdims=True)
    return _System(
        elements, index, fractions, references.energy[index], references.deviation[index].astype(np.float64), pure
    )


def _group_by_system(masks: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield each chemical system of rows: its mask [2], and the rows, sorted."""
    if not len(masks):
        return
    with np.errstate(over="ignore"):  # systems of one key, which cannot be expected, would only be yielded in parts
        order = np.argsort(masks[:, 0] + masks[:, 1] * np.uint64(0x9E3779B97F4A7C15), kind="stable")
    ordered = masks[order]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(1)]))
    for start, stop in zip(starts, np.append(starts[1:], len(order)), strict=True):
        yield ordered[start], order[start:stop]


def _slices(n: int, width: int) -> Iterator[slice]:
    step = max(ROOM // max(width, 1), 1)
    return (slice(first, min(first + step, n)) for first in range(0, n, step))
