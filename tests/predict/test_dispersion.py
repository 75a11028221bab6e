"""D3 added to a predictor: equal to ASE's calculator of s-dftd3, slopes by finite differences, refusals."""

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from dftd3.ase import DFTD3

from atomsieve.calculators import GFMCalculator
from atomsieve.errors import UsageError
from atomsieve.gfm import save_gfm
from atomsieve.models import Ensemble, HeadSpec
from atomsieve.predict import Predictor, Status
from atomsieve.predict.dispersion import add_dispersion, enclose
from atomsieve.structures import StructureBatch
from atomsieve.testing import PredictorTests
from tests.helpers import tiny_ensemble

LEVELS = {"pbe": "PBE_VASP-PAW_520eV", "ts": "PBE0+TS", "unknown": "made up", "lda": "LDA", "cc": "CCSD(T)"}
WANT = {"energy", "forces", "stress", "spread", "members", "stress_members"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    plain = tiny_ensemble(2)
    known = {1: -13.0, 6: -1000.0, 8: -2000.0, 29: -3.5}
    heads = [
        HeadSpec(name=n, level_of_theory=text, references=known, scale=1.0, elements=dict.fromkeys(known, 9))
        for n, text in LEVELS.items()
    ]
    return save_gfm(tmp_path_factory.mktemp("d3") / "gfm", Ensemble(plain.config, heads, [1, 2]), default_head="pbe")


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.load(folder, precision="fp64")


def images():
    """A crystal, a slab without a third vector of which atoms lie below zero, a molecule."""
    rng = np.random.default_rng(0)
    found = [bulk("CuO", "rocksalt", a=4.2), fcc111("Cu", (2, 1, 2), a=3.7), molecule("CH3CH2OH")]
    found[1].positions[:, 2] -= 1
    for atoms in found:
        atoms.rattle(0.05, rng=rng)
    return found


class TestKit(PredictorTests):
    @pytest.fixture(autouse=True)
    def _make(self, folder):
        self.made = add_dispersion(Predictor.load(folder), "auto")

    def make_predictor(self):
        return self.made


def test_the_term_is_that_of_the_library_for_the_mean_and_every_member(predictor):
    batch = StructureBatch.from_ase(images())
    plain, found = predictor(batch, WANT), add_dispersion(predictor, "auto")(batch, WANT)
    for s, atoms in enumerate(images()):
        if not atoms.cell[2].any() and atoms.pbc.any():
            atoms.cell[2] = [0, 0, 40]
            atoms.positions[:, 2] += 10  # the library wraps atoms along z, too
        atoms.calc = DFTD3(method="pbe", damping="d3bj")
        own = slice(batch.ptr[s], batch.ptr[s + 1])
        exact = atoms.get_potential_energy()
        assert exact < -0.05
        np.testing.assert_allclose(found.energy[s] - plain.energy[s], exact, rtol=1e-6)
        np.testing.assert_allclose(found.energy_members[:, s] - plain.energy_members[:, s], exact, rtol=1e-6)
        np.testing.assert_allclose((found.forces - plain.forces)[own], atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(
            (found.forces_members - plain.forces_members)[:, own], [atoms.get_forces()] * 2, atol=1e-7
        )
        if atoms.pbc.all():
            exact = atoms.get_stress(voigt=False)
            np.testing.assert_allclose((found.stress - plain.stress)[s], exact, atol=1e-8)
            np.testing.assert_allclose((found.stress_members - plain.stress_members)[:, s], [exact] * 2, atol=1e-8)
    np.testing.assert_allclose(found.energy_std, plain.energy_std)


def test_forces_and_stress_are_slopes_of_the_energy(folder):
    calc = GFMCalculator(folder, head="pbe", dispersion="auto")
    atoms = bulk("CuO", "rocksalt", a=4.2)
    atoms.rattle(0.1, seed=1)
    atoms.calc = calc
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-5)
    # s-dftd3 cuts its sums off sharply: some pairs pass the cutoff under a strain
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-3), atol=3e-4)
    with_term, without = atoms.get_stress(), GFMCalculator(folder, head="pbe").get_stress(atoms)
    assert np.abs(with_term - without).max() > 0.01


def test_the_calculator_states_the_term_and_keeps_it_when_pickled(folder):
    import pickle

    calc, plain = GFMCalculator(folder, dispersion="auto"), GFMCalculator(folder)
    assert "dispersion" not in plain.parameters
    assert calc.parameters["dispersion"] == "auto"
    again = pickle.loads(pickle.dumps(calc))
    atoms = bulk("CuO", "rocksalt", a=4.2)
    assert again.get_potential_energy(atoms) == calc.get_potential_energy(atoms) < plain.get_potential_energy(atoms)
    assert calc.predictor.describe()["levels_of_theory"]["pbe"].endswith("+ D3(BJ)")
    assert calc.predictor.ensemble_id != plain.predictor.ensemble_id
    assert calc.predictor.note("pbe") == "D3(BJ) of PBE dispersion is added to head pbe"


@pytest.mark.parametrize(
    ("head", "functional", "said"),
    [
        ("ts", "auto", "has dispersion in it already (TS)"),
        ("ts", "PBE0", "has dispersion in it already (TS)"),
        ("cc", "auto", "CCSD(T)"),
        ("unknown", "auto", "name the functional"),
        ("lda", "auto", "no parameters for LDA"),
        ("pbe", "B3LYP", "is not of functional B3LYP"),
        ("pbe", "PBEE", "did you mean 'PBE'"),
    ],
)
def test_levels_that_have_dispersion_or_no_parameters_are_refused(predictor, head, functional, said):
    with pytest.raises(UsageError) as caught:
        add_dispersion(predictor, functional, head)
    assert said in str(caught.value)


def test_an_unknown_level_takes_a_named_functional(predictor):
    assert add_dispersion(predictor, "pbesol", "unknown").term == "D3(BJ) of PBEsol"
    assert add_dispersion(predictor, None) is predictor


def test_bad_structures_keep_their_status(predictor):
    batch = StructureBatch.from_ase([bulk("Fe"), bulk("Cu")])
    found = add_dispersion(predictor, "auto")(batch, {"energy", "forces"})
    assert found.status.tolist() == [Status.UNSEEN_ELEMENT, Status.OK]
    assert np.isnan(found.energy[0])
    assert np.isnan(found.forces[0]).all()
    assert np.isfinite(found.forces[1]).all()


def test_cells_of_slabs_and_chains_hold_their_atoms():
    cell, heights = np.array([[3.0, 0, 0], [1, 4, 0], [0, 0, 0]]), np.array([[0, 0, -2.0], [1, 1, 3.0]])
    filled, moved = enclose(cell, np.array([True, True, False]), heights)
    assert abs(np.linalg.det(filled)) == pytest.approx(12 * 15)
    np.testing.assert_allclose(np.abs(np.diff(moved, axis=0)), [[1, 1, 5]])
    assert (np.linalg.solve(filled.T, moved.T)[2] > 0).all()
    chain, moved = enclose(np.diag([0.0, 2.0, 0.0]), np.array([False, True, False]), heights)
    inside = np.linalg.solve(chain.T, moved.T)[[0, 2]]
    assert ((inside > 0) & (inside < 1)).all()
