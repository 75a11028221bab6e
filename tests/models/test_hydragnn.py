"""HydraGNN's model as an ensemble of ours: the formulas of its own code, its state dict, its folder."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from atomsieve.errors import DataError, UsageError
from atomsieve.export.functional import Functional
from atomsieve.gfm import load_gfm, save_gfm
from atomsieve.graphs.neighbors import build_graph
from atomsieve.models import Ensemble, ModelConfig
from atomsieve.models.hydragnn.state_dict import from_hydragnn_state, hydragnn_config, plain_heads, to_hydragnn_state
from tests.helpers import copper_oxides, tiny_ensemble

HEADS, CUTOFF, STEP = 3, 4.0, 1e-4
CHARGE, SPIN = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([1.0, 2.0, 1.0])


def hydra(members=1, **config):
    given = {"hidden": 9, "layers": 2, "n_basis": 4, "cutoff": CUTOFF, "charge_spin": True, "max_neighbors": 7}
    given |= {"hydragnn": {"shared": (6, 5), "heads": (8, 7)}, **config}
    model = ModelConfig(encoder="hydragnn_painn", **given)
    ensemble = Ensemble(model, plain_heads(HEADS), range(3, 3 + members)).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for name, p in ensemble.named_parameters():
        if "bias" in name:
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return ensemble


def graph_of(batch, ensemble):
    config = ensemble.config
    return build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=torch.float64)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def by_formulas(state, graph, vec, branch, attributes, layers=2, radial=4):
    """Energies [S] from a state dict in HydraGNN's names, edge by edge: nothing of the package but the graph."""
    numbers, structure = graph.numbers.tolist(), graph.structure
    atoms = len(numbers)
    edges = list(zip(graph.neighbors.receiver.tolist(), graph.neighbors.sender.tolist(), vec, strict=True))
    s = [torch.tensor([float(z)], dtype=torch.float64) for z in numbers]
    v = [torch.zeros(3, 1, dtype=torch.float64) for _ in numbers]
    for layer in range(layers):
        at, last = f"graph_convs.{layer}", layer == layers - 1
        width = s[0].shape[0]
        new_s, new_v = list(s), list(v)
        for a, b, d in edges:
            r = d.norm()
            u = d / (r + 1e-9)
            rbf = torch.stack([torch.sin(n * torch.pi * r / CUTOFF) / r for n in range(1, radial + 1)])
            cut = 0.5 * (torch.cos(torch.pi * r / CUTOFF) + 1)
            filters = linear(state, f"{at}.module_0.filter_layer", rbf) * cut
            phi = F.silu(linear(state, f"{at}.module_0.scalar_message_mlp.0", s[b]))
            g_v, g_e, m_s = (filters * linear(state, f"{at}.module_0.scalar_message_mlp.2", phi)).split(width)
            new_s[a] = new_s[a] + m_s
            new_v[a] = new_v[a] + v[b] * g_v + (u / r).unsqueeze(1) * g_e
        for a in range(atoms):
            x, y = new_s[a], new_v[a]
            left, right = linear(state, f"{at}.module_1.update_U", y), linear(state, f"{at}.module_1.update_V", y)
            q = torch.cat([torch.linalg.norm(right, dim=0), x])
            q = linear(state, f"{at}.module_1.update_mlp.2", F.silu(linear(state, f"{at}.module_1.update_mlp.0", q)))
            inner = (left * right).sum(0)
            if last:
                a_sv, a_ss = q.split(width)
            else:
                a_vv, a_sv, a_ss = q.split(width)
                y = y + a_vv * left
            x = x + a_sv * inner + a_ss
            x = linear(state, f"{at}.module_2.2", torch.tanh(linear(state, f"{at}.module_2.0", x)))
            if not last:
                v[a] = linear(state, f"{at}.module_3", y)
            if attributes is not None:
                x = linear(state, "graph_concat_projector", torch.cat([x, attributes[structure[a]]]))
            s[a] = torch.relu(x)
    energies = []
    for k in range(graph.n_structures):
        x = torch.stack([s[a] for a in range(atoms) if structure[a] == k]).sum(0)
        for name in (
            "graph_shared.branch-{}.0",
            "graph_shared.branch-{}.2",
            "heads_NN.0.branch-{}.0",
            "heads_NN.0.branch-{}.2",
        ):
            x = torch.relu(linear(state, name.format(branch), x))
        energies.append(linear(state, f"heads_NN.0.branch-{branch}.4", x)[0])
    return torch.stack(energies)


