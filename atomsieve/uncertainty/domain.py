"""Domain of an ensemble: what each head saw in training, kept compactly in `domain.safetensors`.

Three things per head. The elements; the pairs of elements that were neighbours, how close they came and in how many
structures; and landmarks in the encoder's feature space, which tell how far an atom's surroundings are from all that
was seen. Distances between features are measured element by element, after a projection that gives the scatter of each
element's features around their mean the same size in every direction (Mahalanobis metric, pooled over the elements).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from atomsieve.errors import DataError
from atomsieve.models.elements import MAX_NUMBER, element_features

DOMAIN = "domain.safetensors"
POWER = 4
"""Exponent of the mean that makes one distance of those of a structure's atoms: close to the largest, but steadier."""
_FAR = 1e6
_LARGEST = 64 << 20
_MOST_LANDMARKS, _MOST_AXES = 16384, 256


@dataclass(frozen=True)
class HeadDomain:
    """What one head saw.

    Attributes
    ----------
    elements : [Z] uint8, atomic numbers; seen_in : [Z] int32, in how many structures, of `paired`.
    pairs : [P,2] uint8, first <= second: elements that were neighbours (closer than the cutoff).
    closest : [P] float32 Angstrom, shortest distance at which each pair was seen.
    structures : [P] int32, in how many structures.
    contact : shortest distance over the sum of covalent radii that is usual for the head.
    kin, expected : rules for pairs never seen bonded (`pair_limits`).
    closer : part of the shortest distance seen that is still accepted.
    projection : [F,D] float32, from features to whitened axes.
    landmarks : [M,D] float32, typical points, sorted by element; owner : [M] uint8, the element of each.
    limit : distance of a structure that counts as 1. fitted, held : structures behind landmarks and limit.
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
        return pooled(self.atom_distances(numbers, features), ptr) / self.limit


BOND = 1.25
"""Neighbours are bonded if they are closer than this times the sum of their covalent radii."""
BOND_SEEN = 1.35
"""Elements count as seen bonded if they came closer than this: a bond a little longer is no new chemistry."""
OFTEN = 20
"""Structures in which a pair was seen, from which on its shortest distance means something without a bond."""
SIZE = MAX_NUMBER + 1
RADII = np.nan_to_num(np.asarray(covalent_radii[:SIZE], float), nan=1.5)
SUMS = RADII[:, None] + RADII[None, :]


@functools.cache
def relatives(kin: int) -> NDArray[np.bool_]:
    """Return [119,119]: whether the second element is the first, or one of its `kin` nearest in the periodic table.

    Nearness is that of `element_features`, from which the embeddings of elements start.
    """
    features = element_features()
    square = ((features[:, None] - features[None]) ** 2).sum(2)
    near = np.eye(SIZE, dtype=bool)
    order = np.argsort(square, axis=1, kind="stable")[:, : kin + 1]
    near[1 + np.arange(len(features))[:, None], 1 + order] = True
    return near


def pair_limits(domain: HeadDomain) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
    near = relatives(kin)
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


def pooled(values: NDArray[np.float64], ptr: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the power mean [S] of the values [N] of each structure's atoms."""
    counts, out = np.diff(ptr), np.zeros(len(ptr) - 1)
    filled = counts > 0
    if filled.any():
        out[filled] = np.add.reduceat(values**POWER, ptr[:-1][filled]) / counts[filled]
    return np.asarray(out ** (1.0 / POWER))


# -- the file ------------------------------------------------------------------------------------------------------

_ARRAYS: dict[str, tuple[Any, int]] = {
    "elements": (np.uint8, 1),
    "seen_in": (np.int32, 1),
    "pairs": (np.uint8, 2),
    "closest": (np.float32, 1),
    "structures": (np.int32, 1),
    "projection": (np.float32, 2),
    "landmarks": (np.float32, 2),
    "owner": (np.uint8, 1),
    "numbers": (np.float64, 1),
}
_NUMBERS = ("paired", "contact", "kin", "expected", "closer", "limit", "fitted", "held")


def domain_bytes(domains: Mapping[str, HeadDomain], heads: Sequence[str]) -> bytes:
    """Return the contents of `domain.safetensors`; arrays are called by the head's place in `heads`."""
    arrays: dict[str, NDArray[Any]] = {}
    for k, name in enumerate(heads):
        if name in domains:
            found = domains[name]
            values = {f.name: getattr(found, f.name) for f in fields(found)}
            values["numbers"] = np.array([values[n] for n in _NUMBERS], np.float64)
            arrays |= {f"{k}/{n}": np.ascontiguousarray(values[n], kind) for n, (kind, _) in _ARRAYS.items()}
    return bytes(save(arrays))


