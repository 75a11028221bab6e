"""The rows of structures: filled in from a prediction, or without numbers where there is no result."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.prediction import Prediction
from atomsieve.predict.status import Status
from atomsieve.screen.results.columns import MEASURED
from atomsieve.structures import StructureBatch

Rows = NDArray[Any]
"""Rows of dtype `atomsieve.screen.results.columns.ROW`."""


def fill_rows(rows: Rows, batch: StructureBatch, prediction: Prediction) -> Rows:
    """Return `rows` [S] with a prediction entered; rows with a bad status have NaN in every measured column."""
    rows = rows.copy()
    natoms = np.maximum(batch.counts, 1)
    rows["energy"] = prediction.energy
    rows["energy_per_atom"] = prediction.energy / natoms
    rows["energy_std"] = prediction.energy_std
    for name, per_structure in (
        ("sigma_energy", prediction.sigma_energy),
        ("interval_energy", prediction.interval_energy),
        ("distance", prediction.distance),
    ):
        rows[name] = np.nan if per_structure is None else per_structure
    for name, per_atom in (
        ("max_force", prediction.forces),
        ("max_force_std", prediction.forces_std),
        ("sigma_force", prediction.sigma_forces),
    ):
        if per_atom is not None:
            sizes = np.linalg.norm(per_atom, axis=1) if per_atom.ndim == 2 else per_atom
            rows[name] = max_per_structure(sizes, batch)
    rows["status"] = prediction.status
    broken = ~np.isfinite(rows["energy"])
    if prediction.forces is not None:
        broken |= ~np.isfinite(rows["max_force"])
    rows["status"][broken & (rows["status"] == Status.OK)] = Status.NAN_OUTPUT
    rows["outside"] = prediction.outside
    rows["in_domain"] = prediction.in_domain
    bad = rows["status"] != Status.OK
    rows[bad] = clear_numbers(rows[bad])
    for name in MEASURED:  # one bit pattern for all NaN
        rows[name][np.isnan(rows[name])] = np.nan
    return rows


def fill_members(rows: Rows, prediction: Prediction, members: int) -> NDArray[np.float32]:
    """Return the energy [S,K] eV/atom of each of K members minus that of the row, for `rows` filled by `fill_rows`.

    NaN where a row has no result, and for members that did not compute (a cascade screens by some of them first).
    """
    found = np.full((len(rows), members), np.nan, np.float32)
    energies = prediction.energy_members
    if energies is not None:
        natoms = np.maximum(rows["natoms"], 1).astype(np.float64)
        found[:, : len(energies)] = ((energies - rows["energy"]) / natoms).T
    found[np.isnan(found)] = np.nan  # one bit pattern for all NaN
    return found


def clear_numbers(rows: Rows, status: int | None = None) -> Rows:
    """Return `rows` with NaN in every measured column and outside the domain, with `status` if given."""
    rows = rows.copy()
    for name in MEASURED:
        rows[name] = np.nan
    rows["in_domain"] = False
    if status is not None:
        rows["status"] = status
    return rows


def max_per_structure(values: NDArray[Any], batch: StructureBatch) -> NDArray[np.float64]:
    """Return the largest value [S] over the atoms of each structure; NaN where there is no atom or a NaN."""
    out = np.full(len(batch), np.nan)
    filled = batch.counts > 0
    if filled.any():
        out[filled] = np.maximum.reduceat(values, batch.ptr[:-1][filled])
    return out
