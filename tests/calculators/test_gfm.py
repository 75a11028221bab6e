"""GFMCalculator keeps ASE's conventions, and its numbers are those of the Predictor and of finite differences."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import (
    CalculationFailed,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
    compare_atoms,
)
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from pymatgen.core import Molecule
from pymatgen.io.ase import AseAtomsAdaptor

from atomsieve.calculators import GFMCalculator, Guard, Stop, relax
from atomsieve.gfm import save_gfm
from atomsieve.models import Ensemble
from atomsieve.predict import Predictor
from atomsieve.structures import StructureBatch
from tests.helpers import tiny_ensemble, tiny_gfm

ALL = {
    "energy",
    "free_energy",
    "energies",
    "forces",
    "stress",
    "in_domain",
    "energy_std",
    "energy_ensemble",
    "forces_std",
    "forces_ensemble",
}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """What each evaluation of the ensemble was asked for: (forces, stress)."""
    seen: list[tuple[bool, bool]] = []
    forward = Ensemble.forward

    def counted(self, *args, **kwargs):
        seen.append((kwargs["forces"], kwargs["stress"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Ensemble, "forward", counted)
    return seen


# -- numbers -------------------------------------------------------------------------------------------------------


def test_equals_the_predictor(make, predictor, copper: Atoms) -> None:
    calc = make()
    copper.calc = calc
    want = {"energy", "forces", "stress", "spread", "members", "energies"}
    p = predictor(StructureBatch.from_ase(copper), want, head="metal")
    s = p.stress[0]
    expected = {
        "energy": p.energy[0],
        "free_energy": p.energy[0],
        "energies": p.atom_energies,
        "forces": p.forces,
        "stress": [s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]],
        "in_domain": p.in_domain[0],
        "energy_std": p.energy_std[0],
        "energy_ensemble": p.energy_members[:, 0],
        "forces_std": p.forces_std,
        "forces_ensemble": p.forces_members,
    }
    assert set(calc.implemented_properties) == set(expected) == ALL
    for name, value in expected.items():
        assert np.allclose(calc.get_property(name, copper), value, rtol=1e-12, atol=1e-12), name
    assert np.isclose(copper.get_potential_energies().sum(), copper.get_potential_energy())
    ensemble = calc.get_property("forces_ensemble", copper)
    assert ensemble.shape == (3, 8, 3)
    assert np.allclose(ensemble.std(0, ddof=1), calc.get_property("forces_std", copper))
    assert np.isclose(calc.get_property("energy_ensemble").std(ddof=1), calc.get_property("energy_std"))


def test_forces_and_stress_are_derivatives(make, copper: Atoms) -> None:
    copper.calc = make()
    assert np.allclose(copper.get_forces(), calculate_numerical_forces(copper, eps=1e-4), atol=2e-7)
    assert np.allclose(copper.get_stress(), calculate_numerical_stress(copper, eps=1e-5), atol=2e-8)
    ethanol = molecule("CH3CH2OH")
    ethanol.calc = make("organic")
    assert np.allclose(ethanol.get_forces(), calculate_numerical_forces(ethanol, eps=1e-4), atol=2e-7)


def test_forces_do_not_depend_on_wrapping_or_the_skin(make, copper: Atoms) -> None:
    plain = make()
    copper.calc = plain
    energy, forces = copper.get_potential_energy(), copper.get_forces()
    for skin in (0.0, 0.7):
        moved = copper.copy()
        moved.positions += moved.cell[0] * 3 - moved.cell[2]
        moved.calc = make(skin=skin)
        assert np.isclose(moved.get_potential_energy(), energy, rtol=0, atol=1e-9)
        assert np.allclose(moved.get_forces(), forces, atol=1e-9)


# -- what is given -------------------------------------------------------------------------------------------------


def test_one_member_has_no_spread(tmp_path: Path, copper: Atoms) -> None:
    calc = GFMCalculator(tiny_gfm(tmp_path / "one", members=1))
    expected = {"energy", "free_energy", "energies", "forces", "stress", "in_domain"}
    assert set(calc.implemented_properties) == expected
    with pytest.raises(PropertyNotImplementedError, match=r"energy_std: needs an ensemble of 2 members.*has 1"):
        calc.get_property("energy_std", copper)


def test_direct_forces_have_no_stress(tmp_path: Path, copper: Atoms) -> None:
    calc = GFMCalculator(tiny_gfm(tmp_path / "direct", forces="direct"))
    assert set(calc.implemented_properties) == ALL - {"stress"}
    copper.calc = calc
    assert copper.get_forces().shape == (8, 3)
    with pytest.raises(PropertyNotImplementedError, match="direct forces"):
        copper.get_stress()


@pytest.mark.nightly
def test_an_export_gives_what_it_holds(gfm: Path, tmp_path: Path, copper: Atoms) -> None:
    """An export holds means and spreads; what the members and atoms say, it does not."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from atomsieve.export.run import ExportOptions, export_gfm

    folder = shutil.copytree(gfm, tmp_path / "gfm")
    export_gfm(folder, ExportOptions(formats=("onnx",), precisions=("fp32",)), lambda line: None)
    calc = GFMCalculator(folder, "metal", "fp32", "cpu", "onnx")
    assert set(calc.implemented_properties) == ALL - {"energies", "forces_ensemble"}
    native = GFMCalculator(gfm, "metal", "fp64")
    for name in ("energy", "energy_ensemble", "forces", "forces_std", "stress", "energy_std"):
        assert np.allclose(calc.get_property(name, copper), native.get_property(name, copper), atol=2e-4), name
    with pytest.raises(PropertyNotImplementedError, match="onnx export does not hold it; use backend='native'"):
        calc.get_property("forces_ensemble", copper)


