"""Says where energies, forces, stress and lengths of a source do not fit together or to their elements.

Nothing is corrected: a finding names the factor and the option that would fit. The checks look at a sample, and report
only what is sure; a source about which they say nothing may still be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.plausibility.magnitudes import EnergySize, compare_distances, compare_energies
from atomsieve.structures.plausibility.near_pairs import Slope, compare_forces, compare_stress
from atomsieve.structures.plausibility.units_that_fit import Fit, fit_forces, fit_stress, is_known_factor, name_factor
from atomsieve.structures.units import Units, energy_factor, length_factor

RIGHT = (0.75, 1.35)
"""Ratios of energy differences to work that count as 1."""
MANY = 30
"""Pairs from which on, if most agree, a ratio is reported that no pair of known units explains."""
OTHER_LENGTHS = ("bohr", "nm")


@dataclass(frozen=True)
class Finding:
    """Something about a source that does not fit.

    Attributes
    ----------
    source : its name, empty where there is none.
    what : "energy", "forces", "stress" or "length".
    text : a sentence.
    factor : the ratio found; 1 would fit.
    option : options of `data convert` that would fit, empty where none is known.
    """

    source: str
    what: str
    text: str
    factor: float
    option: str = ""

    def describe(self) -> str:
        """Return the finding as a line for people."""
        name = f"{self.source}: " if self.source else ""
        remedy = f"; these fit: {self.option}" if self.option else ""
        return f"{name}{self.text}{remedy}"


@dataclass(frozen=True)
class Comparison:
    """What was compared: distances (ratio to covalent radii), energies, and pairs of structures."""

    distances: float
    energies: EnergySize
    forces: Slope
    stress: Slope


def compare_source(batch: StructureBatch) -> Comparison:
    """Compare what can be compared in structures of one source."""
    return Comparison(
        compare_distances(batch), compare_energies(batch), compare_forces(batch)[0], compare_stress(batch)[0]
    )


def describe_comparison(found: Comparison, *, forces: bool) -> list[str]:
    """Return what was compared in words, with numbers, and what could not be. `forces`: some structures have forces."""
    out = []
    if np.isfinite(found.distances):
        out.append(f"distances {found.distances:.2f} times the covalent radii")
    if np.isfinite(found.energies.ratio) and abs(found.energies.ratio) > 0.01:  # less with pseudopotentials
        out.append(f"energies {found.energies.ratio:.3g} times those of all electrons")
    for name, slope, pairs in (
        ("forces", found.forces, "near structures"),
        ("stress", found.stress, "strained cells"),
    ):
        if slope.sure:
            out.append(f"energy differences {slope.value:.3g} times the work of the {name} ({slope.pairs} pairs)")
        elif name == "forces" and forces:
            out.append(f"too few pairs of {pairs} to compare the {name} with energies")
    return out


def check_source(name: str, batch: StructureBatch, applied: Units | None = None) -> list[Finding]:
    """Return what does not fit in structures of one source. `applied` are the units with which they were read."""
    applied = applied or Units()
    found: list[Finding] = []
    length = applied.length or "angstrom"
    ratio = compare_distances(batch)
    if fitting := _fit_length(ratio, applied):
        words = (
            f"distances between neighbours are {ratio:.2f} times the sums of their covalent radii "
            f"({len(batch):,} structures looked at)"
        )
        found.append(Finding(name, "length", words, ratio, f"--unit length={fitting}"))
        scale, length = length_factor(fitting) / applied.factor("length"), fitting
        batch = batch.replace(positions=batch.positions * scale, cell=batch.cell * scale)
    size, (slope, per_atom) = compare_energies(batch), compare_forces(batch)
    known = _known_energy(size, applied)
    wrong = slope.sure and not RIGHT[0] < slope.value < RIGHT[1]
    fits: list[Fit] = []
    fits_nothing = wrong and not is_known_factor(slope.value)
    if wrong:
        tried = [length, *(unit for unit in OTHER_LENGTHS if not fitting and _may_be(unit, ratio, applied))]
        options = (fit_forces(slope.value, applied, measured=length, length=unit, energy=known) for unit in tried)
        fits = next((found for found in options if found), [])
    if not applied.per_atom and _is_right(per_atom) and not _is_right(slope) and per_atom.agreement >= slope.agreement:
        fits = [
            Fit(f"--unit energy={applied.energy or 'eV'}/atom,forces={applied.forces or 'eV/angstrom'}", 0.0),
            *fits,
        ]
        slope, wrong = slope if slope.sure else per_atom, True
        found.append(_per_atom_finding(name, per_atom, fits, len(batch)))
    elif wrong and (fits or not fits_nothing or (slope.agreement > 0.8 and slope.pairs >= MANY)):
        found.append(_force_finding(name, slope, fits, len(batch)))
    elif known and energy_factor(known) != applied.factor("energy"):
        found.append(_energy_finding(name, size, known, slope, batch))
    if size.impossible and not known and not any(fit.energy not in ("eV", applied.energy) for fit in fits):
        words = (
            f"energies are {size.ratio:.3g} times those of all electrons of their atoms, lower than any method gives"
        )
        found.append(Finding(name, "energy", f"{words} ({size.structures:,} structures looked at)", size.ratio))
    if not fitting:
        found += _check_stress(name, batch, applied, slope, fits[0].energy if fits else known)
    return found


def _fit_length(ratio: float, applied: Units) -> str:
    """Return the unit of length that fits, or an empty string where the present one does, or nothing is sure."""
    if not np.isfinite(ratio) or 0.55 < ratio < 1.65:
        return ""
    for unit, low, high in (("bohr", 0.75, 1.2), ("nm", 0.75, 1.3), ("pm", 0.75, 1.3), ("angstrom", 0.75, 1.3)):
        scaled = ratio / applied.factor("length") * length_factor(unit)
        if low < scaled < high:
            return unit
    return ""


def _may_be(unit: str, ratio: float, applied: Units) -> bool:
    """Return True if distances in this unit would not look odd."""
    return 0.7 < ratio / applied.factor("length") * length_factor(unit) < 1.35


def _known_energy(size: EnergySize, applied: Units) -> str:
    """Return the unit in which total energies with all electrons fit, or an empty string."""
    names = ("eV", "hartree", "rydberg", "kcal/mol", "kJ/mol", "meV")
    raw = size.ratio / applied.factor("energy")
    return next((unit for unit in names if abs(raw * energy_factor(unit) - 1) < size.tolerance), "")


def _energy_finding(name: str, size: EnergySize, unit: str, slope: Slope, batch: StructureBatch) -> Finding:
    words = (
        f"energies are {name_factor(size.ratio)} times the total energies in eV of all electrons of their atoms "
        f"({size.structures:,} structures looked at), as if they were in {unit}"
    )
    option = f"--unit energy={unit}"
    if batch.forces is not None and not slope.sure:
        option += ",forces=UNIT"  # forces without a unit follow the energy, which is right only if they fit it now
    return Finding(name, "energy", words, size.ratio, option)


def _is_right(slope: Slope) -> bool:
    return slope.sure and RIGHT[0] < slope.value < RIGHT[1]


def _per_atom_finding(name: str, slope: Slope, fits: Sequence[Fit], looked_at: int) -> Finding:
    words = (
        "energies and forces do not fit: energy differences between near structures fit the work of the forces "
        f"if they are per atom ({slope.pairs:,} pairs of {looked_at:,} structures looked at)"
    )
    return Finding(name, "forces", words, slope.value, ", or ".join(fit.option for fit in fits))


def _force_finding(name: str, slope: Slope, fits: Sequence[Fit], looked_at: int) -> Finding:
    words = (
        f"energies and forces do not fit: energy differences between near structures are {name_factor(slope.value)} "
        f"times the work of the forces ({slope.pairs:,} pairs of {looked_at:,} structures looked at)"
    )
    return Finding(name, "forces", words, slope.value, ", or ".join(fit.option for fit in fits))


def _check_stress(name: str, batch: StructureBatch, applied: Units, forces: Slope, energy: str) -> list[Finding]:
    """Return what does not fit about the stress; `energy` is the unit of energy that fits, if one is known."""
    scale = forces.value if forces.sure else 1.0
    slope, virial = compare_stress(batch, scale)
    if not slope.sure and not virial.sure:
        return []
    if slope.sure and RIGHT[0] < slope.value < RIGHT[1]:
        return []
    where = f"({max(slope.pairs, virial.pairs):,} pairs of strained cells of {len(batch):,} structures looked at)"
    if virial.sure and RIGHT[0] < virial.value < RIGHT[1] and virial.agreement >= slope.agreement:
        words = f"the stress is a virial, minus stress times volume {where}"
        return [Finding(name, "stress", words, virial.value, "--virial-key with its name")]
    if not slope.sure:
        return []
    options = fit_stress(slope.value, applied, energy=energy or applied.energy or "eV")
    words = (
        f"energies and stress do not fit: energy differences are {name_factor(slope.value)} times the work of the "
        f"stress {where}"
    )
    return [Finding(name, "stress", words, slope.value, ", or ".join(fit.option for fit in options))]
