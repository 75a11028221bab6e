"""Physics and bookkeeping of the stacked ensemble, for every way of making forces."""

import copy
import platform

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from atomsieve.errors import UsageError
from atomsieve.graphs.neighbors import build_graph
from atomsieve.models import Ensemble, HeadSpec, ModelConfig, set_precision
from atomsieve.models.layers import multiplies_bf16
from atomsieve.models.messages import message as messages
from atomsieve.models.registry import encoders
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides, tiny_ensemble

STEP = 1e-4
FD_TOLERANCE = 2e-7  # of central differences in FP64 with STEP


def run(ensemble, batch, *, forces=True, stress=False, head=1, **state):
    config = ensemble.config
    graph = build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=torch.float64)
    index = torch.full((len(batch),), head)
    return ensemble(graph, index, **state, forces=forces, stress=stress)


def molecules() -> StructureBatch:
    images = [molecule(name) for name in ("CH3CH2OH", "H2O", "HCN")]
    for k, atoms in enumerate(images):
        atoms.rattle(0.05, seed=k)
    return StructureBatch.from_ase(images)


@pytest.fixture(params=sorted(encoders()))
def ensemble(request):
    return tiny_ensemble(2, encoder=request.param, cutoff=4.5).double().requires_grad_(False)


def central_difference(ensemble, batch, atom, axis):
    energies = []
    for sign in (1, -1):
        positions = batch.positions.copy()
        positions[atom, axis] += sign * STEP
        energies.append(run(ensemble, batch.replace(positions=positions), forces=False).energy.sum(1))
    return -(energies[0] - energies[1]) / (2 * STEP)


@pytest.mark.parametrize("batch", [copper_oxides(5), molecules()], ids=["crystals", "molecules"])
def test_forces_are_minus_the_gradient(ensemble, batch):
    forces = run(ensemble, batch).forces
    for atom, axis in ((0, 0), (2, 1), (batch.n_atoms - 1, 2)):
        exact = central_difference(ensemble, batch, atom, axis)
        assert torch.allclose(forces[:, atom, axis], exact, atol=FD_TOLERANCE)
    assert float(forces.abs().max()) > 1e-3  # the comparison is not one of zeros


def test_forces_on_a_truncated_list_are_minus_the_gradient():
    ensemble = tiny_ensemble(2, max_neighbors=6).double().requires_grad_(False)
    batch = molecules()
    forces = run(ensemble, batch).forces
    assert torch.allclose(forces[:, 1, 0], central_difference(ensemble, batch, 1, 0), atol=FD_TOLERANCE)


def strain_difference(ensemble, batch, a, b, step):
    energies = []
    for sign in (1, -1):
        strain = np.eye(3)
        strain[a, b] += sign * step / 2
        strain[b, a] += sign * step / 2
        moved = batch.replace(positions=batch.positions @ strain, cell=batch.cell @ strain)
        energies.append(run(ensemble, moved, forces=False).energy)
    return (energies[0] - energies[1]) / (2 * step)


def test_virial_is_the_derivative_by_strain(ensemble):
    batch = copper_oxides(4)
    virial = run(ensemble, batch, stress=True).virial
    for a, b in ((0, 0), (1, 1), (0, 2), (1, 2)):
        once, half = (strain_difference(ensemble, batch, a, b, step) for step in (STEP, STEP / 2))
        exact = (
            4 * half - once
        ) / 3  # without the error of second order (Richardson): rank 2 has large third derivatives
        assert torch.allclose(virial[:, :, a, b], exact, atol=FD_TOLERANCE)
        assert torch.equal(virial, virial.transpose(2, 3))
    assert float(virial.abs().max()) > 1e-3


def rotation(seed=0):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


@pytest.mark.parametrize("forces", ["conservative", "direct"])
def test_rotation_turns_forces_and_keeps_energies(forces):
    ensemble = tiny_ensemble(2, forces=forces).double().requires_grad_(False)
    batch, turn = copper_oxides(6), rotation()
    still = run(ensemble, batch)
    turned = run(ensemble, batch.replace(positions=batch.positions @ turn, cell=batch.cell @ turn))
    assert torch.allclose(turned.energy, still.energy, atol=1e-11)
    assert torch.allclose(turned.forces, still.forces @ torch.from_numpy(turn), atol=1e-11)
    assert float(still.forces.abs().max()) > 1e-3