@pytest.mark.parametrize("name", ["stress", "dipole", "sigma_energy", "magmoms"])
def test_uncalibrated_and_unknown_properties_say_why(make, copper: Atoms, name: str) -> None:
    calc = make()
    if name == "stress":
        copper.pbc = (True, True, False)
    with pytest.raises(PropertyNotImplementedError) as caught:
        calc.get_property(name, copper)
    said = str(caught.value)
    words = {"stress": "[True, True, False]", "sigma_energy": "atomsieve calibrate", "dipole": "it gives energy"}
    assert words.get(name, "it gives") in said and "\n" not in said


# -- protocol ------------------------------------------------------------------------------------------------------


def test_only_what_is_asked_is_computed(make, copper: Atoms, passes: list) -> None:
    copper.calc = make()
    copper.get_potential_energy(), copper.get_potential_energies(), copper.calc.get_property("energy_std", copper)
    assert passes == [(False, False)], "one forward pass and no backward pass"
    copper.get_forces(), copper.get_potential_energy(), copper.calc.get_property("forces_ensemble", copper)
    assert passes[1:] == [(True, False)]
    copper.get_stress()
    assert passes[2:] == [(False, True)] or passes[2:] == [(True, True)]
    passes.clear()
    for _ in range(3):  # a cell relaxation: forces, stress and energy from one evaluation a step
        copper.positions[0] += 0.01
        copper.get_forces(), copper.get_stress(), copper.get_potential_energy()
    assert passes == [(True, True)] * 3
    copper.positions[0] += 0.01
    copper.get_forces()
    copper.positions[0] += 0.01
    copper.get_forces()
    assert passes[-1] == (True, False), "stress is no longer asked for"
    copper.get_forces(), copper.get_forces()
    assert len(passes) == 5


