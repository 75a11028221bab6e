"""Domain of an ensemble: a compact description of each head's training data, with which new structures are compared.

Four things per head. The elements; usual densities and numbers of bonds (`atomsieve.uncertainty.matter`); the pairs of
elements that were neighbours, how close they came and in how many structures; and landmarks in the encoder's feature
space, from which the distance of an atom's surroundings to the training data is measured. Distances between features
are measured element by element, after a projection that gives the scatter of each element's features around their mean
the same size in every direction (Mahalanobis metric, pooled over the elements).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.models.elements import element_features
from atomsieve.uncertainty.matter import MatterRange
from atomsieve.uncertainty.radii import BOND, SIZE, SUMS

POWER = 4
"""Exponent of the mean that makes one distance of those of a structure's atoms: close to the largest, but steadier."""


@dataclass(frozen=True)
class HeadDomain:
    """The training data of one head, condensed.

    Attributes
    ----------
    elements : [Z] uint8, atomic numbers; seen_in : [Z] int32, in how many structures, of `paired`.
    pairs : [P,2] uint8, first <= second: elements that were neighbours (closer than the cutoff).
    closest : [P] float32 Angstrom, shortest distance at which each pair was seen.
    structures : [P] int32, in how many structures.
    contact : shortest distance over the sum of covalent radii that is usual for the head.
    kin, expected : rules for pairs never seen bonded (`find_pair_limits`).
    closer : part of the shortest distance seen that is still accepted.
    projection : [F,D] float32, from features to whitened axes.
    landmarks : [M,D] float32, typical points, sorted by element; owner : [M] uint8, the element of each.
    limit : distance of a structure that counts as 1. fitted, held : structures behind landmarks and limit.
    matter : usual densities and coordinations; None for fits of earlier versions.
    """

    elements: NDArray[np.uint8]
    seen_in: NDArray[np.int32]
    paired: int
    pairs: NDArray[np.uint8]
    closest: NDArray[np.float32]
    structures: NDArray[np.int32]
    contact: float
    kin: int
    expected: float
    closer: float
    projection: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    owner: NDArray[np.uint8]
    limit: float
    fitted: int
    held: int
    matter: MatterRange | None = None

    def atom_distances(self, numbers: NDArray[np.uint8], features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the distance [N] of each atom to the nearest landmark of its element, not yet over the limit.

        An element that has none, being rare in training, is measured against those of all elements.
        features : [N,F], as the first member's encoder gives them.
        """
        out = np.zeros(len(numbers))
        place = features.astype(np.float32) @ self.projection
        order = np.argsort(numbers, kind="stable")
        there, first = np.unique(numbers[order], return_index=True)
        last = [*first[1:].tolist(), len(numbers)]
        starts = np.searchsorted(self.owner, there, "left").tolist()
        stops = np.searchsorted(self.owner, there, "right").tolist()
        for a, b, start, stop in zip(first.tolist(), last, starts, stops, strict=True):
            centre = self.landmarks[start:stop] if stop > start else self.landmarks
            middle = centre.mean(0)  # taken off, so that the squares below are not much larger than their difference
            centre, own = centre - middle, place[order[a:b]] - middle
            square = (own**2).sum(1) + ((centre**2).sum(1) - 2 * own @ centre.T).min(1)
            out[order[a:b]] = np.sqrt(np.maximum(square, 0.0))
        return out

    def distances(
        self, numbers: NDArray[np.uint8], features: NDArray[np.float32], ptr: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the distance [S] of structures whose atoms are `ptr[s]:ptr[s+1]`, 1 at the limit; 0 without atoms."""
        return pool_distances(self.atom_distances(numbers, features), ptr) / self.limit


BOND_SEEN = 1.35
"""Elements count as seen bonded if they came closer than this: a bond a little longer is no new chemistry."""
OFTEN = 20
"""Structures in which a pair was seen, from which on its shortest distance means something without a bond."""


@functools.cache
def find_relatives(kin: int) -> NDArray[np.bool_]:
    """Return [119,119]: whether the second element is the first, or one of its `kin` nearest in the periodic table.

    Nearness is that of `element_features`, from which the embeddings of elements start.
    """
    features = element_features()
    square = ((features[:, None] - features[None]) ** 2).sum(2)
    near = np.eye(SIZE, dtype=bool)
    order = np.argsort(square, axis=1, kind="stable")[:, : kin + 1]
    near[1 + np.arange(len(features))[:, None], 1 + order] = True
    return near


def find_pair_limits(domain: HeadDomain) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distances [119,119] Angstrom below which a pair is an unseen bond, and the closest seen of each pair.

    Elements count as seen bonded if they were. If not, there are two cases. By chance alone n_a n_b / N structures of N
    should hold both elements; from `expected` on, the pair lacks because the data leave this chemistry out. Below, it
    may lack because structures are few, as a head of many elements has not seen most pairs; then it is enough that
    relatives of the two were bonded: themselves, or one of the `kin` elements nearest in the periodic table.

    Likewise the closest is that of the relatives too, over the sums of covalent radii. Where fewer than `OFTEN`
    structures tell of it, it is at most `contact` times that sum: a pair seen once, far apart, does not make every bond
    of it a short contact.
    """
    kin, contact = domain.kin, domain.contact
    near = find_relatives(kin)
    ratio, often = np.full((SIZE, SIZE), np.inf), np.zeros((SIZE, SIZE))
    one, two = domain.pairs.T.astype(int)
    ratio[one, two] = ratio[two, one] = domain.closest / SUMS[one, two]
    often[one, two] = often[two, one] = domain.structures
    seen = np.zeros(SIZE)
    seen[domain.elements] = domain.seen_in
    chance = np.outer(seen, seen) / max(domain.paired, 1)
    bonded = ratio <= BOND_SEEN
    alike = (near.astype(float) @ bonded @ near.T > 0) & (chance < domain.expected)
    bonds = np.where(bonded | alike, 0.0, BOND * SUMS)
    least = ratio
    if kin:
        least = np.stack([ratio[near[z]].min(0) for z in range(SIZE)])
        least = np.minimum(least, np.stack([ratio[:, near[z]].min(1) for z in range(SIZE)], axis=1))
    least = np.where(often >= OFTEN, least, np.minimum(least, contact))
    return bonds, least * SUMS


def pool_distances(values: NDArray[np.float64], ptr: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the power mean [S] of the values [N] of each structure's atoms."""
    counts, out = np.diff(ptr), np.zeros(len(ptr) - 1)
    filled = counts > 0
    if filled.any():
        out[filled] = np.add.reduceat(values**POWER, ptr[:-1][filled]) / counts[filled]
    return np.asarray(out ** (1.0 / POWER))
