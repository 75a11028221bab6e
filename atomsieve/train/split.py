"""Train, validation and test parts: a pure function of each structure's group, so no group is on two sides."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from atomsieve.train.catalog import USES, Catalog
from atomsieve.train.config import SplitSection

TRAIN, VAL, TEST = 0, 1, 2
PARTS = ("train", "val", "test")


def uniform(key: str) -> float:
    """Map a key to [0, 1) by SHA-256: the same on every machine, and independent of all other keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def reduced_formulas(composition: NDArray[np.integer]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct reduced formulas of compositions [S,119] and the one of each structure, [S]."""
    divisor = np.maximum(np.gcd.reduce(composition.astype(np.int64), axis=1), 1)
    reduced = composition // divisor[:, None].astype(composition.dtype)
    rows, inverse = np.unique(reduced, axis=0, return_inverse=True)
    names = ["-".join(f"{z}:{row[z]}" for z in np.flatnonzero(row)) for row in rows]
    return names, inverse.reshape(-1).astype(np.int64)


def assign_parts(catalog: Catalog, rules: SplitSection) -> NDArray[np.int8]:
    """Return the part (TRAIN, VAL, TEST) of each structure, [S].

    Files marked train, val or test keep their part; only `auto` is divided. By formula, the key is the reduced formula
    alone, so one composition falls on the same side in every source.
    """
    part = np.zeros(len(catalog), np.int8)
    for name, value in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        part[catalog.use == USES.index(name)] = value
    auto = catalog.use == USES.index("auto")
    if not auto.any():
        return part
    by_formula = np.zeros(len(catalog), bool)
    if rules.by == "formula":
        names, formula = reduced_formulas(catalog.composition)
        for head in range(len(catalog.sources)):
            own = auto & (catalog.head == head)
            by_formula[own] = len(np.unique(formula[own])) >= rules.min_groups
        draw = np.array([uniform(f"{rules.seed}:formula:{name}") for name in names])
        part[auto & by_formula] = _to_part(draw[formula[auto & by_formula]], rules)
    rest = np.flatnonzero(auto & ~by_formula)
    draws = [
        uniform(f"{rules.seed}:structure:{catalog.sources[catalog.head[s]]}:{catalog.file[s]}:{catalog.row[s]}")
        for s in rest
    ]
    part[rest] = _to_part(np.array(draws), rules)
    return part


def _to_part(draw: NDArray[np.float64], rules: SplitSection) -> NDArray[np.int8]:
    return np.where(draw < rules.val, VAL, np.where(draw < rules.val + rules.test, TEST, TRAIN)).astype(np.int8)