def test_a_shallow_ensemble_gives_forces_of_members_only_when_asked(copper: Atoms, tmp_path: Path, monkeypatch) -> None:
    plain = tiny_ensemble(4)
    ensemble = Ensemble(plain.config, plain.heads, plain.seeds, "shallow")
    folder = save_gfm(tmp_path / "gfm", ensemble, default_head="metal")
    asked: list[bool] = []
    forward = Ensemble.forward

    def noted(self, *args, **kwargs):
        asked.append(kwargs.get("force_members") is not None)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Ensemble, "forward", noted)
    copper.calc = GFMCalculator(folder)
    assert set(copper.calc.implemented_properties) == ALL
    forces = copper.get_forces()
    copper.get_potential_energy()
    assert asked == [False]
    spread = copper.calc.get_property("forces_std", copper)
    members = copper.calc.get_property("forces_ensemble", copper)
    assert asked == [False, True, True] or asked == [False, True]
    assert np.allclose(members.mean(0), forces) and np.allclose(members.std(0, ddof=1), spread)
    assert copper.calc.get_property("energy_ensemble", copper).shape == (4,)
    guard = Guard(copper.calc.predictor, max_force_std=float(spread.max()) / 100, in_domain=False)
    result = relax(copper.calc.predictor, StructureBatch.from_ase(copper), fmax=1e-9, steps=2, guard=guard)
    assert result.reason[0] == Stop.GUARD and result.steps[0] == 0


def test_atoms_are_never_changed(make, copper: Atoms) -> None:
    copper.info["charge"] = 0
    copper.set_initial_magnetic_moments(np.ones(8))
    before, info = copper.copy(), dict(copper.info)
    copper.calc = make()
    copper.get_forces(), copper.get_stress(), copper.get_potential_energies()
    assert compare_atoms(before, copper) == [] and copper.info == info
    assert set(copper.arrays) == set(before.arrays)


def test_results_are_copies(make, copper: Atoms) -> None:
    copper.calc = make()
    for name in ALL - {"energy", "free_energy", "energy_std", "in_domain"}:
        found = copper.calc.get_property(name, copper)
        kept = found.copy()
        found[:] = 1e6
        assert np.array_equal(copper.calc.get_property(name, copper), kept), name


def test_state_changes_are_seen(make, copper: Atoms, passes: list) -> None:
    calc = make()
    copper.calc = calc
    copper.get_forces()
    assert calc.check_state(copper) == [] and not calc.calculation_required(copper, ["energy", "forces"])
    copper.set_initial_charges(np.full(8, 0.1))
    assert calc.check_state(copper) == [], "initial charges are not used"
    copper.info["charge"] = 0
    assert calc.check_state(copper) == ["charge"]
    copper.get_forces()
    copper.info["spin"] = 1
    assert calc.check_state(copper) == ["spin"]
    copper.get_forces()
    copper.info["note"] = "anything"
    assert calc.check_state(copper) == [] and len(passes) == 3
    copper.numbers[0] = 8
    copper.cell[0, 0] += 0.1
    assert sorted(calc.check_state(copper)) == ["cell", "numbers"]


def test_charge_and_spin_reach_a_model_that_uses_them(tmp_path: Path) -> None:
    calc = GFMCalculator(tiny_gfm(tmp_path / "charged", charge_spin=True), head="organic")
    water = molecule("H2O")
    water.calc = calc
    with pytest.raises(InputError, match=r"needs charge and spin multiplicity, the atoms state neither; set"):
        water.get_potential_energy()
    water.info |= {"charge": 0, "spin": 1}
    neutral = water.get_potential_energy()
    water.info["charge"] = 1
    with_charge = water.get_potential_energy()
    assert abs(with_charge - neutral) > 1e-6
    water.info |= {"charge": 0}
    assert water.get_potential_energy() == neutral
    water.info["spin"] = "doublet"
    with pytest.raises(InputError, match="'doublet'"):
        water.get_potential_energy()


