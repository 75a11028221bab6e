"""Fits a calibration to errors and spreads of structures that no member was trained on.

scale : the maximum of the Gaussian likelihood of errors e with standard errors scale x s is sqrt(mean(e^2 / s^2))
    (the temperature of D. Levi, L. Gispan, N. Giladi and E. Fetaya, arXiv:1905.11659, 2019).
isotonic : E[e^2 | s] as a function that never falls, by isotonic regression of e^2 on s: the recalibration of
    V. Kuleshov, N. Fenner and S. Ermon (ICML 2018), applied to the variance. Used where there are enough errors.
conformal : the ceil((n + 1) level)-th smallest of n scores |e| / sigma bounds the next one with probability `level`
    if structures are exchangeable: split conformal prediction (V. Vovk, A. Gammerman and G. Shafer, Algorithmic
    Learning in a Random World, 2005; J. Lei et al., J. Am. Stat. Assoc. 113, 1094, 2018; Y. Romano, E. Patterson and
    E. Candes, NeurIPS 2019). Scores are cross-fitted (V. Vovk, Ann. Math. Artif. Intell. 74, 9, 2015): the map that
    gives the sigma of a structure is fitted to the other folds, so no structure counts twice.
groups : the same within groups of structures (Mondrian conformal prediction, Vovk et al. 2005, section 4.5). The
    groups part the structures: elements and size where a group holds enough, of those left over elements, then size,
    then all that are left. Each quantile is fitted on exactly the structures that it applies to, so that the
    probability holds in each group. Only the last ones may be few: see `_fit_rest`.

Nothing depends on the order of the structures: folds are dealt out by rank.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from atomsieve.uncertainty.calibration import (
    GAUSSIAN,
    LEVELS,
    GroupQuantiles,
    HeadCalibration,
    Isotonic,
    PropertyCalibration,
    Quantiles,
    Residuals,
)
from atomsieve.uncertainty.strata import find_size_edges, list_groups

FEWEST = 10
"""Structures below which a property of a head stays uncalibrated."""
FEWEST_ISOTONIC = 200
"""Structures from which on a monotone map takes the place of the scale."""
FEWEST_GROUP = 100
"""Structures that a group needs for quantiles of its own."""
FOLDS = 10
KNOTS = 32
PER_KNOT = 20
"""Structures that a knot of the monotone map stands for, at least."""
FLOOR = 1e-2
"""Smallest sigma of the monotone map, relative to the root mean square of all errors; smallest spread that is taken at
its value, relative to the mean."""


def fit_scale(error: NDArray[np.float64], spread: NDArray[np.float64]) -> float:
    """Return sqrt(mean(e^2 / s^2)) of errors [M] and positive spreads [M]."""
    return float(np.sqrt(np.mean((error / spread) ** 2)))


def fit_isotonic(error: NDArray[np.float64], spread: NDArray[np.float64], knots: int) -> Isotonic | None:
    """Return the monotone map from spread to root mean square error, or None where there is a single spread.

    Isotonic regression of the mean squares of `knots` sets of neighbouring spreads, equally many in each; those that it
    makes alike become one knot at their mean spread, so that sigma is flat only at the ends (centred isotonic
    regression: A. Oron and N. Flournoy, Stat. Biopharm. Res. 9, 258, 2017).

    error, spread : [M].
    """
    from sklearn.isotonic import IsotonicRegression

    order = np.lexsort((np.abs(error), spread))
    parts = [p for p in np.array_split(order, knots) if len(p)]
    number = np.array([len(p) for p in parts], float)
    at, square = (np.array([v[p].mean() for p in parts]) for v in (spread, error**2))
    variance = IsotonicRegression().fit_transform(at, square, sample_weight=number)
    block = np.concatenate([[0], np.cumsum(np.diff(variance) > 1e-12 * variance[-1])])
    weight = np.bincount(block, number)
    centre = np.bincount(block, number * at) / weight
    sigma = np.sqrt(np.bincount(block, number * variance) / weight)
    x = np.concatenate([at[:1], centre, at[-1:]])
    y = np.concatenate([sigma[:1], sigma, sigma[-1:]])
    y = np.maximum.accumulate(np.maximum(y, FLOOR * np.sqrt(np.mean(error**2))))
    first = np.concatenate([[True], np.diff(x) > 1e-9 * x[-1]])
    if first.sum() < 2 or not y[0] > 0:
        return None
    return Isotonic(spread=x[first].tolist(), sigma=y[first].tolist())


def quantiles(scores: NDArray[np.float64]) -> Quantiles:
    """Return the ceil((n + 1) level)-th smallest score for each level; levels that need more scores are absent."""
    ordered, out = np.sort(scores), {}
    for level in LEVELS:
        rank = math.ceil((len(ordered) + 1) * level - 1e-9)
        if rank <= len(ordered):
            out[str(level)] = float(ordered[rank - 1])
    return out


class _Sample:
    """Errors [M] and spreads [M] of one property, and the structure [M] of S that each belongs to."""

    def __init__(
        self,
        error: NDArray[np.float64],
        spread: NDArray[np.float64],
        structure: NDArray[np.int64],
        residuals: Residuals,
    ) -> None:
        good = np.isfinite(error) & np.isfinite(spread)
        self.error = error[good]
        self.floor = FLOOR * float(spread[good].mean()) if good.any() else 0.0
        self.spread = np.maximum(spread[good], self.floor)
        used, self.structure = np.unique(structure[good], return_inverse=True)
        self.structures = len(used)
        self.natoms, self.elements = residuals.natoms[used], residuals.elements[used]

    def folds(self) -> NDArray[np.int64]:
        """Return the fold [M] of each error: those of a structure are in one, and folds are alike in spread."""
        number = np.maximum(np.bincount(self.structure, minlength=self.structures), 1)
        spread = np.bincount(self.structure, self.spread, self.structures) / number
        size = np.bincount(self.structure, np.abs(self.error), self.structures) / number
        fold = np.empty(self.structures, np.int64)
        fold[np.lexsort((size, self.natoms, spread))] = np.arange(self.structures) % FOLDS
        return fold[self.structure]


def calibrate_property(
    error: NDArray[np.float64], spread: NDArray[np.float64], structure: NDArray[np.int64], residuals: Residuals
) -> PropertyCalibration | None:
    """Fit one property; None with fewer than FEWEST structures, or where all spreads or all errors are zero.

    Errors that are zero outside of a single fold count as zero: they leave the others no scale.

    error, spread, structure : [M]; what is not finite is left out.
    """
    sample = _Sample(error, spread, structure, residuals)
    if sample.structures < FEWEST or not sample.floor > 0:
        return None
    fold = sample.folds()
    if not all(0 < fit_scale(sample.error[fold != k], sample.spread[fold != k]) < math.inf for k in range(FOLDS)):
        return None
    scores = np.empty(len(sample.error))
    for k in range(FOLDS):
        own = fold == k
        if own.any():
            sigma = _map(sample, ~own).sigma(sample.spread[own])
            scores[own] = np.abs(sample.error[own]) / sigma
    edges = find_size_edges(sample.natoms)
    names = list_groups(sample.elements, sample.natoms, edges)
    everything = np.ones(len(scores), bool)
    category = _categories(names)[sample.structure]
    return _map(sample, everything).model_copy(
        update={
            "conformal": _fit_rest(scores, sample.structure, category),
            "size_edges": edges,
            "groups": _groups(scores, category),
            "coverage": _coverage(sample, scores, fold, category),
        }
    )


def _map(sample: _Sample, use: NDArray[np.bool_]) -> PropertyCalibration:
    """Fit the map from spread to sigma to the errors `use` [M]."""
    error, spread = sample.error[use], sample.spread[use]
    structures = len(np.unique(sample.structure[use]))
    knots = min(KNOTS, structures // PER_KNOT)
    # Folds must agree on the kind of map, so what decides is the number of all structures.
    isotonic = fit_isotonic(error, spread, knots) if sample.structures >= FEWEST_ISOTONIC else None
    return PropertyCalibration(
        n=len(error), structures=structures, scale=fit_scale(error, spread), floor=sample.floor, isotonic=isotonic
    )


def _categories(names: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return the name [S] of the one group that applies to each structure, "" where that is all structures.

    A group is used if at least FEWEST_GROUP structures are in it that are in no finer group that is used.

    names : [S,3], `candidates`.
    """
    out = np.zeros(len(names), names.dtype)
    for column in names.T:
        free = out == ""
        found, number = np.unique(column[free], return_counts=True)
        own = free & np.isin(column, found[number >= FEWEST_GROUP])
        out[own] = column[own]
    return out