CONFIGS = [{}, {"charge_spin": False, "max_neighbors": None}, {"layers": 3}, {"biased": True}]


@pytest.mark.parametrize("config", CONFIGS, ids=["truncated", "no-conditioning", "three-layers", "biased-vectors"])
def test_it_is_what_the_formulas_say(config):
    given = dict(config)
    if given.pop("biased", False):
        given["hydragnn"] = {"shared": (6, 5), "heads": (8, 7), "vector_bias": True}
    ensemble, batch = hydra(2, **given), copper_oxides(3)
    graph = graph_of(batch, ensemble)
    assert graph.neighbors.complete == (ensemble.config.max_neighbors is None)
    state = (CHARGE, SPIN) if ensemble.config.charge_spin else ()
    attributes = torch.stack([CHARGE, SPIN], 1).double() if state else None
    for branch in (0, 2):
        ours = ensemble(graph, torch.full((3,), branch), *state, stress=True)
        for member in range(2):
            vec = graph.vec.clone().requires_grad_()
            names = to_hydragnn_state(ensemble, member)
            energy = by_formulas(names, graph, vec, branch, attributes, ensemble.config.layers)
            (gradient,) = torch.autograd.grad(energy.sum(), vec)
            forces = torch.zeros(batch.n_atoms, 3, dtype=torch.float64)
            forces.index_add_(0, graph.neighbors.receiver, gradient).index_add_(0, graph.neighbors.sender, -gradient)
            assert torch.allclose(ours.energy[member], energy.detach(), rtol=1e-12, atol=1e-12)
            assert float((ours.forces[member] - forces).abs().max()) < 1e-11 * float(forces.abs().max())


def test_mixed_heads_are_the_weighted_sum_by_one_pass():
    ensemble, batch = hydra(2), copper_oxides(3)
    graph = graph_of(batch, ensemble)
    weights = torch.softmax(torch.randn(3, HEADS, generator=torch.Generator().manual_seed(1)).double(), 1)
    mixed = ensemble(graph, weights, CHARGE, SPIN, stress=True)
    heads = [ensemble(graph, torch.full((3,), k), CHARGE, SPIN, stress=True) for k in range(HEADS)]
    of_atoms = weights[graph.structure]
    assert torch.allclose(mixed.energy, sum(weights[:, k] * h.energy for k, h in enumerate(heads)), atol=1e-12)
    assert torch.allclose(mixed.head_energy, torch.stack([h.energy for h in heads], 2), atol=1e-12)
    assert torch.allclose(mixed.forces, sum(of_atoms[:, k, None] * h.forces for k, h in enumerate(heads)), atol=1e-12)
    virial = sum(weights[:, k, None, None] * h.virial for k, h in enumerate(heads))
    assert torch.allclose(mixed.virial, virial, atol=1e-12)
    different = ensemble(graph, torch.tensor([2, 0, 2]), CHARGE, SPIN)
    assert torch.allclose(different.energy[:, 1], heads[0].energy[:, 1], atol=1e-12)
    assert torch.allclose(different.energy[:, 2], heads[2].energy[:, 2], atol=1e-12)