def read_domain(folder: str | Path, heads: Sequence[str], width: int) -> dict[str, HeadDomain]:
    """Read `domain.safetensors` of a gfm/ folder; heads without a fit are left out, without the file all are.

    heads : names in the order of the manifest; width : number of features F.

    Raises
    ------
    DataError
        in one line, if the file is not what it must be; nothing in it is trusted.
    """
    path = Path(folder) / DOMAIN
    if not path.is_file():
        return {}
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than any domain ({_LARGEST}); copy it again")
    try:
        arrays = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise DataError(f"{path} is not a safetensors file ({error}); copy it again") from error
    out = {}
    for k, name in enumerate(heads):
        own = {n.removeprefix(f"{k}/"): arrays.pop(n) for n in list(arrays) if n.startswith(f"{k}/")}
        if own:
            try:
                out[name] = _checked(own, width)
            except DataError as error:
                raise DataError(f"{path}: head {name!r}: {error}; copy it again, or fit it anew") from None
    if arrays:
        odd = sorted(arrays)[0]
        raise DataError(f"{path} holds {odd!r}, which is no head's (0 to {len(heads) - 1}); copy it again")
    return out


def _checked(arrays: dict[str, NDArray[Any]], width: int) -> HeadDomain:
    """Return the domain of a head; DataError says what is wrong with its arrays."""
    odd = sorted({*arrays} ^ {*_ARRAYS})
    if odd:
        raise DataError(f"{odd[0]} is {'missing' if odd[0] in _ARRAYS else 'unknown'}")
    for name, (kind, axes) in _ARRAYS.items():
        found = arrays[name]
        if found.dtype != kind or found.ndim != axes:
            raise DataError(f"{name} must be {np.dtype(kind).name} of {axes} axes, got {found.dtype} {found.shape}")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise DataError(f"{name} holds numbers that are not finite")
    pairs, landmarks, numbers = arrays["pairs"], arrays["landmarks"], arrays["numbers"]
    axes = landmarks.shape[1]
    shapes = {
        "seen_in": (len(arrays["elements"]),),
        "pairs": (len(pairs), 2),
        "closest": (len(pairs),),
        "structures": (len(pairs),),
        "numbers": (len(_NUMBERS),),
        "projection": (width, axes),
        "owner": (len(landmarks),),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise DataError(f"{name} must have shape {shape}, got {arrays[name].shape}")
    if not (0 < len(landmarks) <= _MOST_LANDMARKS and 0 < axes <= _MOST_AXES):
        raise DataError(f"landmarks must be [1-{_MOST_LANDMARKS},1-{_MOST_AXES}], got {landmarks.shape}")
    for name in ("elements", "pairs", "owner"):
        found = arrays[name]
        if found.size and not (found.min() >= 1 and found.max() <= MAX_NUMBER):
            raise DataError(f"{name} must be atomic numbers from 1 to {MAX_NUMBER}, got {found.min()} to {found.max()}")
    if (np.diff(arrays["owner"].astype(int)) < 0).any() or (pairs[:, 0] > pairs[:, 1]).any():
        raise DataError("owner must be sorted, and the first of a pair not above the second")
    if any((arrays[name] <= 0).any() for name in ("closest", "structures", "seen_in")):
        raise DataError("closest, structures and seen_in must be positive")
    paired, contact, kin, expected, closer, limit, fitted, held = numbers.tolist()
    inside = 0 <= contact < 2 and 0 <= kin <= MAX_NUMBER and expected >= 0 and 0 <= closer <= 1 and 0 < limit < _FAR
    if not (inside and 1 <= paired < 2**53 and 1 <= fitted < 2**53 and 0 <= held < 2**53):
        raise DataError(f"{', '.join(_NUMBERS)} are out of range: {', '.join(f'{x:g}' for x in numbers)}")
    plain = {n: a for n, a in arrays.items() if n != "numbers"}
    return HeadDomain(
        **plain,
        paired=int(paired),
        contact=contact,
        kin=int(kin),
        expected=expected,
        closer=closer,
        limit=limit,
        fitted=int(fitted),
        held=int(held),
    )