def test_a_charge_that_an_adapter_sets_as_an_attribute_is_seen(make, tmp_path: Path) -> None:
    """pymatgen's adapter states charge and multiplicity of a molecule there alone; ASE copies no attributes."""
    hydroxide = AseAtomsAdaptor.get_atoms(Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]], charge=-1))
    hydroxide.calc = make("organic")
    with pytest.raises(InputError, match=r"state charge -1 and spin 1, which .*does not take into account"):
        hydroxide.get_potential_energy()
    calc = GFMCalculator(tiny_gfm(tmp_path / "charged", charge_spin=True), head="organic")
    hydroxide.calc = calc
    energy = hydroxide.get_potential_energy()
    assert calc.check_state(hydroxide) == [] and calc.atoms.info == {"charge": -1, "spin": 1}
    other = Atoms(hydroxide.numbers, hydroxide.positions, info={"charge": -1, "spin": 1}, calculator=calc)
    assert other.get_potential_energy() == energy
    hydroxide.charge = 0
    assert calc.check_state(hydroxide) == ["charge"]
    hydroxide.info["charge"] = 1
    with pytest.raises(InputError, match="two values of the total charge: info 'charge' is 1, attribute 'charge' is 0"):
        hydroxide.get_forces()


def test_isotopes_and_magnetic_moments_change_no_energy(make) -> None:
    water = molecule("H2O")
    water.calc = make("organic")
    energy, forces = water.get_potential_energy(), water.get_forces()
    water.set_masses([15.999, 2.014, 2.014])
    water.set_initial_magnetic_moments([0, 1, 1])
    fresh = water.copy()
    fresh.calc = make("organic")
    assert water.get_potential_energy() == fresh.get_potential_energy() == energy
    assert np.array_equal(fresh.get_forces(), forces)


def test_two_atoms_share_a_calculator(make, copper: Atoms) -> None:
    calc = make()
    other = copper.copy()
    other.rattle(0.1, seed=4)
    larger = bulk("Cu", cubic=True).repeat(2)
    own = []
    for atoms in (copper, other, larger):
        atoms.calc = make()
        own.append((atoms.get_potential_energy(), atoms.get_forces()))
        atoms.calc = calc
    for _ in range(2):
        for atoms, (energy, forces) in zip((copper, other, larger), own, strict=True):
            assert atoms.get_potential_energy() == energy
            assert np.array_equal(atoms.get_forces(), forces)


def test_copies_and_pickles(gfm: Path, make, copper: Atoms) -> None:
    calc = GFMCalculator(gfm, "metal", precision="fp32", skin=0.4)
    copper.calc = calc
    forces = copper.get_forces()
    twin = copy.deepcopy(calc)
    assert twin.predictor is calc.predictor and twin.results == {} and twin.parameters == calc.parameters
    moved = copper.copy()
    moved.rattle(0.1)
    twin.get_property("forces", moved)
    assert np.array_equal(copper.get_forces(), forces)
    back = pickle.loads(pickle.dumps(calc))
    assert back.parameters == calc.parameters and np.array_equal(back.get_property("forces", copper), forces)
    given = make()
    copper.calc = given
    forces = copper.get_forces()
    assert np.array_equal(pickle.loads(pickle.dumps(given)).get_property("forces", copper), forces)
    assert np.array_equal(copy.deepcopy(copper).get_forces(), forces)


def test_a_pickle_knows_its_ensemble(tmp_path: Path) -> None:
    calc = GFMCalculator(tiny_gfm(tmp_path / "gfm"))
    packed = pickle.dumps(calc)
    shutil.rmtree(tmp_path / "gfm")
    tiny_gfm(tmp_path / "gfm", members=2)
    with pytest.raises(CalculatorSetupError, match="now holds another ensemble"):
        pickle.loads(packed)