def test_the_state_dict_goes_there_and_back_and_tells_the_architecture():
    ensemble = hydra(2, hydragnn={"shared": (6, 5), "heads": (8, 7), "vector_bias": True})
    states = [to_hydragnn_state(ensemble, k) for k in range(2)]
    assert states[0]["graph_convs.0.module_0.scalar_message_mlp.2.weight"].shape == (3, 1)
    assert states[0]["graph_convs.1.module_0.filter_layer.weight"].shape == (27, 4)
    again = from_hydragnn_state(states, hydragnn_config(states[0], CUTOFF, 7))
    assert again.config.model_dump(exclude={"typical_neighbors"}) == ensemble.config.model_dump(
        exclude={"typical_neighbors"}
    )
    for name, t in ensemble.state_dict().items():
        assert torch.equal(again.state_dict()[name], t), name


def test_the_lead_model_has_the_sizes_that_are_published():
    config = ModelConfig(encoder="hydragnn_painn", hidden=337, layers=2, n_basis=4, charge_spin=True)
    ensemble = Ensemble(config, plain_heads(16), [0])
    assert sum(p.numel() for p in ensemble.parameters()) == 1_485_867 + 114_580 + 10_604_080
    assert len(to_hydragnn_state(ensemble)) == 193 + 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.pop("graph_concat_projector.bias"), r"missing: graph_concat_projector\.bias \(1 in all\)"),
        (lambda s: s.update(odd=torch.zeros(1)), r"unexpected: odd \(1 in all\)"),
        (lambda s: s.update({"graph_shared.branch-1.0.bias": torch.zeros(4)}), r"wrong shape: graph_shared.branch-1.0"),
        (lambda s: s.pop("graph_convs.0.module_2.2.weight"), "a prefix was not stripped"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_key_by_key(spoil, said):
    state = to_hydragnn_state(hydra())
    spoil(state)
    with pytest.raises(DataError, match=said) as caught:
        from_hydragnn_state(state)
    assert "\n" not in str(caught.value)


def test_a_folder_holds_it(tmp_path):
    ensemble = hydra(2).float()
    folder = save_gfm(tmp_path / "gfm", ensemble, default_head="branch-1")
    again, manifest = load_gfm(folder)
    assert again.config == ensemble.config
    assert manifest.config.options.heads == (8, 7)
    for name, p in ensemble.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], p), name


def test_parameters_get_gradients_through_forces():
    """As training needs: the derivative of a loss on forces by a weight, against a finite difference."""
    ensemble, batch = hydra().requires_grad_(True), copper_oxides(3)
    graph, p = graph_of(batch, ensemble), dict(ensemble.named_parameters())["encoder.layers.1.filters"]

    def loss():
        return ensemble(graph, torch.ones(3, dtype=torch.int64), CHARGE, SPIN, create_graph=True).forces.pow(2).sum()

    loss().backward()
    place = int(p.grad.abs().argmax())
    found = float(p.grad.view(-1)[place])
    with torch.no_grad():
        p.view(-1)[place] += STEP
        above = loss()
        p.view(-1)[place] -= 2 * STEP
        below = loss()
    assert found == pytest.approx(float(above - below) / (2 * STEP), rel=1e-5)
    assert abs(found) > 1e-6


def test_atoms_without_neighbours_spoil_no_gradient():
    ensemble, lone = hydra().requires_grad_(True), copper_oxides(3)
    lone = lone.replace(cell=lone.cell * 0, pbc=lone.pbc & False, positions=lone.positions * 50)
    graph = graph_of(lone, ensemble)
    assert graph.n_edges == 0
    found = ensemble(graph, torch.ones(3, dtype=torch.int64), CHARGE, SPIN, create_graph=True)
    (found.forces.pow(2).sum() + found.energy.pow(2).sum()).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in ensemble.parameters())


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="go together"):
        ModelConfig(encoder="hydragnn_painn", basis="bessel")
    with pytest.raises(ValueError, match="goes with encoder hydragnn_painn"):
        ModelConfig(hydragnn={})
    with pytest.raises(ValueError, match="conservative"):
        tiny_ensemble(encoder="hydragnn_painn", forces="direct")
    with pytest.raises(UsageError, match="cannot be exported; use --backend native"):
        Functional(hydra(), precision="fp32", kind="forces")
