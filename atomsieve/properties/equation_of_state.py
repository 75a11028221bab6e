"""Equation of state: energies of scaled cells, fitted by pymatgen with the Birch-Murnaghan form.

F. Birch, Phys. Rev. 71, 809 (1947), third order.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from atomsieve.properties.evaluation import Array, Evaluation
from atomsieve.properties.options import PropertyOptions
from atomsieve.properties.outcome import Outcome, Problem

EV_PER_CUBIC_ANGSTROM = 160.2176634
"""GPa (exact, by the elementary charge)."""


def list_scalings(options: PropertyOptions) -> tuple[Array, Array]:
    """Return relative volumes [P] and the deformation gradients [P,3,3] that lead to them."""
    relative = np.linspace(1 - options.eos_range, 1 + options.eos_range, options.eos_points)
    return relative, np.cbrt(relative)[:, None, None] * np.eye(3)


def fit_birch_murnaghan(volumes: Array, energies: Array) -> tuple[float, float, float, float] | None:
    """Return V0 (Angstrom^3), B0 (GPa), B0', E0 (eV) of one curve; None if its minimum is not among the volumes."""
    from pymatgen.analysis.eos import BirchMurnaghan, EOSError

    if not np.isfinite(energies).all():
        return None
    fit = BirchMurnaghan(volumes.tolist(), energies.tolist())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit.fit()
    except EOSError:
        return None
    if not (volumes.min() <= fit.v0 <= volumes.max() and np.isfinite(fit.b0)):
        return None
    return float(fit.v0), float(fit.b0) * EV_PER_CUBIC_ANGSTROM, float(fit.b1), float(fit.e0)


def find_equation(volumes: Array, found: Evaluation, natoms: int) -> Outcome:
    """Return the equation of state of one structure; volumes [P] Angstrom^3, and results at them.

    The spread is that of the members' own fits; a member without a minimum among the volumes has none.
    """
    out = Outcome()
    mean = fit_birch_murnaghan(volumes, found.energy)
    out.details["eos"] = {"volume": volumes.tolist(), "energy": found.energy.tolist()}
    if mean is None:
        out.problems.append(
            (Problem.NO_MINIMUM, f"eos: no minimum of the energy from {volumes.min():.2f} to {volumes.max():.2f} A^3")
        )
        return out
    none = (np.nan, np.nan, np.nan, np.nan)
    members: Any = np.array([fit_birch_murnaghan(volumes, e) or none for e in found.energy_members]).reshape(-1, 4)
    out.details["eos"]["members_with_minimum"] = int(np.isfinite(members[:, 0]).sum())
    out.add_number("eos_volume", mean[0] / natoms, members[:, 0] / natoms)
    out.add_number("eos_bulk_modulus", mean[1], members[:, 1])
    out.add_number("eos_bulk_modulus_derivative", mean[2], members[:, 2])
    return out
