"""Columns of properties.csv: unit and meaning. `<name>_std` is the spread of `<name>` over the members."""

from __future__ import annotations

from collections.abc import Sequence

GENERAL: dict[str, tuple[str, str]] = {
    "rank": ("", "place in the selection, from 1"),
    "position": ("", "place of the structure in the input, from 0"),
    "id": ("", "id of the structure in the input"),
    "formula": ("", "Hill order"),
    "natoms": ("", "number of atoms"),
    "head": ("", "head whose level of theory is predicted"),
    "status": ("", "OK, or why a property is missing or doubtful; several joined by +"),
    "reason": ("", "the same as a sentence"),
    "relaxation": ("", "why the relaxation ended, or AS_GIVEN"),
    "steps": ("", "steps of the relaxation"),
    "max_force": ("eV/Angstrom", "what was compared with fmax at its end"),
    "energy_per_atom": ("eV/atom", "total energy / natoms"),
    "volume_per_atom": ("Angstrom^3/atom", "of the cell for which the properties are computed"),
    "volume_change": ("", "relative change of the volume by the relaxation"),
    "space_group": ("", "number of the space group, within symprec"),
}
EOS: dict[str, tuple[str, str]] = {
    "eos_volume": ("Angstrom^3/atom", "volume at the minimum of the equation of state"),
    "eos_volume_std": ("Angstrom^3/atom", "spread"),
    "eos_bulk_modulus": ("GPa", "bulk modulus there"),
    "eos_bulk_modulus_std": ("GPa", "spread"),
    "eos_bulk_modulus_derivative": ("", "its derivative by pressure"),
    "eos_bulk_modulus_derivative_std": ("", "spread"),
}
ELASTIC: dict[str, tuple[str, str]] = {
    "bulk_modulus_voigt": ("GPa", "bulk modulus of the elastic tensor after Voigt"),
    "bulk_modulus_voigt_std": ("GPa", "spread"),
    "bulk_modulus_vrh": ("GPa", "bulk modulus of the elastic tensor, mean of Voigt and Reuss"),
    "bulk_modulus_vrh_std": ("GPa", "spread"),
    "shear_modulus_vrh": ("GPa", "shear modulus, mean of Voigt and Reuss"),
    "shear_modulus_vrh_std": ("GPa", "spread"),
    "young_modulus": ("GPa", "9 K G / (3 K + G)"),
    "young_modulus_std": ("GPa", "spread"),
    "poisson_ratio": ("", "(3 K - 2 G) / (6 K + 2 G)"),
    "poisson_ratio_std": ("", "spread"),
    "universal_anisotropy": ("", "5 G_V / G_R + K_V / K_R - 6; 0 of an isotropic solid"),
    "universal_anisotropy_std": ("", "spread"),
    "smallest_elastic_eigenvalue": ("GPa", "of the elastic tensor in Voigt notation"),
    "smallest_elastic_eigenvalue_std": ("GPa", "spread"),
    "elastically_stable": ("", "all eigenvalues are positive, beyond noise"),
    "elastically_stable_share": ("", "share of the members for which they are"),
    "residual_stress": ("GPa", "largest component of the stress without strain"),
}
PHONONS: dict[str, tuple[str, str]] = {
    "min_frequency": ("THz", "lowest frequency at q-points that the supercell holds; imaginary ones are negative"),
    "min_frequency_std": ("THz", "spread"),
    "min_frequency_mesh": ("THz", "the same with a fine mesh of interpolated q-points"),
    "min_frequency_mesh_std": ("THz", "spread"),
    "max_frequency": ("THz", "highest frequency at q-points that the supercell holds"),
    "max_frequency_std": ("THz", "spread"),
    "zero_point_energy": ("eV/atom", "half a quantum of every real mode of the mesh"),
    "zero_point_energy_std": ("eV/atom", "spread"),
    "dynamically_stable": ("", "min_frequency is not below minus --imaginary"),
    "dynamically_stable_share": ("", "share of the members for which it is not"),
    "imaginary_modes": ("", "modes below minus --imaginary at the q-points of the supercell"),
    "modes": ("", "all modes there"),
    "supercell": ("", "repeats of the cell"),
    "supercell_atoms": ("", "its atoms"),
    "displacements": ("", "displaced supercells"),
}
OF_METHOD = {"eos": EOS, "elastic": ELASTIC, "phonons": PHONONS}
COLUMNS = GENERAL | EOS | ELASTIC | PHONONS
TEXTS = ("id", "formula", "head", "status", "reason", "relaxation", "supercell")
FLAGS = ("elastically_stable", "dynamically_stable")


def list_columns(what: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the columns of a table of some methods."""
    found = dict(GENERAL)
    for name in what:
        found |= OF_METHOD[name]
    return found


def describe_columns(what: Sequence[str]) -> dict[str, list[str]]:
    """Return kind, unit and meaning of the columns that a results folder takes over, by name.

    They are those of the methods: the others are known of every row.
    """
    found: dict[str, list[str]] = {}
    for method in what:
        for name, (unit, doc) in OF_METHOD[method].items():
            kind = "text" if name in TEXTS else "flag" if name in FLAGS else "number"
            found[name] = [kind, unit, doc]
    return found
