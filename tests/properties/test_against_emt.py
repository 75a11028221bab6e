"""Properties by batches equal those that ASE, pymatgen and phonopy find one structure after the other."""

import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from ase.stress import voigt_6_to_full_3x3_stress
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms
from pymatgen.analysis.elasticity import DeformedStructureSet, ElasticTensor, Strain, Stress
from pymatgen.io.ase import AseAtomsAdaptor

from tests.properties.emt import FACTORS, METALS

SPREAD = FACTORS.std(ddof=1)


def relaxed(computed, k):
    """The relaxed structure that the properties are of, with EMT."""
    from ase import Atoms

    found = computed.found[k]["structure"]
    atoms = Atoms(found["numbers"], found["positions"], cell=found["cell"], pbc=True)
    atoms.calc = EMT()
    return atoms


@pytest.mark.parametrize("k", range(len(METALS)), ids=list(METALS))
class TestOneByOne:
    def test_relaxation_ends_at_a_minimum_with_the_symmetry_kept(self, computed, k):
        atoms, values = relaxed(computed, k), computed.found[k]["values"]
        assert np.abs(atoms.get_stress()).max() < 1e-4
        assert (values["status"], values["relaxation"], values["space_group"]) == ("OK", "CONVERGED", 225)
        assert values["energy_per_atom"] == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=1e-10)

    def test_equation_of_state_is_that_of_ase(self, computed, k):
        atoms, values = relaxed(computed, k), computed.found[k]["values"]
        volumes, energies, cell = [], [], atoms.cell.array.copy()
        for relative in np.linspace(0.94, 1.06, 7):
            atoms.set_cell(cell * relative ** (1 / 3), scale_atoms=True)
            volumes.append(atoms.get_volume())
            energies.append(atoms.get_potential_energy())
        v0, _, bulk = EquationOfState(volumes, energies, "birchmurnaghan").fit()
        assert values["eos_volume"] == pytest.approx(v0, rel=1e-5)
        assert values["eos_bulk_modulus"] == pytest.approx(bulk / units.GPa, rel=1e-4)
        assert values["eos_bulk_modulus_std"] == pytest.approx(SPREAD * values["eos_bulk_modulus"], rel=1e-5)
        assert values["eos_volume_std"] == pytest.approx(0, abs=1e-6)

    def test_elastic_tensor_is_that_of_pymatgens_own_loop(self, computed, k):
        atoms, values = relaxed(computed, k), computed.found[k]["values"]
        whole = DeformedStructureSet(AseAtomsAdaptor.get_structure(atoms), (-0.01, -0.005, 0.005, 0.01))
        strains, stresses = [], []
        for deformation, structure in zip(whole.deformations, whole, strict=True):
            image = AseAtomsAdaptor.get_atoms(structure)
            image.calc = EMT()
            cauchy = Stress(voigt_6_to_full_3x3_stress(image.get_stress()))
            strains.append(Strain(deformation.green_lagrange_strain))
            stresses.append(cauchy.piola_kirchoff_2(deformation))
        exact = ElasticTensor.from_independent_strains(strains, stresses).voigt_symmetrized / units.GPa
        tensor = ElasticTensor(exact).fit_to_structure(AseAtomsAdaptor.get_structure(atoms), 1e-3)
        found = computed.found[k]["details"]["elastic"]
        np.testing.assert_allclose(found["tensor"], tensor.voigt, atol=1e-3)
        np.testing.assert_allclose(found["tensor_std"], SPREAD * np.abs(tensor.voigt), atol=1e-3)
        assert values["bulk_modulus_vrh"] == pytest.approx(tensor.k_vrh, rel=1e-5)
        assert values["shear_modulus_vrh"] == pytest.approx(tensor.g_vrh, rel=1e-5)
        assert values["young_modulus"] == pytest.approx(tensor.y_mod / 1e9, rel=1e-5)
        assert values["poisson_ratio"] == pytest.approx(tensor.homogeneous_poisson, rel=1e-5)
        assert values["universal_anisotropy"] == pytest.approx(tensor.universal_anisotropy, abs=1e-4)
        assert values["bulk_modulus_vrh_std"] == pytest.approx(SPREAD * tensor.k_vrh, rel=1e-5)
        assert values["poisson_ratio_std"] == pytest.approx(0, abs=1e-8)
        assert (values["elastically_stable"], values["elastically_stable_share"]) == (True, 1.0)

    def test_both_ways_to_the_bulk_modulus_agree(self, computed, k):
        values = computed.found[k]["values"]
        assert values["bulk_modulus_vrh"] == pytest.approx(values["eos_bulk_modulus"], rel=0.03)

    def test_phonons_are_those_of_phonopy_with_forces_one_by_one(self, computed, k):
        atoms, values = relaxed(computed, k), computed.found[k]["values"]
        unit = PhonopyAtoms(symbols=atoms.get_chemical_symbols(), cell=atoms.cell.array, positions=atoms.positions)
        repeats = [int(n) for n in values["supercell"].split("x")]
        phonopy = Phonopy(unit, np.diag(repeats), primitive_matrix="auto", symprec=1e-3)
        phonopy.generate_displacements(distance=0.01)
        forces = []
        for cell in phonopy.supercells_with_displacements:
            from ase import Atoms

            image = Atoms(cell.symbols, cell.positions, cell=cell.cell, pbc=True)
            image.calc = EMT()
            forces.append(image.get_forces())
        phonopy.forces = forces
        phonopy.produce_force_constants(show_drift=False)
        phonopy.symmetrize_force_constants(show_drift=False)
        details = computed.found[k]["details"]["phonons"]
        phonopy.run_qpoints(details["q_points"])
        exact = phonopy.qpoints.frequencies
        np.testing.assert_allclose(details["frequencies"], exact, atol=1e-4)
        assert len(details["q_points"]) == np.prod(repeats)
        assert values["min_frequency"] == pytest.approx(np.sort(exact.ravel())[3], abs=1e-4)
        assert values["max_frequency"] == pytest.approx(exact.max(), abs=1e-4)
        scaled = np.sqrt(FACTORS).std(ddof=1)  # a frequency goes with the root of the forces
        assert values["max_frequency_std"] == pytest.approx(scaled * exact.max(), rel=1e-4)
        assert (values["dynamically_stable"], values["dynamically_stable_share"]) == (True, 1.0)
        assert values["imaginary_modes"] == 0
        phonopy.run_mesh(50.0)
        phonopy.run_thermal_properties(t_min=0, t_max=0, t_step=1, exclude_gamma_acoustic=True)
        zero = phonopy.thermal_properties.zero_point_energy / units.mol * units.kJ
        assert values["zero_point_energy"] == pytest.approx(zero, rel=1e-4)