def test_parameters_and_their_change(make, copper: Atoms, passes: list) -> None:
    calc = make("metal")
    assert calc.name == "gfm" and calc.todict()["head"] == "metal"
    copper.calc = calc
    energy = copper.get_potential_energy()
    calc.set(head="metal")
    assert copper.get_potential_energy() == energy and len(passes) == 1
    calc.set(head="organic")
    assert calc.head == "organic"
    with pytest.raises(InputError, match=r"never trained on Cu; it knows H, C, N, O .*use head metal"):
        copper.get_potential_energy()
    for name, value, said in (
        ("head", "metall", "did you mean 'metal'"),
        ("hed", "metal", "did you mean 'head'"),
        ("precision", "fp32", "cannot be changed later"),
    ):
        with pytest.raises(CalculatorSetupError, match=said):
            calc.set(**{name: value})


# -- bad input -----------------------------------------------------------------------------------------------------


def test_setup_errors(gfm: Path, predictor: Predictor, tmp_path: Path) -> None:
    for arguments, said in (
        ({}, "name its folder"),
        ({"gfm": tmp_path / "nowhere"}, "nowhere"),
        ({"gfm": gfm, "head": "metl"}, r"unknown head 'metl' \(did you mean 'metal'\?\); allowed: metal, organic"),
        ({"gfm": gfm, "precision": "fp16"}, "allowed: bf16, fp32, fp64"),
        ({"gfm": gfm, "device": "gpu"}, "unknown device 'gpu'"),
        ({"gfm": gfm, "backend": "tensorrt"}, "unknown backend 'tensorrt'"),
        ({"gfm": gfm, "skin": -0.5}, "skin must be .* got -0.5"),
        ({"gfm": predictor, "head": "none"}, "unknown head 'none'"),
        ({"gfm": predictor, "precision": "bf16"}, "has precision fp64, not bf16; load one with"),
        ({"gfm": predictor, "precisoin": "bf16"}, "unknown parameter 'precisoin'"),
    ):
        with pytest.raises(CalculatorSetupError, match=said) as caught:
            GFMCalculator(**arguments)
        assert "\n" not in str(caught.value)


def _broken() -> dict[str, tuple[Atoms, type[Exception], str]]:
    nan = bulk("Cu", cubic=True)
    nan.positions[2, 1] = np.nan
    no_cell = Atoms("Cu2", [[0, 0, 0], [2, 0, 0]], pbc=True)
    flat = Atoms("Cu", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True)
    nan_cell = bulk("Cu", cubic=True)
    nan_cell.cell[0, 0] = np.nan
    ghost = Atoms("CuX", [[0, 0, 0], [2, 0, 0]])
    charged = bulk("Cu")
    charged.info["charge"] = 1
    shared = bulk("Cu")
    shared.info["occupancy"] = {"0": {"Cu": 0.5, "Au": 0.5}}
    shared.set_array("spacegroup_kinds", np.array([0]))
    flat_axis = Atoms("Cu", cell=[3, 3, 0], pbc=True)
    return {
        "empty": (Atoms(), InputError, r"empty \(0 atoms\); add atoms"),
        "nan": (nan, InputError, r"positions of 1 atoms are not finite, first atom 2: \[1.8\d*, nan, 1.8"),
        "nan cell": (nan_cell, InputError, "cell is not finite"),
        "no cell": (no_cell, InputError, r"pbc is \[True, True, True\].*lengths \[0.0, 0.0, 0.0\].*atoms.pbc = False"),
        "flat": (flat, InputError, "depends on the others"),
        "no third vector": (
            flat_axis,
            InputError,
            r"lengths \[3.0, 3.0, 0.0\] Angstrom, and a periodic one is missing",
        ),
        "partly occupied": (shared, InputError, "atom 0 stands for a partly occupied site .*Cu 0.5, Au 0.5"),
        "beyond the table": (Atoms(numbers=[285 + 256]), InputError, "never trained on 541"),
        "unseen": (bulk("Xe", "fcc", a=6.2), InputError, "never trained on Xe; it knows O, Cu.*train on data"),
        "ghost": (ghost, InputError, "never trained on X"),
        "charged": (charged, InputError, "state charge 1, .*does not take into account"),
        "overlap": (Atoms("Cu2", [[0, 0, 0], [0, 0, 0.01]]), CalculationFailed, r"Cu2 \(2 atoms\) two atoms are"),
    }