def _groups(scores: NDArray[np.float64], category: NDArray[np.str_]) -> dict[str, GroupQuantiles]:
    """Return the quantiles of each group, from the scores [M] of its category [M]."""
    out = {}
    for name in np.unique(category[category != ""]):
        own = scores[category == name]
        out[str(name)] = GroupQuantiles(n=len(own), conformal=quantiles(own))
    return out


def _fit_rest(scores: NDArray[np.float64], structure: NDArray[np.int64], category: NDArray[np.str_]) -> Quantiles:
    """Return the quantiles for structures of no group, whose category [M] is "".

    They are those of their own scores [M]. Where these come from fewer than FEWEST_GROUP structures [M], the quantiles
    of all scores are the least that is taken; a level that needs more scores than there are takes the largest one.
    """
    own = scores[category == ""]
    found = quantiles(own)
    if len(np.unique(structure[category == ""])) >= FEWEST_GROUP:
        return found
    largest = float(own.max(initial=0.0))
    return {level: max(value, found.get(level, largest)) for level, value in quantiles(scores).items()}


def _coverage(
    sample: _Sample, scores: NDArray[np.float64], fold: NDArray[np.int64], category: NDArray[np.str_]
) -> dict[str, float]:
    """Return the shares of errors within 90 % intervals: raw, by the scale, and conformal, fold by fold."""
    error, spread = np.abs(sample.error), sample.spread
    within = {name: np.zeros(len(error), bool) for name in ("raw", "scale", "conformal")}
    within["raw"] = error <= GAUSSIAN[0.9] * spread
    for k in range(FOLDS):
        own, rest = fold == k, fold != k
        if not own.any():
            continue
        within["scale"][own] = error[own] <= GAUSSIAN[0.9] * fit_scale(error[rest], spread[rest]) * spread[own]
        known = {name: group.conformal for name, group in _groups(scores[rest], category[rest]).items()}
        known[""] = _fit_rest(scores[rest], sample.structure[rest], category[rest])
        mine, back = np.unique(category[own], return_inverse=True)
        limit = np.array([known[str(name)].get("0.9", math.inf) for name in mine])
        within["conformal"][own] = scores[own] <= limit[back]
    return {name: float(hit.mean()) for name, hit in within.items()}


def calibrate_head(residuals: Residuals) -> HeadCalibration:
    """Fit one head; a property with too few usable structures stays None."""
    structures = np.arange(len(residuals.natoms))
    return HeadCalibration(
        energy_per_atom=calibrate_property(residuals.energy_error, residuals.energy_spread, structures, residuals),
        force_component=calibrate_property(
            residuals.force_error.ravel(),
            np.repeat(residuals.force_spread, 3),
            np.repeat(residuals.structure, 3),
            residuals,
        ),
    )
