"""Charges and multiplicities that cannot be, or hardly: counted and told, never changed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.block import Block
from atomsieve.structures.labels.tally import LabelTally

LARGE_CHARGE = 10.0
"""A total charge beyond this, and beyond one per atom, is hardly one (e)."""


def count_odd_conditions(
    block: Block,
    values: Mapping[str, NDArray[np.float64]],
    has: Mapping[str, NDArray[np.bool_]],
    tally: LabelTally,
) -> None:
    """Count structures whose total charge or multiplicity is odd. Nothing is changed.

    A multiplicity 2S+1 is a whole number from 1 on, at most one more than the electrons, and odd for an even number of
    electrons: atomic numbers summed, minus the total charge. Where no charge is stated the parity is that of the
    neutral structure, and the words say so.

    values, has : `charge [S]` and `spin [S]`, and which structures state them.
    """
    if not values:
        return
    nothing = np.zeros(len(block), bool)
    charged, multiple = has.get("charge", nothing), has.get("spin", nothing)
    charge = np.where(charged, values.get("charge", nothing.astype(float)), 0.0)
    spin = np.where(multiple, values.get("spin", nothing.astype(float)), 1.0)
    protons = np.zeros(len(block))
    filled = block.counts > 0
    if filled.any():
        protons[filled] = np.add.reduceat(block.numbers.astype(np.float64), block.ptr[:-1][filled])
    electrons = protons - charge

    def count(wrong: NDArray[np.bool_], what: str, shown: NDArray[np.float64]) -> None:
        if wrong.any():
            k = int(np.argmax(wrong))
            tally.doubt(what, int(wrong.sum()), f"{block.places[k]}: {shown[k]:g}")

    broken = charged & (charge != np.round(charge))
    count(broken, "a total charge that is no whole number", charge)
    count(charged & (electrons < 0), "a total charge above the sum of the atomic numbers", charge)
    large = (np.abs(charge) > np.maximum(LARGE_CHARGE, block.counts)) & (electrons >= 0)
    count(charged & large, f"a total charge beyond {LARGE_CHARGE:g} and beyond one per atom", charge)
    count(multiple & (spin == 0), "multiplicity 0, which is none (fairchem writes 0 where it was not set)", spin)
    count(multiple & (spin < 0), "a negative multiplicity", spin)
    whole = spin == np.round(spin)
    count(multiple & ~whole, "a multiplicity that is no whole number (2S+1 is meant)", spin)
    usable = multiple & whole & (spin >= 1) & ~broken & (electrons >= 0)
    count(usable & (spin > electrons + 1), "more unpaired electrons than electrons", spin)
    parity = usable & (np.mod(electrons + spin, 2) == 0)  # an even number of electrons needs an odd multiplicity
    count(parity & charged, "a multiplicity of the wrong parity for the number of electrons", spin)
    count(parity & ~charged, "a multiplicity of the wrong parity for the neutral structure (no charge is stated)", spin)
