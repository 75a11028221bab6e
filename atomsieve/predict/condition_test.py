"""The test of total charges and multiplicities for a model that is conditioned on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atomsieve.models import HeadSpec
from atomsieve.structures import StructureBatch


class ConditionTest:
    """Tests charge and multiplicity against what electrons allow, and against what a head was trained on.

    Parameters
    ----------
    heads : of the ensemble. Their statistics hold the charges and multiplicities of their training data, where these
        were counted: `charge_range`, `spin_range`, and `spin_fits_electrons`.
    raw : the encoder takes the numbers as they are, as HydraGNN does, whose own runs give 0 for a multiplicity that is
        not known.
    """

    def __init__(self, heads: Sequence[HeadSpec], *, raw: bool) -> None:
        unknown = [-np.inf, np.inf]
        found = [head.statistics for head in heads]
        self._charge = np.array([seen.get("charge_range") or unknown for seen in found], np.float64).reshape(-1, 2)
        self._spin = np.array([seen.get("spin_range") or unknown for seen in found], np.float64).reshape(-1, 2)
        self._fits = np.array([seen.get("spin_fits_electrons", True) for seen in found], bool)
        self._zero = np.array([raw or self._seen_zero(spin) for spin in self._spin], bool)

    @staticmethod
    def _seen_zero(spin: NDArray[np.float64]) -> bool:
        return bool(np.isfinite(spin[0]) and spin[0] <= 0)

    def find_impossible(self, batch: StructureBatch, head: int | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask [S]: a multiplicity that is no whole number of 1 or more, more charge or spin than electrons.

        A multiplicity of 0 is let through where the head was trained on it. NaN is not impossible, it is missing.

        head : its index, or that of each structure [S].
        """
        charge, spin = _conditions(batch)
        with np.errstate(invalid="ignore"):
            bad = (spin < 1) | (spin != np.round(spin))
            bad &= ~((spin == 0) & self._zero[head]) & ~np.isnan(spin)
            protons = _protons(batch)
            return bad | (np.abs(charge) > protons) | (spin - 1 > protons - charge)

    def find_outside(self, batch: StructureBatch, head: int | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask [S]: a charge or a multiplicity beyond those in training, or not of this number of electrons.

        A charge that is no whole number is of no number of electrons. Electrons are counted in structures without
        periodicity: whatever their number in a cell of a metal, its multiplicity is given as 1.
        """
        charge, spin = _conditions(batch)
        beyond = (charge < self._charge[head, ..., 0]) | (charge > self._charge[head, ..., 1])
        beyond |= (spin < self._spin[head, ..., 0]) | (spin > self._spin[head, ..., 1])
        with np.errstate(invalid="ignore"):
            parity = np.mod(_protons(batch) - charge + spin, 2)  # 2S+1 is odd for an even number of electrons
        odd = ((parity != 1) & ~batch.pbc.any(1) | (charge != np.round(charge))) & self._fits[head]
        zero = (spin == 0) & (self._spin[head, ..., 0] != 0)
        return np.asarray(beyond | odd | zero)


def _conditions(batch: StructureBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    missing = np.full(len(batch), np.nan)
    charge = missing if batch.charge is None else batch.charge.astype(np.float64)
    spin = missing if batch.spin is None else batch.spin.astype(np.float64)
    return charge, spin


def _protons(batch: StructureBatch) -> NDArray[np.float64]:
    """Return the sum of atomic numbers [S]."""
    counts = np.bincount(batch.structure_of_atom, weights=batch.numbers.astype(np.float64), minlength=len(batch))
    return counts.astype(np.float64)