def test_a_crystal_that_is_no_minimum_is_unstable(tmp_path):
    """Copper in the bcc structure: elastically unstable (tetragonal shear), with imaginary phonons in EMT."""
    from ase.build import bulk
    from ase.io import write

    from atomsieve.properties.options import PropertyOptions
    from atomsieve.properties.run import run_properties
    from tests.properties.emt import EMTPredictor

    write(tmp_path / "bcc.extxyz", bulk("Cu", "bcc", a=2.86))
    options = PropertyOptions(what=("elastic", "phonons"), relax=False, clamped=True, supercell_length=6.0)
    found = run_properties(tmp_path / "bcc.extxyz", options, predictor=EMTPredictor(), out=tmp_path / "out")
    values = found.found[0]["values"]
    assert (values["relaxation"], values["elastically_stable"], values["dynamically_stable"]) == (
        "AS_GIVEN",
        False,
        False,
    )
    assert values["smallest_elastic_eigenvalue"] < 0
    assert values["status"] == "ELASTICALLY_UNSTABLE"
    assert values["bulk_modulus_vrh"] is None
    assert values["bulk_modulus_voigt"] > 100
    assert values["min_frequency"] < -0.1
    assert values["imaginary_modes"] > 0
    assert values["dynamically_stable_share"] == 0
