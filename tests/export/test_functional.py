"""The functional ensemble against the eager one, finite differences, and the graph that is traced from it."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from atomsieve.errors import UsageError
from atomsieve.export.functional import Functional
from atomsieve.export.to_torchscript import script
from atomsieve.export.trace import trace
from atomsieve.models.registry import encoders
from atomsieve.structures import StructureBatch
from tests.export.export_checks import assert_close, call, eager_outputs, given_arrays
from tests.helpers import copper_oxides, tiny_ensemble

EXACT = 1e-12  # of two ways to compute the same in FP64, relative to the largest value
STEP = 1e-4
FD_TOLERANCE = 2e-7  # of central differences in FP64 with STEP
CONFIGS = {
    "conservative": {},
    "direct": {"forces": "direct"},
    "truncated": {"max_neighbors": 9},
    "truncated direct": {"max_neighbors": 9, "forces": "direct"},
    "gaussian": {"basis": "gaussian", "layers": 1},
}


def functional_of(ensemble, **options):
    return Functional(ensemble, **{"precision": "fp64", "kind": "forces", "members": True, **options})


def charged(n=3):
    batch = copper_oxides(n, seed=4)
    return batch.replace(charge=np.arange(-1, n - 1, dtype=np.float32), spin=np.arange(1, n + 1, dtype=np.float32))


def lone_atoms(n):
    return StructureBatch.from_ase([Atoms("Cu", [[0.1 * k, 0, 0]]) for k in range(n)])


def assert_empty(found, functional):
    sizes = {"S": 0, "N": 0, "K": 2}
    assert {n: a.shape for n, a in found.items()} == {
        slot.name: tuple(sizes.get(a, a) for a in slot.axes) for slot in functional.outputs
    }


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_gives_what_the_eager_ensemble_gives(config, inline):
    ensemble = tiny_ensemble(3, **config).double()
    functional = functional_of(ensemble, inline=inline)
    batch = copper_oxides(6)
    found = call(functional, given_arrays(ensemble, batch), functional)
    assert_close(found, eager_outputs(ensemble, batch), EXACT)
    assert ("virial" in found) == (config.get("forces") != "direct")
    assert found["forces_members"].shape == (3, batch.n_atoms, 3)
    assert np.abs(found["forces"]).max() > 1e-3 and found["forces_std"].max() > 1e-4


def test_molecules_without_a_cell_are_taken_too():
    ensemble = tiny_ensemble(2).double()
    batch = StructureBatch.from_ase([molecule(name) for name in ("CH3CH2OH", "H2O", "HCN")])
    functional = functional_of(ensemble)
    found = call(functional, given_arrays(ensemble, batch, 0), functional)
    assert_close(found, eager_outputs(ensemble, batch, 0), EXACT)


def test_charge_and_spin_of_each_structure_count():
    ensemble = tiny_ensemble(2, charge_spin=True).double()
    torch.nn.init.normal_(ensemble.condition.weight, std=0.5)
    functional = functional_of(ensemble)
    batch = charged()
    found = call(functional, given_arrays(ensemble, batch), functional)
    assert_close(found, eager_outputs(ensemble, batch), EXACT)
    other = batch.replace(charge=batch.charge + 1)
    changed = call(functional, given_arrays(ensemble, other), functional)
    assert (np.abs(changed["energy"] - found["energy"]) > 1e-4).all()


def test_each_structure_of_a_batch_has_its_own_head():
    ensemble = tiny_ensemble(2).double()
    functional = functional_of(ensemble)
    images = [Atoms("O2", [[0, 0, 0], [0, 0, 1.2 + 0.1 * k]]) for k in range(4)]  # oxygen is known to both heads
    batch = StructureBatch.from_ase(images)
    heads = [1, 0, 0, 1]
    found = call(functional, given_arrays(ensemble, batch, heads), functional)
    assert_close(found, eager_outputs(ensemble, batch, heads), EXACT)
    alone = [call(functional, given_arrays(ensemble, batch, h), functional)["energy"][k] for k, h in enumerate(heads)]
    np.testing.assert_allclose(found["energy"], alone, rtol=0, atol=1e-9)
    assert len({round(e) for e in found["energy"]}) == 2


def test_one_member_has_no_spread():
    ensemble = tiny_ensemble(1).double()
    functional = functional_of(ensemble)
    batch = copper_oxides(2)
    found = call(functional, given_arrays(ensemble, batch), functional)
    assert np.isnan(found["energy_std"]).all() and np.isnan(found["forces_std"]).all()
    assert_close(found, eager_outputs(ensemble, batch), EXACT)


def test_an_element_without_a_reference_has_no_energy_and_harms_no_neighbour():
    ensemble = tiny_ensemble(2).double()
    functional = functional_of(ensemble)
    batch = StructureBatch.from_ase([bulk("Cu"), bulk("Au"), bulk("Cu")])
    found = call(functional, given_arrays(ensemble, batch), functional)
    assert np.isnan(found["energy"]).tolist() == [False, True, False]
    assert np.isnan(found["energy_members"]).all(0).tolist() == [False, True, False]
    assert np.isfinite(found["forces"]).all() and np.isfinite(found["virial"]).all()


@pytest.mark.parametrize("config", [{}, {"forces": "direct"}, {"max_neighbors": 4}], ids=str)
@pytest.mark.parametrize("n", [1, 4])
def test_atoms_without_neighbours(config, n):
    ensemble = tiny_ensemble(2, **config).double()
    functional = functional_of(ensemble)
    found = call(functional, given_arrays(ensemble, lone_atoms(n)), functional)
    assert_close(found, eager_outputs(ensemble, lone_atoms(n)), EXACT)
    assert (found["forces"] == 0).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_structure_at_all_gives_empty_outputs(config):
    functional = functional_of(tiny_ensemble(2, **config))
    assert_empty(call(functional, given_arrays(functional.model, StructureBatch.empty()), functional), functional)


def test_results_do_not_depend_on_what_else_is_in_the_batch():
    ensemble = tiny_ensemble(2).double()
    functional = functional_of(ensemble)
    batch = copper_oxides(5)
    together = call(functional, given_arrays(ensemble, batch), functional)
    for k in range(5):
        alone = call(functional, given_arrays(ensemble, batch.take([k])), functional)
        np.testing.assert_allclose(alone["energy"], together["energy"][k : k + 1], rtol=0, atol=1e-11)
        own = slice(batch.ptr[k], batch.ptr[k + 1])
        np.testing.assert_allclose(alone["forces"], together["forces"][own], rtol=0, atol=1e-11)


@pytest.mark.parametrize("config", [{}, {"max_neighbors": 9}], ids=["complete", "truncated"])
def test_forces_are_minus_the_slope_of_the_energy(config):
    ensemble = tiny_ensemble(2, **config).double()
    functional = functional_of(ensemble)
    batch = copper_oxides(2, seed=2)
    arrays = given_arrays(ensemble, batch)
    forces = call(functional, arrays, functional)["forces"]
    for atom in range(0, batch.n_atoms, 2):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                positions = arrays["positions"].copy()
                positions[atom, axis] += sign * STEP
                energies.append(call(functional, {**arrays, "positions": positions}, functional)["energy"].sum())
            slope = (energies[0] - energies[1]) / (2 * STEP)
            assert forces[atom, axis] == pytest.approx(-slope, abs=FD_TOLERANCE)


@pytest.mark.parametrize("config", [{}, {"max_neighbors": 9}], ids=["complete", "truncated"])
def test_the_virial_is_the_slope_of_the_energy_by_strain(config):
    ensemble = tiny_ensemble(2, **config).double()
    functional = functional_of(ensemble)
    arrays = given_arrays(ensemble, copper_oxides(2, seed=3))
    virial = call(functional, arrays, functional)["virial"]
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += 0.5 * sign * STEP
                strain[b, a] += 0.5 * sign * STEP
                strained = {n: arrays[n] @ strain for n in ("positions", "cell")}
                energies.append(call(functional, {**arrays, **strained}, functional)["energy"])
            slope = (energies[0] - energies[1]) / (2 * STEP)
            np.testing.assert_allclose(virial[:, a, b], slope, rtol=0, atol=20 * FD_TOLERANCE)


def test_energies_alone_are_those_of_the_whole():
    ensemble = tiny_ensemble(2).double()
    whole, light = functional_of(ensemble), functional_of(ensemble, kind="energy", members=False)
    arrays = given_arrays(ensemble, copper_oxides(3))
    found = call(light, arrays, light)
    assert list(found) == ["energy", "energy_std", "energy_members"]
    assert_close(found, call(whole, arrays, whole), EXACT)


@pytest.mark.parametrize(("precision", "energy", "forces"), [("fp32", 1e-5, 1e-5), ("bf16", 2e-2, 6e-2)])
def test_lower_precisions_are_near_fp64_and_leave_the_ensemble_as_it_is(precision, energy, forces):
    ensemble = tiny_ensemble(2).double()
    before = {n: t.clone() for n, t in ensemble.state_dict().items()}
    batch = copper_oxides(4)
    expected = eager_outputs(ensemble, batch)
    functional = functional_of(ensemble, precision=precision)
    found = call(functional, given_arrays(ensemble, batch), functional)
    assert found["energy"].dtype == np.float64 and found["forces"].dtype == np.float32
    atoms = batch.counts
    assert np.abs((found["energy"] - expected["energy"]) / atoms).max() < energy
    assert np.abs(found["forces"] - expected["forces"]).max() < forces * np.abs(expected["forces"]).max()
    assert all(torch.equal(t, before[n]) and t.dtype == torch.float64 for n, t in ensemble.state_dict().items())


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match=r"unknown kind of outputs 'force' .*allowed: energy, forces"):
        functional_of(tiny_ensemble(1), kind="force")


@pytest.mark.parametrize(
    ("kind", "forces"),
    [
        pytest.param("energy", "direct", marks=pytest.mark.nightly),  # a part of the next two
        ("forces", "conservative"),
        ("forces", "direct"),
    ],
)
@pytest.mark.parametrize("encoder", sorted(name for name, of in encoders().items() if of.exportable))
def test_each_encoder_is_traced_and_scripted_with_free_sizes(encoder, kind, forces):
    ensemble = tiny_ensemble(2, encoder=encoder, forces=forces, layers=1).double()
    functional = functional_of(ensemble, kind=kind)
    traced = trace(functional)
    assert not any("autograd" in str(n.target) or n.op == "call_module" for n in traced.graph.nodes)
    scripted = script(traced)
    for batch in (copper_oxides(7), copper_oxides(1), lone_atoms(1), lone_atoms(3)):
        arrays = given_arrays(ensemble, batch)
        expected = eager_outputs(ensemble, batch)
        assert_close(call(traced, arrays, functional), expected, EXACT)
        with torch.no_grad():
            assert_close(call(scripted, arrays, functional), expected, EXACT)
        with torch.inference_mode():
            assert_close(call(scripted, arrays, functional), expected, EXACT)
    assert_empty(call(scripted, given_arrays(ensemble, StructureBatch.empty()), functional), functional)


def test_no_output_is_an_expanded_constant():
    ensemble = tiny_ensemble(1, layers=1)
    functional = functional_of(ensemble)
    given = given_arrays(ensemble, copper_oxides(3))
    for slot, t in zip(functional.outputs, functional(*map(torch.from_numpy, given.values())), strict=True):
        assert 0 not in [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1], slot.name
