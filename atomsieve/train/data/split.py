"""Parts for training, validation, test and calibration: a function of each structure's group, none on two sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.conversion.split import reduce_compositions
from atomsieve.train.config import DataItem, SplitSection
from atomsieve.train.data.catalog import USES, Catalog
from atomsieve.train.data.hashed_draws import draw_uniform, draw_uniform_rows

TRAIN, VAL, TEST, CALIBRATION = 0, 1, 2, 3
PARTS = ("train", "val", "test", "calibration")


def reduce_formulas(composition: NDArray[np.integer]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct reduced formulas of compositions [S,119] and the one of each structure, [S]."""
    rows, inverse = np.unique(reduce_compositions(composition), axis=0, return_inverse=True)
    names = ["-".join(f"{z}:{row[z]}" for z in np.flatnonzero(row)) for row in rows]
    return names, inverse.reshape(-1).astype(np.int64)


def assign_parts(catalog: Catalog, rules: SplitSection, items: Sequence[DataItem] = ()) -> NDArray[np.int8]:
    """Return the part (TRAIN, VAL, TEST, CALIBRATION) of each structure, [S].

    A file with a stated use keeps it; only files of use `auto` are divided. With by=formula, all structures of a
    reduced formula go to one part in every source; a formula above `max_group` of its source is split by structure.
    A source that chance would leave without a structure to train on keeps its first one for that.

    items : the files of the catalogue; the `split_by` of a file overrides that of the rules.
    """
    part = np.zeros(len(catalog), np.int8)
    for value, name in enumerate(PARTS):
        part[catalog.use == USES.index(name)] = value
    auto = catalog.use == USES.index("auto")
    if not auto.any():
        return part
    by_formula = _is_divided_by_formula(catalog, rules, items) & auto
    if by_formula.any():
        names, formula = reduce_formulas(catalog.composition)
        for head in range(len(catalog.sources)):
            own = np.flatnonzero(by_formula & (catalog.head == head))
            found, which, counts = np.unique(formula[own], return_inverse=True, return_counts=True)
            if len(found) < rules.min_groups:
                by_formula[own] = False
            else:
                by_formula[own[counts[which] > rules.max_group * len(own)]] = False
        draw = np.array([draw_uniform(f"{rules.seed}:formula:{name}") for name in names])
        part[by_formula] = _to_part(draw[formula[by_formula]], rules)
    rest = np.flatnonzero(auto & ~by_formula)
    draw = np.empty(len(rest))
    for head, name in enumerate(catalog.sources):
        for file in np.unique(catalog.file[rest][catalog.head[rest] == head]).tolist():
            own = (catalog.head[rest] == head) & (catalog.file[rest] == file)
            draw[own] = draw_uniform_rows(f"{rules.seed}:structure:{name}:{file}:", catalog.row[rest[own]])
    part[rest] = _to_part(draw, rules)
    for head in range(len(catalog.sources)):
        own = auto & (catalog.head == head)
        # A head needs something to train on: with a structure or two, chance may keep them all for other parts.
        if own.any() and not ((catalog.head == head) & (part == TRAIN)).any() and rules.train > 0:
            part[np.flatnonzero(own)[0]] = TRAIN
    return part


def _is_divided_by_formula(catalog: Catalog, rules: SplitSection, items: Sequence[DataItem]) -> NDArray[np.bool_]:
    """Return which structures belong to a file that is divided by formula, [S]."""
    if not items:
        return np.full(len(catalog), rules.by == "formula")
    return np.array([(item.split_by or rules.by) == "formula" for item in items])[catalog.file]


def _to_part(draw: NDArray[np.float64], rules: SplitSection) -> NDArray[np.int8]:
    """Cut [0, 1) into the parts; raising the fraction of one takes structures from `train` alone."""
    out = np.full(len(draw), TRAIN, np.int8)
    out[draw >= 1.0 - rules.calibration] = CALIBRATION
    out[draw < rules.val + rules.test] = TEST
    out[draw < rules.val] = VAL
    return out
