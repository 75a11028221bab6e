"""The short-range repulsion: its formula, its switches, and what it promises for any weights."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from pydantic import ValidationError

from atomsieve.export.functional import Functional
from atomsieve.graphs.neighbors import build_graph
from atomsieve.models import Ensemble, HeadSpec, ModelConfig
from atomsieve.models import repulsion as zbl
from atomsieve.structures import StructureBatch
from atomsieve.testing import encoders
from atomsieve.testing.cells import crystals

ELEMENTS = (1, 3, 6, 7, 8, 13, 19, 26, 29, 42, 55, 57, 74, 79, 92)
PAIRS = [(a, b) for a in ELEMENTS for b in ELEMENTS if a <= b][::4]


RADII = zbl.pair_tables(torch.float64, torch.device("cpu")).radii


def make_ensemble(kind="deep", members=2, **config):
    references = dict.fromkeys(ELEMENTS, -1.0)
    heads = [
        HeadSpec(name=n, level_of_theory="none", references=references, scale=s, elements=dict.fromkeys(ELEMENTS, 1))
        for n, s in (("first", 20.0), ("second", 3.0))
    ]
    model = ModelConfig(**{"hidden": 16, "layers": 2, "cutoff": 4.5, "repulsion": "zbl", **config})
    return Ensemble(model, heads, range(1, members + 1), kind).double().requires_grad_(False)


def dimers(a, b, distances):
    return StructureBatch.from_ase([Atoms([a, b], [[0, 0, 0], [d, 0, 0]]) for d in distances])


def evaluate(ensemble, batch, head=0, **wanted):
    graph = build_graph(batch, ensemble.config.cutoff, max_neighbors=ensemble.config.max_neighbors, dtype=torch.float64)
    index = head if isinstance(head, torch.Tensor) else torch.full((len(batch),), head)
    return ensemble(graph, index, **wanted)


def repel(d, a, b, cutoff=6.0):
    d = torch.as_tensor(d, dtype=torch.float64).requires_grad_()
    tables = zbl.pair_tables(torch.float64, torch.device("cpu"))
    reach, powers = (t[a] + t[b] for t in tables)
    energy, slope = zbl.repel(d, reach.expand_as(d), torch.full_like(d, a * b), powers.expand_as(d), cutoff)
    return d, energy, slope


def test_energy_of_screened_nuclei():
    """Two silicon atoms at 0.5 Angstrom, written out: a = 0.8854 * 0.529177 / (2 * 14^0.23) = 0.127674 Angstrom."""
    x = 0.5 / 0.127674
    phi = 0.18175 * np.exp(-3.1998 * x) + 0.50986 * np.exp(-0.94229 * x)
    phi += 0.28022 * np.exp(-0.4029 * x) + 0.02817 * np.exp(-0.20162 * x)
    assert float(repel([0.5], 14, 14)[1].detach()) == pytest.approx(14.399645 * 196 / 0.5 * phi, rel=2e-5)


@pytest.mark.parametrize("cutoff", [6.0, 1.5])
def test_slopes_are_derivatives_and_all_ends_at_the_switch(cutoff):
    reach = 2 * covalent_radii[14]
    end = min(zbl.SWITCH[1] * reach, cutoff)
    d, energy, slope = repel(torch.linspace(0.2, 2.0, 400), 14, 14, cutoff)
    (exact,) = torch.autograd.grad(energy.sum(), d, create_graph=True)
    assert torch.allclose(slope, exact, rtol=1e-12, atol=1e-12)
    assert bool((energy[d >= end] == 0).all() and (slope[d >= end] == 0).all())
    inside = d < end - 1e-3
    assert bool((slope[inside] < 0).all())
    d, energy, slope = repel([end - 1e-4], 14, 14, cutoff)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    assert abs(float(energy.detach())) < 1e-8 and abs(float(slope.detach())) < 1e-4 and abs(float(curvature)) < 1.0


def test_floor_of_distances():
    d = torch.linspace(0.1, 2.0, 500, dtype=torch.float64).requires_grad_()
    seen, rate = zbl.floor_distance(d, torch.full_like(d, 2.0))
    (exact,) = torch.autograd.grad(seen.sum(), d)
    assert torch.allclose(rate, exact, atol=1e-12)
    assert bool((rate[d < 1.2] == 0).all()) and torch.equal(seen[d >= 1.4], d[d >= 1.4])
    assert float((seen.detach()[1:] - seen.detach()[:-1]).min()) >= -1e-15


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_dimers_repel_each_other_whatever_the_weights_are(kind):
    """Untrained weights, whose energies are tens of eV here; 30 pairs of elements, every head and member."""
    ensemble = make_ensemble(kind)
    assert len(PAIRS) == 30
    for a, b in PAIRS:
        d = np.arange(0.3, max(0.6 * float(RADII[a] + RADII[b]), 0.34), 0.02)
        for head in (0, 1):
            out = evaluate(ensemble, dimers(a, b, d), head)
            assert bool((out.forces[:, 1::2, 0] > 0).all()), (a, b, head)
            assert bool((out.energy.diff(dim=1) < 0).all()), (a, b, head)


def test_the_network_has_no_force_along_a_close_pair():
    """The gradient by an edge, of members that differ in all weights, turned back through the floor."""
    batch = StructureBatch.from_ase([Atoms("SiOCu", [[0, 0, 0], [0.7, 0, 0], [0.3, 2.1, 0.4]])])
    graph = build_graph(batch, 4.5, dtype=torch.float64)
    short = zbl.find_short_edges(graph, graph.vec)
    assert short.distance.tolist() == pytest.approx([0.7, 0.7])
    turned = short.pull_back(torch.randn(2, graph.n_edges, 3, dtype=torch.float64))
    assert float((turned[:, short.rows] * short.vec).sum(2).abs().max()) < 1e-12
    out = evaluate(make_ensemble(), dimers(14, 8, [0.7]))
    alone = -repel([0.7], 14, 8)[2].detach()
    assert torch.allclose(out.forces[:, 1, 0], alone.expand(2), rtol=1e-9)


@pytest.mark.parametrize("forces", ["conservative", "direct"])
@pytest.mark.parametrize("most", [None, 7])
@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_the_function_that_exports_are_made_of(kind, most, forces):
    ensemble = make_ensemble(kind, max_neighbors=most, forces=forces)
    functional = Functional(ensemble, precision="fp64", kind="forces")
    batch = StructureBatch.from_ase(
        [*dimers(8, 29, [0.5, 1.1, 1.35]).to_ase(), *crystals(2).to_ase(), bulk("Cu", "bcc", a=1.9), Atoms("H")]
    )
    given = encoders.export_inputs(ensemble, batch)
    arrays = (torch.from_numpy(a) for a in given.values())
    found = dict(zip([slot.name for slot in functional.outputs], functional(*arrays), strict=True))
    conservative = ensemble.config.forces == "conservative"
    exact = encoders.evaluate(ensemble, batch)
    references = ensemble.reference_energy(batch.numbers, batch.ptr, 1)
    assert found["energy"].numpy() == pytest.approx(exact.energy.mean(0).numpy() + references, rel=1e-10)
    assert found["forces"].numpy() == pytest.approx(exact.forces.mean(0).numpy(), rel=1e-9, abs=1e-8)
    if conservative:
        assert found["virial"].numpy() == pytest.approx(exact.virial.mean(0).numpy(), rel=1e-9, abs=1e-8)


def test_virial_is_the_derivative_by_strain():
    encoders.check_virial(encoders.build_untrained("painn", repulsion="zbl"))


def test_forces_of_close_atoms_are_the_gradient(monkeypatch):
    """Curvatures are large here, so the central difference is finer than elsewhere."""
    monkeypatch.setattr(encoders, "STEP", 2e-5)
    encoders.check_forces(encoders.build_untrained("painn", repulsion="zbl", max_neighbors=7))


def test_mixtures_of_heads_hold_the_repulsion_once():
    ensemble = make_ensemble()
    batch = dimers(8, 13, [0.5, 0.9, 3.0])
    first, second = (evaluate(ensemble, batch, k) for k in (0, 1))
    mixed = evaluate(ensemble, batch, torch.tensor([[0.25, 0.75]], dtype=torch.float64).expand(3, -1), stress=True)
    assert torch.allclose(mixed.energy, 0.25 * first.energy + 0.75 * second.energy, rtol=1e-12)
    assert torch.allclose(mixed.head_energy[:, :, 1], second.energy, rtol=1e-12)
    assert torch.allclose(mixed.forces, 0.25 * first.forces + 0.75 * second.forces, atol=1e-9)
    assert torch.allclose(first.atom_energy.double().view(2, 3, 2).sum(2), first.energy, rtol=1e-9)


def test_far_atoms_are_not_touched():
    batch = dimers(14, 14, [1.7, 2.2, 4.0])
    plain, with_it = (evaluate(make_ensemble(repulsion=name), batch) for name in ("none", "zbl"))
    assert torch.equal(plain.energy, with_it.energy) and torch.equal(plain.forces, with_it.forces)


def test_core_radii():
    """Covalent radii; less of elements that give away their outer shell; those without one have that of curium."""
    assert [float(RADII[z]) for z in (1, 6, 26, 74)] == [covalent_radii[z] for z in (1, 6, 26, 74)]
    soft = [3, 19, 20, 22, 57, 71, 92, 96]
    assert RADII[soft].tolist() == pytest.approx([0.75 * covalent_radii[z] for z in soft])
    assert float(RADII[99]) == float(RADII[96]) and float(RADII[118]) == pytest.approx(1.69)


def test_configurations_without_it_keep_their_form():
    assert "repulsion" not in ModelConfig().model_dump()
    assert ModelConfig(repulsion="zbl").model_dump()["repulsion"] == "zbl"
    assert ModelConfig.model_validate(ModelConfig().model_dump()).repulsion == "none"
    with pytest.raises(ValidationError, match="'none' or 'zbl'"):
        ModelConfig(repulsion="zlb")