def test_translation_and_whole_cells_change_nothing(ensemble):
    batch = copper_oxides(6)
    still = run(ensemble, batch)
    shift = np.random.default_rng(0).integers(-3, 4, size=(batch.n_atoms, 3))
    cell = batch.cell[batch.structure_of_atom]
    moved = batch.positions + np.einsum("ni,nij->nj", shift.astype(float), cell) + [0.3, -2.0, 7.1]
    away = run(ensemble, batch.replace(positions=moved))
    assert torch.allclose(away.energy, still.energy, atol=1e-10)
    assert torch.allclose(away.forces, still.forces, atol=1e-10)


def test_permuting_atoms_permutes_forces(ensemble):
    batch = molecules().slice(0, 1)
    order = np.random.default_rng(1).permutation(batch.n_atoms)
    still = run(ensemble, batch, head=0)
    mixed = run(ensemble, batch.replace(numbers=batch.numbers[order], positions=batch.positions[order]), head=0)
    assert torch.allclose(mixed.energy, still.energy, atol=1e-11)
    assert torch.allclose(mixed.forces, still.forces[:, order], atol=1e-11)


def test_a_structure_does_not_feel_its_batch(ensemble):
    batch = copper_oxides(8)
    together = run(ensemble, batch, stress=True)
    for s in range(len(batch)):
        alone = run(ensemble, batch.slice(s, s + 1), stress=True)
        own = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        assert torch.allclose(alone.energy[:, 0], together.energy[:, s], atol=1e-12)
        assert torch.allclose(alone.forces, together.forces[:, own], atol=1e-12)
        assert torch.allclose(alone.virial[:, 0], together.virial[:, s], atol=1e-12)


def test_one_atom_without_neighbours_has_an_energy_and_no_force(ensemble):
    lone = StructureBatch.from_ase([Atoms("Cu"), Atoms("O")])
    out = run(ensemble, lone, stress=True)
    assert torch.isfinite(out.energy).all()
    assert not out.forces.any()
    assert not out.virial.any()
    assert float((out.energy[:, 0] - out.energy[:, 1]).abs().min()) > 1e-6


def test_stacked_members_equal_members_alone(ensemble):
    batch = copper_oxides(5)
    together = run(ensemble, batch, stress=True)
    for k, seed in enumerate(ensemble.seeds):
        alone = Ensemble(ensemble.config, ensemble.heads, [seed]).double().requires_grad_(False)
        own = run(alone, batch, stress=True)
        assert torch.allclose(own.energy[0], together.energy[k], atol=1e-12)
        assert torch.allclose(own.forces[0], together.forces[k], atol=1e-12)
        assert torch.allclose(own.virial[0], together.virial[k], atol=1e-12)
    assert float((together.energy[0] - together.energy[1]).abs().max()) > 1e-3


def test_single_precision_agrees_with_double(ensemble):
    batch = copper_oxides(30)
    exact = run(ensemble, batch)
    single = set_precision(copy.deepcopy(ensemble), "fp32")
    graph = build_graph(batch, ensemble.config.cutoff, dtype=torch.float32)
    out = single(graph, torch.ones(len(batch), dtype=torch.int64))
    counts = torch.from_numpy(batch.counts)
    assert float(((out.energy - exact.energy) / counts).abs().max()) < 5e-6
    assert float((out.forces.double() - exact.forces).abs().max()) < 5e-5


def test_bfloat16_products_stay_near(ensemble):
    batch = copper_oxides(30)
    exact = run(ensemble, batch)
    low = set_precision(copy.deepcopy(ensemble), "bf16")
    out = low(
        build_graph(batch, ensemble.config.cutoff, dtype=torch.float32), torch.ones(len(batch), dtype=torch.int64)
    )
    error = (out.forces.double() - exact.forces).pow(2).mean().sqrt() / exact.forces.pow(2).mean().sqrt()
    largest = 0.25 if ensemble.encoder.pooled else 0.05  # the force jumps where rounding moves a ReLU's input over 0
    assert 1e-6 < float(error) < largest  # rounded, and not by much


