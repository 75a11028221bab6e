"""Stability of relaxed structures: formation energies and hull distances of a head that has references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.gfm.manifest import weights_id
from atomsieve.predict import AnyPredictor
from atomsieve.stability.columns import COLUMNS, compute_columns
from atomsieve.stability.hull import HullFinder
from atomsieve.stability.phases import ReferenceSet, count_compositions, read_references, require_weights
from atomsieve.structures import StructureBatch

PREFIX = "stability."
Arrays = dict[str, NDArray[Any]]


def find_references(folder: str | Path | None, head: str) -> ReferenceSet | None:
    """Return the reference set of a head in an ensemble folder; None without one, or without a folder.

    Raises
    ------
    AtomSieveError
        if other weights computed it; DataError if it is damaged.
    """
    found = None if folder is None else read_references(folder, head)
    if folder is not None and found is not None:
        require_weights(found, weights_id(folder), str(folder))
    return found


def evaluate_members(
    predictor: AnyPredictor, batch: StructureBatch, head: str, max_atoms: int
) -> NDArray[np.float32] | None:
    """Return the energies of the members minus their mean [S,K], eV/atom; None where the predictor gives none.

    max_atoms : of one evaluation; structures follow each other as they are, so the result depends on it alone.
    """
    if "energy_members" not in predictor.capabilities.outputs or predictor.members < 2:
        return None
    out = np.full((len(batch), predictor.members), np.nan, np.float32)
    piece = (np.cumsum(batch.counts) - batch.counts) // max_atoms
    for k in np.unique(piece).tolist():
        own = np.flatnonzero(piece == k)
        found = predictor(batch.take(own), {"energy", "members"}, head=head).energy_members
        if found is None:
            return None
        each = (found / np.maximum(batch.counts[own], 1)).T
        out[own] = each - each.mean(1, keepdims=True)
    return out


def measure_stability(
    references: ReferenceSet, predictor: AnyPredictor, batch: StructureBatch, arrays: Arrays, head: str, max_atoms: int
) -> Arrays:
    """Return the columns of stability [S] of relaxed structures, under names that begin with `PREFIX`.

    arrays : energy, energy_std and sigma_energy [S] of the same structures. NaN without a result.
    """
    out: Arrays = {PREFIX + name: np.full(len(batch), np.nan) for name in COLUMNS}
    known = np.flatnonzero(np.isfinite(arrays["energy"]))
    if not len(known):
        return out
    chosen = batch.take(known)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = (arrays["sigma_energy"] / arrays["energy_std"])[known]
    found = compute_columns(
        HullFinder(references),
        count_compositions(chosen.ptr, chosen.numbers),
        arrays["energy"][known] / np.maximum(chosen.counts, 1),
        evaluate_members(predictor, chosen, head, max_atoms),
        factor,
    )
    for name, values in found.items():
        out[PREFIX + name][known] = values
    return out
