"""Sizes of energies against free atoms with all their electrons, and of distances against covalent radii."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.units import ENERGY, EV_PER_HARTREE

Floats = NDArray[np.float64]

LIGHTEST = (0.0, 0.5, 2.9037, 7.4781, 14.6674)
"""Energies that bind all electrons of H to Be, Hartree (without relativity: Chakravorty et al., Phys. Rev. A 47, 3649
(1993))."""
BONDS = 0.12
"""Typical energy of binding between atoms, Hartree per atom."""
HEAVY_ATOM = 5.0
"""Mean total energy per atom, Hartree, from which on it is much larger than what bonds add."""
FEWEST = 5
SAMPLED = 24
ATOMS, OTHERS = 24, 512
"""Structures, atoms of each, and possible neighbours whose distances are measured."""
NEIGHBOURS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(27, 3)
NOBLE = (2, 10, 18, 36, 54, 86)


def free_atom_energies() -> Floats:
    """Return the total energies `[119]` of free neutral atoms with all electrons, Hartree.

    From Z = 5 on E = -0.768745 Z^(7/3) + Z^2/2 - 0.269900 Z^(5/3): Thomas-Fermi with the corrections of Scott and of
    Schwinger (J. Schwinger, Phys. Rev. A 24, 2353 (1981)), within 1.5 % of Hartree-Fock. A rough factor for
    relativity, 1 + (Z/137)^2 / 4, leaves 1 to 2 % for the heaviest.
    """
    z = np.arange(119.0)
    energies = (-0.768745 * z ** (7 / 3) + z**2 / 2 - 0.269900 * z ** (5 / 3)) * (1 + (z / 137.036) ** 2 / 4)
    energies[: len(LIGHTEST)] = -np.array(LIGHTEST)
    return energies


@dataclass(frozen=True)
class EnergySize:
    """How the energies of a source compare with those of all electrons.

    Attributes
    ----------
    ratio : median of the energy over that of the free atoms, bound as usual, in eV: 1 for total energies in eV with
        all electrons; less with pseudopotentials; 1/27.2114 for total energies in Hartree.
    unit : the unit that fits total energies with all electrons within some per cent, or an empty string.
    impossible : the energies are lower than all electrons allow.
    structures : how many were compared.
    tolerance : how far a ratio may be from that of total energies with all electrons; 0 where nothing is sure.
    """

    ratio: float
    unit: str
    impossible: bool
    structures: int
    tolerance: float = 0.0


def compare_energies(batch: StructureBatch) -> EnergySize:
    """Compare the energies of one source with total energies of free atoms."""
    if batch.energy is None or batch.has_energy is None or not len(batch.numbers):
        return EnergySize(np.nan, "", False, 0)
    inside = np.add.reduceat(free_atom_energies()[batch.numbers], np.minimum(batch.ptr[:-1], len(batch.numbers) - 1))
    chosen = batch.has_energy & (batch.counts > 1)
    if not chosen.any():
        return EnergySize(np.nan, "", False, 0)
    count = batch.counts[chosen]
    expected = inside[chosen] - BONDS * count  # Hartree
    ratios = batch.energy[chosen] / (expected * EV_PER_HARTREE)
    ratio = float(np.median(ratios))
    tolerance = 0.02 + 0.1 * float(np.median(count / np.abs(expected)))
    heavy = float(np.median(np.abs(expected) / count)) > HEAVY_ATOM
    if len(ratios) < FEWEST:  # too few for a unit, but one energy is enough to be impossible
        impossible = heavy and bool(ratios.min() > 2)
        return EnergySize(ratio if impossible else np.nan, "", impossible, len(ratios))
    fits, sure = "", heavy and bool(np.mean(np.abs(ratios / ratio - 1) < 2 * tolerance) > 0.9)
    if sure:
        fits = next((unit for unit, size in ENERGY.items() if abs(ratio * size - 1) < tolerance), "")
    return EnergySize(ratio, fits, ratio > 1.1 + tolerance and heavy, int(chosen.sum()), tolerance if sure else 0.0)


def compare_distances(batch: StructureBatch) -> float:
    """Return the median, over structures, of the median distance of an atom to its neighbour that is nearest for its
    size, over the sum of their covalent radii: about 1 in Angstrom, 1.9 in Bohr, 0.1 in nm. NaN where too few tell.

    Noble gases, single atoms in large cells and the atoms of large structures beyond the first ones are not looked at.
    """
    from ase.data import covalent_radii

    rows = np.flatnonzero((batch.counts > 1) | batch.pbc.all(axis=1))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).astype(int)] if len(rows) else rows
    found = []
    for s in rows.tolist():
        span = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        radii, x, numbers = (
            covalent_radii[batch.numbers[span]],
            batch.positions[span].astype(float),
            batch.numbers[span],
        )
        first, other = x[:ATOMS], x[:OTHERS]
        if np.isin(numbers, NOBLE).any():
            continue
        shifts = np.unique(NEIGHBOURS * batch.pbc[s], axis=0) @ batch.cell[s]
        least = np.full(len(first), np.inf)
        for shift in shifts:
            distance = np.linalg.norm(first[:, None] - other[None] - shift, axis=2)
            distance[distance < 1e-6] = np.inf
            least = np.minimum(least, (distance / (radii[: len(first), None] + radii[None, : len(other)])).min(axis=1))
        found.append(float(np.median(least)))
    return float(np.median(found)) if len(found) >= FEWEST else np.nan