def test_without_compiled_kernels_the_numbers_are_the_same(monkeypatch):
    ensemble, batch = tiny_ensemble(2, cutoff=4.5).double().requires_grad_(False), copper_oxides(6)
    compiled = run(ensemble, batch, stress=True)
    chosen = []
    plain = messages.message_on_edges
    monkeypatch.setattr(messages, "message_on_edges", lambda *a: (chosen.append("edges"), plain(*a))[1])
    monkeypatch.setattr(messages, "kernels", lambda: None)
    bare = run(ensemble, batch, stress=True)
    assert chosen
    for ours, plain in ((compiled.energy, bare.energy), (compiled.forces, bare.forces), (compiled.virial, bare.virial)):
        assert torch.allclose(ours, plain, atol=1e-11)


def test_heads_are_chosen_per_structure(ensemble):
    metal = copper_oxides(3)
    batch = StructureBatch.concatenate([metal, molecules(), metal])
    index = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0])
    graph = build_graph(batch, ensemble.config.cutoff, dtype=torch.float64)
    mixed = ensemble(graph, index)
    for head, part in ((1, slice(0, 3)), (0, slice(3, 9))):
        own = run(ensemble, batch.slice(part.start, part.stop), head=head)
        assert torch.allclose(mixed.energy[:, part], own.energy, atol=1e-12)
        atoms = slice(int(batch.ptr[part.start]), int(batch.ptr[part.stop]))
        assert torch.allclose(mixed.forces[:, atoms], own.forces, atol=1e-12)
    assert float((mixed.energy[:, :3] - mixed.energy[:, 6:]).abs().max()) > 1e-3


def test_charge_and_spin_act_when_modelled_and_are_never_guessed():
    ensemble = tiny_ensemble(2, charge_spin=True).double().requires_grad_(False)
    batch = molecules()
    neutral = run(ensemble, batch, head=0, charge=torch.zeros(3), spin=torch.ones(3))
    charged = run(ensemble, batch, head=0, charge=torch.tensor([0.0, 1.0, 0.0]), spin=torch.tensor([1.0, 2.0, 1.0]))
    difference = (charged.energy - neutral.energy).abs()
    assert float(difference[:, 1].min()) > 1e-6
    assert not difference[:, [0, 2]].any()
    with pytest.raises(UsageError, match="charge and spin"):
        run(ensemble, batch, head=0)


def test_direct_forces_have_no_stress():
    ensemble = tiny_ensemble(1, forces="direct").double()
    with pytest.raises(UsageError, match="conservative"):
        run(ensemble, copper_oxides(1), stress=True)


def test_element_references_add_up():
    ensemble = tiny_ensemble()
    batch = copper_oxides(4)
    refs = ensemble.heads[1].references
    expected = [sum(refs[int(z)] for z in own.numbers) for own in (batch.slice(s, s + 1) for s in range(4))]
    assert np.allclose(ensemble.reference_energy(batch.numbers, batch.ptr, 1), expected)
    assert np.isnan(ensemble.reference_energy(np.array([92], np.uint8), np.array([0, 1]), 1)).all()


@pytest.mark.parametrize(
    ("heads", "seeds"),
    [([], [1]), ([HeadSpec(name="a", level_of_theory="", references={}, scale=1, elements={})] * 2, [1])],
)
def test_ensembles_that_make_no_sense_are_refused(heads, seeds):
    with pytest.raises(UsageError, match="heads"):
        Ensemble(ModelConfig(), heads, seeds)


def test_an_unknown_encoder_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'painn'"):
        tiny_ensemble(encoder="pain")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is of x86 processors")
@pytest.mark.parametrize("tiles", [False, True])
def test_cpus_multiply_in_bf16_only_where_it_is_faster(monkeypatch, tiles):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert multiplies_bf16.__wrapped__(torch.device("cpu")) == tiles  # what is remembered is of this machine
