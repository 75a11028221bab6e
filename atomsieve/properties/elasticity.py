"""Elastic tensor by six independent strains, fitted by pymatgen, and the moduli that follow from it.

Strains and fit: M. de Jong et al., Sci. Data 2, 150009 (2015). Moduli: R. Hill, Proc. Phys. Soc. A 65, 349 (1952).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from atomsieve.properties.equation_of_state import EV_PER_CUBIC_ANGSTROM
from atomsieve.properties.evaluation import Array, Evaluation
from atomsieve.properties.options import PropertyOptions
from atomsieve.properties.outcome import Outcome

MODULI = (
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


def fit_tensor(deformations: Deformations, stresses: Array) -> Array:
    """Return the elastic tensor [6,6] GPa in Voigt notation, of stresses [D,3,3] eV/Angstrom^3 (Cauchy).

    The second Piola-Kirchhoff stress is fitted, which is conjugate to the Green-Lagrange strain.
    """
    from pymatgen.analysis.elasticity import ElasticTensor, Strain, Stress

    strains = [Strain(s) for s in deformations.strains]
    gradients = deformations.gradients[:-1]
    second = [Stress(s).piola_kirchoff_2(f) for s, f in zip(stresses[:-1], gradients, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = ElasticTensor.from_independent_strains(strains, second, eq_stress=Stress(stresses[-1]))
    return np.asarray(tensor.voigt_symmetrized.voigt, np.float64) * EV_PER_CUBIC_ANGSTROM


def find_moduli(tensor: Array) -> Array:
    """Return `MODULI` of an elastic tensor [6,6] GPa; NaN where a singular tensor has none."""
    from pymatgen.analysis.elasticity import ElasticTensor

    own = ElasticTensor.from_voigt(tensor)
    lowest = float(np.linalg.eigvalsh(tensor)[0])
    try:
        bulk, shear = float(own.k_vrh), float(own.g_vrh)
        anisotropy = float(own.universal_anisotropy)
    except np.linalg.LinAlgError:
        return np.array([np.nan] * 5 + [lowest])
    with np.errstate(divide="ignore", invalid="ignore"):
        young = np.divide(9 * bulk * shear, 3 * bulk + shear)
        poisson = np.divide(3 * bulk - 2 * shear, 2 * (3 * bulk + shear))
    return np.array([bulk, shear, young, poisson, anisotropy, lowest])


def find_elasticity(deformations: Deformations, found: Evaluation) -> Outcome:
    """Return the elastic properties of one structure, of its results under all deformations [D].

    The structure is elastically stable if all eigenvalues of the tensor are positive (M. Born, Math. Proc. Camb.
    Philos. Soc. 36, 160 (1940)).
    """
    assert found.stress is not None and found.stress_members is not None
    out = Outcome()
    tensor = fit_tensor(deformations, found.stress)
    each = [fit_tensor(deformations, s) for s in found.stress_members if np.isfinite(s).all()]
    members = np.array([find_moduli(t) for t in each]).reshape(-1, len(MODULI))
    for k, (name, value) in enumerate(zip(MODULI, find_moduli(tensor), strict=True)):
        out.add_number(name, float(value), members[:, k])
    out.add_verdict("elastically_stable", out.values["smallest_elastic_eigenvalue"] > 0, members[:, -1] > 0)
    residual = float(np.abs(found.stress[-1]).max()) * EV_PER_CUBIC_ANGSTROM
    out.values["residual_stress"] = residual
    out.details["elastic"] = {
        "tensor": tensor.tolist(),
        "residual_stress": (found.stress[-1] * EV_PER_CUBIC_ANGSTROM).tolist(),
    }
    if each:
        out.details["elastic"]["tensor_std"] = np.std(each, axis=0, ddof=1).tolist() if len(each) > 1 else None
    return out