@pytest.mark.parametrize("kind", list(_broken()))
def test_bad_input_is_an_error_of_ase_and_leaves_the_calculator_usable(make, copper: Atoms, kind: str) -> None:
    calc = make()
    copper.calc = calc
    energy = copper.get_potential_energy()
    atoms, error, said = _broken()[kind]
    atoms.calc = calc
    for _ in range(2):
        with pytest.raises(error, match=said) as caught:
            atoms.get_potential_energy()
        assert "\n" not in str(caught.value) and calc.results == {}
    assert copper.get_potential_energy() == energy


def test_an_ensemble_removed_while_in_use_goes_on(tmp_path: Path, copper: Atoms) -> None:
    """All weights are in memory; only opening it anew fails."""
    folder = tiny_gfm(tmp_path / "gfm")
    calc = GFMCalculator(folder)
    copper.calc = calc
    energy = copper.get_potential_energy()
    shutil.rmtree(folder)
    copper.rattle(1e-12)
    assert np.isclose(copper.get_potential_energy(), energy)
    copy.deepcopy(calc).get_property("energy", copper)
    with pytest.raises(CalculatorSetupError, match="gfm"):
        pickle.loads(pickle.dumps(calc))


def test_equal_crystals_have_equal_energies_however_they_are_given(make) -> None:
    """Left-handed, far unwrapped, with other lattice vectors of the same lattice, and a cell beside a cluster."""
    base = bulk("CuO", "zincblende", a=4.3, cubic=True)
    base.rattle(0.1, seed=2)
    base.calc = make()
    energy, forces = base.get_potential_energy(), base.get_forces()

    def check(atoms: Atoms, turn: np.ndarray | float = 1.0) -> None:
        atoms.calc = make()
        assert np.isclose(atoms.get_potential_energy(), energy, atol=1e-9)
        assert np.allclose(atoms.get_forces(), forces * turn, atol=1e-9)

    left = base.copy()
    left.set_cell(base.cell.array[[1, 0, 2]])
    assert left.cell.volume > 0 > np.linalg.det(left.cell)
    check(left)
    mirror = np.array([1.0, 1.0, -1.0])
    check(Atoms(base.numbers, base.positions * mirror, cell=base.cell.array * mirror, pbc=True), mirror)
    far = base.copy()
    far.positions += np.array([[3, -7, 11]] * len(far)) @ far.cell + np.outer(np.arange(len(far)), far.cell[0])
    check(far)
    skewed = base.copy()
    skewed.set_cell(np.array([[1, 0, 0], [5, 1, 0], [-4, 3, 1]]) @ base.cell.array)
    check(skewed)
    cluster, boxed = Atoms(base.numbers, base.positions), base.copy()
    boxed.pbc = False
    cluster.calc, boxed.calc = make(), make()
    assert cluster.get_potential_energy() == boxed.get_potential_energy() != energy


@pytest.mark.parametrize("pbc", [True, (True, False, False)])
def test_awkward_but_sound(make, pbc) -> None:
    """One atom; a cell far smaller than the cutoff; no neighbours at all."""
    atoms = Atoms("Cu", cell=[2.3, 2.4, 2.6], pbc=pbc)
    atoms.calc = make()
    assert np.allclose(atoms.get_forces(), 0, atol=1e-10)
    lonely = Atoms("Cu")
    lonely.calc = make()
    assert np.isfinite(lonely.get_potential_energy()) and np.allclose(lonely.get_forces(), 0)
    with pytest.raises(PropertyNotImplementedError, match="periodic along all three"):
        lonely.get_stress()
