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
groups : the same within groups of structures (Mondrian conformal prediction, Vovk et al. 2005, section 4.5), so that
    the probability holds in each of them. A structure's group is the finest that holds enough: elements and size,
    elements, size, or all.

Nothing depends on the order of the structures: folds are dealt out by rank.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from atomsieve.models.calibration import (
    GAUSSIAN,
    LEVELS,
    Group,
    HeadCalibration,
    Isotonic,
    PropertyCalibration,
    Quantiles,
    Residuals,
)
from atomsieve.models.groups import applicable, candidates, size_edges

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
    """Fit one property; None with fewer than FEWEST structures, or where all errors or all spreads are zero.

    error, spread, structure : [M]; what is not finite is left out.
    """
    sample = _Sample(error, spread, structure, residuals)
    if sample.structures < FEWEST or not sample.floor > 0 or not np.abs(sample.error).max() > 0:
        return None
    fold = sample.folds()
    scores = np.empty(len(sample.error))
    for k in range(FOLDS):
        own = fold == k
        if own.any():
            sigma = _map(sample, ~own).sigma(sample.spread[own])
            scores[own] = np.abs(sample.error[own]) / sigma
    edges = size_edges(sample.natoms)
    names = candidates(sample.elements, sample.natoms, edges)
    everything = np.ones(len(scores), bool)
    large = [str(n) for n in np.unique(names) if (names == n).any(1).sum() >= FEWEST_GROUP]
    known = _groups(scores, everything, sample, names, large)
    return _map(sample, everything).model_copy(
        update={
            "conformal": quantiles(scores),
            "size_edges": edges,
            "groups": known,
            "coverage": _coverage(sample, scores, fold, names, large),
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


def _groups(
    scores: NDArray[np.float64],
    use: NDArray[np.bool_],
    sample: _Sample,
    names: NDArray[np.str_],
    large: list[str],
) -> dict[str, Group]:
    """Return the quantiles of the groups named in `large`, from the scores `use` [M]."""
    out = {}
    for name in large:
        own = scores[use & (names == name).any(1)[sample.structure]]
        out[name] = Group(n=len(own), conformal=quantiles(own))
    return out


def _coverage(
    sample: _Sample,
    scores: NDArray[np.float64],
    fold: NDArray[np.int64],
    names: NDArray[np.str_],
    large: list[str],
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
        known = _groups(scores, rest, sample, names, large)
        mine = sample.structure[own]
        structures, back = np.unique(mine, return_inverse=True)
        column = applicable(names[structures], known)
        marginal = quantiles(scores[rest]).get("0.9", math.inf)
        limit = [
            known[names[s, c]].conformal.get("0.9", math.inf) if c < names.shape[1] else marginal
            for s, c in zip(structures, column, strict=True)
        ]
        within["conformal"][own] = scores[own] <= np.array(limit)[back]
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
