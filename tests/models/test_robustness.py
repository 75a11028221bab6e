"""A quickly trained ensemble in use: close pairs, dynamics, curves without kinks, rotations and permutations."""

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.data import covalent_radii

from atomsieve.graphs.neighbors import build_graph
from atomsieve.models import Ensemble, HeadSpec, ModelConfig
from atomsieve.structures import StructureBatch
from atomsieve.testing.cells import crystals
from atomsieve.testing.encoders import check_symmetries
from tests.models.test_repulsion import dimers

NUMBERS = (8, 29)


def evaluate(ensemble, batch, **wanted):
    graph = build_graph(batch, ensemble.config.cutoff, dtype=torch.float64)
    return ensemble(graph, torch.arange(len(batch)) % len(ensemble.heads), **wanted)


@pytest.fixture(scope="module")
def trained():
    """Two members and heads, trained on EMT's energies and forces, and to pull close pairs together."""
    heads = [
        HeadSpec(name=n, level_of_theory="EMT", references=dict.fromkeys(NUMBERS, 0.0), scale=s, elements={8: 1, 29: 1})
        for n, s in (("first", 1.0), ("second", 5.0))
    ]
    config = ModelConfig(hidden=16, layers=2, cutoff=4.0, head_hidden=16, repulsion="zbl")
    ensemble = Ensemble(config, heads, (1, 2)).double()
    images = crystals(6).to_ase()
    for atoms in images:
        atoms.calc = EMT()
    batch = StructureBatch.from_ase(images)
    energy = torch.tensor([a.get_potential_energy() for a in images]).clamp(-50, 50)
    forces = torch.from_numpy(np.concatenate([a.get_forces() for a in images])).clamp(-20, 20)
    close = StructureBatch.from_ase(
        [d for a, b in ((8, 8), (8, 29), (29, 29)) for d in dimers(a, b, [0.5, 0.9]).to_ase()]
    )
    steps = torch.optim.Adam(ensemble.parameters(), 5e-3)
    for _ in range(40):
        out = evaluate(ensemble, batch, create_graph=True)
        pulled = evaluate(ensemble, close, forces=False).energy
        loss = (out.energy - energy).abs().mean() + (out.forces - forces).abs().mean() + 1e-2 * pulled.mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
    return ensemble.requires_grad_(False)


def test_close_pairs_repel_each_other(trained):
    for a, b in ((8, 8), (8, 29), (29, 29)):
        d = np.arange(0.3, 0.6 * (covalent_radii[a] + covalent_radii[b]), 0.02).repeat(2)  # the heads in turns
        out = evaluate(trained, dimers(a, b, d))
        assert bool((out.forces[:, 1::2, 0] > 0).all())
        for head in (0, 1):
            assert bool((out.energy[:, head::2].diff(dim=1) < 0).all())


def test_rotation_and_permutation(trained):
    check_symmetries(trained)


def test_dynamics_keep_the_total_energy(trained):
    """Velocity Verlet is of second order: half the time step leaves a quarter of the deviation."""
    start = crystals(1)

    def follow(step, count):
        batch = start
        velocity = 0.05 * torch.from_numpy(np.random.default_rng(0).normal(size=(batch.n_atoms, 3)))
        out, totals = evaluate(trained, batch), []
        for _ in range(count):
            half = velocity + 0.5 * step * out.forces.mean(0)
            batch = batch.replace(positions=batch.positions + step * half.numpy())
            out = evaluate(trained, batch)
            velocity = half + 0.5 * step * out.forces.mean(0)
            totals.append(float(out.energy.mean() + 0.5 * velocity.square().sum()))
        return np.ptp(totals)

    whole, half = follow(4e-3, 40), follow(2e-3, 80)
    assert whole / half == pytest.approx(4, rel=0.15)
    assert whole < 0.1


def second_differences(energy, h):
    return float(energy.diff(n=2, dim=1).abs().max()) / h**2


@pytest.mark.parametrize("low", [3.5, 0.9], ids=["through the cutoff", "through both switches"])
def test_pairs_have_no_kinks(trained, low):
    """A kink doubles the second difference over h^2 when h is halved."""
    found = []
    for h in (0.004, 0.002):
        points = np.arange(low, low + 0.7, h).repeat(2)
        found.append(second_differences(evaluate(trained, dimers(29, 29, points), forces=False).energy[:, ::2], h))
    assert found[1] < 1.05 * found[0] + 1e-6


def test_volume_curves_have_no_kinks(trained):
    (atoms,) = crystals(1).to_ase()
    found = []
    for h in (0.002, 0.001):
        images = []
        for strain in np.arange(-0.03, 0.03, h).repeat(2):
            images.append(atoms.copy())
            images[-1].set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        found.append(
            second_differences(evaluate(trained, StructureBatch.from_ase(images), forces=False).energy[:, ::2], h)
        )
    assert found[1] < 1.1 * found[0]
