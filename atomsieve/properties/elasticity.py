"""Elastic tensor by six independent strains, fitted by pymatgen, and the moduli that follow from it.

Strains and fit: M. de Jong et al., Sci. Data 2, 150009 (2015). Moduli: R. Hill, Proc. Phys. Soc. A 65, 349 (1952).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atomsieve.properties.equation_of_state import EV_PER_CUBIC_ANGSTROM
from atomsieve.properties.evaluation import Array, Evaluation
from atomsieve.properties.options import PropertyOptions
from atomsieve.properties.outcome import Outcome, Problem
from atomsieve.structures import StructureBatch

if TYPE_CHECKING:
    from pymatgen.core import Structure

SINGULAR = 1e-3
"""An eigenvalue below this part of the largest one counts as none: it is within the noise of the strains."""
MODULI = (
    "bulk_modulus_voigt",
    "bulk_modulus_vrh",
    "shear_modulus_vrh",
    "young_modulus",
    "poisson_ratio",
    "universal_anisotropy",
    "smallest_elastic_eigenvalue",
)


@dataclass(frozen=True)
class Deformations:
    """Deformations: gradients [D,3,3], the last of which is none, and the Green-Lagrange strains [D-1,3,3]."""

    gradients: Array
    strains: Array


def list_deformations(options: PropertyOptions) -> Deformations:
    """Return the deformations of pymatgen's `DeformedStructureSet`, and the identity."""
    from pymatgen.analysis.elasticity import Strain

    gradients = []
    for indices, largest in (
        (((0, 0), (1, 1), (2, 2)), options.norm_strain),
        (((0, 1), (0, 2), (1, 2)), options.shear_strain),
    ):
        for index in indices:
            for amount in (-largest, -largest / 2, largest / 2, largest):
                gradients.append(Strain.from_index_amount(index, amount).get_deformation_matrix())
    strains = np.array([np.asarray(gradient.green_lagrange_strain) for gradient in gradients])
    return Deformations(np.array([*map(np.asarray, gradients), np.eye(3)]), strains)


def fit_tensor(deformations: Deformations, stresses: Array, structure: Structure, symprec: float) -> Array:
    """Return the elastic tensor [6,6] GPa in Voigt notation, of stresses [D,3,3] eV/Angstrom^3 (Cauchy).

    The second Piola-Kirchhoff stress is fitted, which is conjugate to the Green-Lagrange strain. The tensor is averaged
    over the point group of the structure.
    """
    from pymatgen.analysis.elasticity import ElasticTensor, Strain, Stress

    strains = [Strain(s) for s in deformations.strains]
    gradients = deformations.gradients[:-1]
    second = [Stress(s).piola_kirchoff_2(f) for s, f in zip(stresses[:-1], gradients, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = ElasticTensor.from_independent_strains(strains, second, eq_stress=Stress(stresses[-1]))
        tensor = tensor.voigt_symmetrized.fit_to_structure(structure, symprec)
    return np.asarray(tensor.voigt, np.float64) * EV_PER_CUBIC_ANGSTROM


def is_stable(tensor: Array) -> bool:
    """Return whether all eigenvalues of an elastic tensor [6,6] are positive beyond noise."""
    values = np.linalg.eigvalsh(tensor)
    return bool(values[0] > SINGULAR * abs(values[-1]))


def find_moduli(tensor: Array) -> Array:
    """Return `MODULI` of an elastic tensor [6,6] GPa.

    Reuss averages need the inverse: of an unstable or singular tensor all but Voigt's bulk modulus are NaN.
    """
    from pymatgen.analysis.elasticity import ElasticTensor

    own = ElasticTensor.from_voigt(tensor)
    lowest = float(np.linalg.eigvalsh(tensor)[0])
    if not is_stable(tensor):
        return np.array([float(own.k_voigt), *[np.nan] * 5, lowest])
    bulk, shear = float(own.k_vrh), float(own.g_vrh)
    young = 9 * bulk * shear / (3 * bulk + shear)
    poisson = (3 * bulk - 2 * shear) / (2 * (3 * bulk + shear))
    return np.array([float(own.k_voigt), bulk, shear, young, poisson, float(own.universal_anisotropy), lowest])


def find_elasticity(
    deformations: Deformations, found: Evaluation, batch: StructureBatch, options: PropertyOptions
) -> Outcome:
    """Return the elastic properties of one structure, of its results under all deformations [D].

    The structure is elastically stable if all eigenvalues of the tensor are positive (M. Born, Math. Proc. Camb.
    Philos. Soc. 36, 160 (1940)).
    """
    from pymatgen.core import Structure

    assert found.stress is not None and found.stress_members is not None
    out, numbers = Outcome(), batch.numbers.tolist()
    structure = Structure(batch.cell[0], numbers, np.asarray(batch.positions), coords_are_cartesian=True)
    tensor = fit_tensor(deformations, found.stress, structure, options.symprec)
    known = [s for s in found.stress_members if np.isfinite(s).all()]
    each = [fit_tensor(deformations, s, structure, options.symprec) for s in known]
    members = np.array([find_moduli(t) for t in each]).reshape(-1, len(MODULI))
    for k, (name, value) in enumerate(zip(MODULI, find_moduli(tensor), strict=True)):
        out.add_number(name, float(value), members[:, k])
    stable = is_stable(tensor)
    out.add_verdict("elastically_stable", stable, np.array([is_stable(t) for t in each], bool))
    if not stable:
        lowest = out.values["smallest_elastic_eigenvalue"]
        text = (
            f"elastic: the tensor has an eigenvalue of {lowest:.3g} GPa, so Reuss averages and what needs them are none"
        )
        out.problems.append((Problem.ELASTICALLY_UNSTABLE, text))
    residual = found.stress[-1] * EV_PER_CUBIC_ANGSTROM
    out.values["residual_stress"] = float(np.abs(residual).max())
    spread = np.std(each, axis=0, ddof=1).tolist() if len(each) > 1 else None
    out.details["elastic"] = {
        "tensor": tensor.tolist(),
        "tensor_std": spread,
        "residual_stress": residual.tolist(),
    }
    return out
