"""Cleaning: which labelled structures are left out, and why, with counts for each reason and source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.train.config import CleaningSection
from atomsieve.train.data.catalog import Catalog
from atomsieve.train.data.references import composition_energy, fit_references

REASONS = (
    "empty",
    "not finite",
    "no labels",
    "atoms too close",
    "too large",
    "too sparse",
    "force too large",
    "energy outlier",
)


@dataclass(frozen=True)
class Cleaning:
    """Result of cleaning: `keep` [S]; `counts[source][reason]` of structures left out (the first that applies)."""

    keep: NDArray[np.bool_]
    counts: dict[str, dict[str, int]]

    @property
    def removed(self) -> int:
        """Structures left out."""
        return int(np.sum(~self.keep))


def robust_deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance from the median in units of 1.4826 MAD (normal data: standard deviations)."""
    distance = np.abs(values - np.median(values))
    return distance / max(1.4826 * float(np.median(distance)), 1e-6)


def _energy_outliers(catalog: Catalog, usable: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
    """Return the structures whose energy per atom, without references, is far from the median of its source.

    References are fitted again without the outliers found, until there are no new ones (a huge outlier hides others).
    """
    out = np.zeros(len(catalog), bool)
    for head in range(len(catalog.sources)):
        members = np.flatnonzero(usable & catalog.has_energy & (catalog.head == head))
        for _ in range(5):
            inside = members[~out[members]]
            if len(inside) < 10:
                break
            counts = catalog.composition[inside].astype(np.int64)
            references = fit_references(counts, catalog.energy[inside])
            residual = (catalog.energy[inside] - composition_energy(counts, references)) / catalog.n_atoms[inside]
            found = inside[robust_deviation(residual) > limit]
            if len(found) == 0:
                break
            out[found] = True
    return out


def remove_outliers(catalog: Catalog, rules: CleaningSection) -> Cleaning:
    """Apply the rules; count the structures that each of them removes."""
    n = len(catalog)
    never = np.zeros(n, bool)
    with np.errstate(invalid="ignore"):
        tests: dict[str, NDArray[np.bool_]] = {
            "empty": catalog.n_atoms == 0,
            "not finite": ~catalog.finite,
            "no labels": ~(catalog.has_energy | catalog.has_forces),
            "atoms too close": never if rules.min_distance is None else catalog.shortest < rules.min_distance,
            "too large": never if rules.max_atoms is None else catalog.n_atoms > rules.max_atoms,
            "too sparse": never if rules.max_volume_per_atom is None else catalog.volume > rules.max_volume_per_atom,
            "force too large": never if rules.max_force is None else catalog.max_force > rules.max_force,
        }
    bad = np.logical_or.reduce(list(tests.values()))
    if rules.max_energy_deviation is not None:
        tests["energy outlier"] = _energy_outliers(catalog, ~bad, rules.max_energy_deviation)
    keep = np.ones(n, bool)
    counts: dict[str, dict[str, int]] = {name: {} for name in catalog.sources}
    for reason in REASONS:
        hit = keep & tests.get(reason, never)
        for head, number in enumerate(np.bincount(catalog.head[hit], minlength=len(catalog.sources))):
            if number:
                counts[catalog.sources[head]][reason] = int(number)
        keep &= ~hit
    return Cleaning(keep, counts)
