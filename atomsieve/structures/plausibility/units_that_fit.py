"""Units that explain a ratio of energy differences to work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atomsieve.structures.units import (
    ANGSTROM_PER_BOHR,
    ENERGY,
    EV_PER_HARTREE,
    Units,
    energy_factor,
    force_factor,
    length_factor,
    stress_factor,
)

CLOSE = 0.06
"""A ratio is explained by units whose own ratio differs by less than this part."""
NEXT = 0.02
"""Explanations that fit worse than the best one by more than this part are not named."""
SHOWN = 2

FORCE_UNITS = (
    ("eV", "eV/angstrom"),
    ("eV", "hartree/bohr"),
    ("hartree", "eV/angstrom"),
    ("hartree", "hartree/bohr"),
    ("eV", "kcal/mol/angstrom"),
    ("kcal/mol", "eV/angstrom"),
    ("kcal/mol", "kcal/mol/angstrom"),
    ("hartree", "hartree/angstrom"),
    ("eV", "hartree/angstrom"),
    ("rydberg", "rydberg/bohr"),
    ("eV", "rydberg/bohr"),
    ("rydberg", "eV/angstrom"),
    ("hartree", "kcal/mol/angstrom"),
    ("kcal/mol", "hartree/bohr"),
    ("kJ/mol", "kJ/mol/nm"),
    ("kJ/mol", "eV/angstrom"),
    ("eV", "kJ/mol/angstrom"),
    ("eV", "kJ/mol/nm"),
    ("kJ/mol", "kJ/mol/angstrom"),
    ("eV", "eV/bohr"),
    ("meV", "eV/angstrom"),
    ("eV", "meV/angstrom"),
)
"""Units of energies and forces that come together in practice, the usual ones first."""
STRESS_UNITS = ("eV/angstrom^3", "GPa", "kbar", "hartree/bohr^3", "rydberg/bohr^3", "bar", "Pa")

KNOWN_FACTORS = (
    (EV_PER_HARTREE * ANGSTROM_PER_BOHR, "27.2114 x 0.529177"),
    (1 / (EV_PER_HARTREE * ANGSTROM_PER_BOHR), "1 / (27.2114 x 0.529177)"),
    (ANGSTROM_PER_BOHR**-2, "1 / 0.529177^2, as of forces that were multiplied by 0.529177 in place of divided"),
    (ANGSTROM_PER_BOHR**2, "0.529177^2, as of forces that were divided by 0.529177 twice"),
    (ANGSTROM_PER_BOHR, "0.529177"),
    (1 / ANGSTROM_PER_BOHR, "1 / 0.529177"),
    (EV_PER_HARTREE, "27.2114"),
    (1 / EV_PER_HARTREE, "1 / 27.2114"),
    (EV_PER_HARTREE / 2, "13.6057"),
    (2 / EV_PER_HARTREE, "1 / 13.6057"),
    (EV_PER_HARTREE / ANGSTROM_PER_BOHR, "51.4221"),
    (ANGSTROM_PER_BOHR / EV_PER_HARTREE, "1 / 51.4221"),
    (ENERGY["kcal/mol"], "0.0433641"),
    (1 / ENERGY["kcal/mol"], "23.0605"),
    (ENERGY["kj/mol"], "0.0103643"),
    (1 / ENERGY["kj/mol"], "96.4853"),
    (1 / stress_factor("GPa"), "160.2177"),
    (stress_factor("GPa"), "1 / 160.2177"),
    (1 / stress_factor("kbar"), "1602.177"),
    (stress_factor("kbar"), "1 / 1602.177"),
    (2.0, "2"),
    (0.5, "1 / 2"),
    (1000.0, "1000"),
    (0.001, "1 / 1000"),
)


@dataclass(frozen=True)
class Fit:
    """Units that explain a ratio: what the option would say, and how far the ratio is from theirs, as a part."""

    option: str
    off: float
    energy: str = ""


def is_known_factor(value: float) -> bool:
    """Return True if a ratio is near a known factor between units, or -1."""
    return any(abs(np.log(abs(value) / factor)) < CLOSE for factor in (1.0, *(known for known, _ in KNOWN_FACTORS)))


def name_factor(value: float) -> str:
    """Return a factor in figures, with the known one it is near to: `0.03672 (1 / 27.2114)`."""
    near = next((word for factor, word in KNOWN_FACTORS if abs(np.log(abs(value) / factor)) < CLOSE), "")
    if abs(value + 1) < CLOSE:
        return "-1 (the sign)"
    if near:
        return f"{value:.4g} ({'- ' if value < 0 else ''}{near})"
    return f"{value:.4g}"


def fit_forces(slope: float, applied: Units, *, measured: str, length: str, energy: str = "") -> list[Fit]:
    """Return units of energies and forces with which the ratio would be 1, the best first.

    slope : energy difference over work, in the units that were applied, and with positions in the unit `measured`.
    length : the unit of length to be tried.
    energy : the unit of energy that is known to fit, if any is.
    """
    raw = slope * applied.factor("forces") * length_factor(measured) / applied.factor("energy")
    fits = []
    for e, f in FORCE_UNITS:
        if energy and energy_factor(e) != energy_factor(energy):
            continue
        for sign in (1, -1):
            expected = sign * force_factor(f) * length_factor(length) / energy_factor(e)
            if raw * expected > 0 and (off := abs(float(np.log(raw / expected)))) < CLOSE:
                fits.append(Fit(f"--unit energy={e},{_length(length)}forces={'-' if sign < 0 else ''}{f}", off, e))
    if fits and abs(slope + 1) < 0.3 and energy_factor(fits[0].energy) == applied.factor("energy"):
        return fits[:1]  # nothing but the sign
    best = _best(fits)
    present = [fit for fit in best if energy_factor(fit.energy) == applied.factor("energy")]
    return present if best and best[0] in present else best  # fewer changes explain it as well


def fit_stress(slope: float, applied: Units, *, energy: str) -> list[Fit]:
    """Return units and signs of the stress with which the ratio would be 1, the best first.

    energy : the unit of energy that fits.
    """
    raw = slope * applied.factor("stress") * energy_factor(energy) / applied.factor("energy")
    fits = []
    for unit in STRESS_UNITS:
        for sign in (1, -1):
            expected = sign * stress_factor(unit)
            if raw * expected > 0 and (off := abs(float(np.log(raw / expected)))) < CLOSE:
                words = list(_stress_words(unit, sign, applied))
                fits.append(Fit(" ".join(words), off))
    return _best(fits)


def _stress_words(unit: str, sign: int, applied: Units) -> Iterator[str]:
    if stress_factor(unit) != stress_factor(applied.stress or "eV/angstrom^3"):
        yield f"--unit stress={unit}"
    if sign != (applied.stress_sign or 1):
        yield f"--stress-sign {sign}"


def _length(length: str) -> str:
    return "" if length_factor(length) == 1 else f"length={length},"


def _best(fits: list[Fit]) -> list[Fit]:
    """Return the fits about as good as the best one, the usual units first."""
    if not fits:
        return []
    least = min(fit.off for fit in fits)
    return [fit for fit in fits if fit.off < least + NEXT][:SHOWN]
