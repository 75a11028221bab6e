"""The fast path of HydraGNN's model against the eager re-creation with autograd, and against finite differences."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.graphs import Graph, build_graph
from atomsieve.models.hydragnn.fast import model as hydragnn_fast
from atomsieve.models.hydragnn.fast.arrays import FastResult, Workspace, spans
from atomsieve.models.hydragnn.fast.model import FastHydraGNN, fast_available
from atomsieve.structures import StructureBatch

pytestmark = pytest.mark.skipif(not fast_available(), reason="compiled kernels are not installed")
SPEED = Path(__file__).resolve().parents[2] / "benchmarks" / "speed"


def load_eager() -> ModuleType:
    """Return benchmarks/speed/eager_hydragnn.py as a module."""
    spec = importlib.util.spec_from_file_location("eager_hydragnn", SPEED / "eager_hydragnn.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


eager = load_eager()
SMALL = {"hidden": 21, "heads": 3, "shared": (6, 5), "head": (11, 9)}


def random_boxes(counts: list[int], seed: int = 0) -> StructureBatch:
    rng = np.random.default_rng(seed)
    return StructureBatch.from_ase([Atoms(rng.integers(1, 95, n), rng.random((n, 3)) * 6) for n in counts])


def crystals() -> StructureBatch:
    rng = np.random.default_rng(1)
    images = [bulk("Cu"), bulk("NaCl", "rocksalt", a=5.6), bulk("Si").repeat((2, 1, 1)), bulk("Fe", cubic=True)]
    for image in images:
        image.rattle(0.1, rng=rng)
    return StructureBatch.from_ase(images)


def awkward() -> StructureBatch:
    """Lone atoms, a pair beyond the cutoff, a pair at the same height: structures with few or no edges."""
    return StructureBatch.from_ase(
        [Atoms("H"), Atoms("OH", [[0, 0, 0], [0, 0, 5.5]]), Atoms("He2", [[0, 0, 0], [1, 0, 0]])]
    )


def lists(batch: StructureBatch, max_neighbors: int | None = None) -> Graph:
    return build_graph(batch, 5.0, max_neighbors=max_neighbors, dtype=torch.float64)


def drawn(structures: int, heads: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Return charges and spins `[S,2]` and weights of heads `[S,B]`."""
    gen = torch.Generator().manual_seed(seed)
    attributes = torch.randn(structures, 2, generator=gen, dtype=torch.float64)
    return attributes, torch.softmax(torch.randn(structures, heads, generator=gen, dtype=torch.float64), 1)


def run_fast(fast: FastHydraGNN, graph: Graph, attributes: Tensor, mix: Tensor, **options: bool) -> FastResult:
    n = graph.neighbors
    return fast(
        graph.numbers,
        graph.vec,
        n.sender,
        n.receiver,
        n.row_ptr,
        graph.ptr,
        attributes[:, 0],
        attributes[:, 1],
        mix,
        **options,
    )


def run_eager(model, graph: Graph, attributes: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = graph.neighbors
    return model.fused(graph.numbers, graph.vec, n.sender, n.receiver, graph.structure, attributes, mix)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) if a.numel() else 0.0


def worst(fast: FastResult, oracle: tuple[Tensor, Tensor, Tensor]) -> float:
    return max(relative(a, b) for a, b in zip(fast[:3], oracle[:3], strict=True))


@pytest.mark.parametrize("vector_bias", [False, True])
@pytest.mark.parametrize("radial", [4, 3])
@pytest.mark.parametrize(
    "batch", [random_boxes([2, 37, 80, 1, 64]), crystals(), awkward()], ids=["boxes", "crystals", "few"]
)
def test_equals_the_eager_model_in_fp64(batch, radial, vector_bias):
    model = eager.build(eager.Shape(**SMALL, radial=radial, vector_bias=vector_bias))
    graph = lists(batch, 20)
    given = drawn(len(batch), 3)
    oracle = run_eager(model, graph, *given)
    found = run_fast(FastHydraGNN(model.state_dict(), "fp64"), graph, *given)
    # a vector map of width 1 leaves V = 0 nowhere but in lone atoms, where both take the gradient 0
    assert worst(found, oracle) < 1e-12


@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-12), ("fp32", 1e-4)])
def test_the_lead_model_equals_the_eager_one(precision, bound):
    model = eager.build()
    assert sum(p.numel() for p in model.parameters()) == 12_204_527
    assert len(model.state_dict()) == 195
    graph = lists(random_boxes([60, 2, 90]), 20)
    given = drawn(3, 16)
    found = run_fast(FastHydraGNN(model.state_dict(), precision), graph, *given)
    assert worst(found, run_eager(model, graph, *given)) < bound


def test_bf16_rounds_factors_and_stays_near():
    model = eager.build(eager.Shape(**SMALL))
    graph = lists(crystals(), 20)
    given = drawn(4, 3)
    each, _, _ = run_eager(model, graph, *given)
    found = run_fast(FastHydraGNN(model.state_dict(), "bf16"), graph, *given)
    exact = run_fast(FastHydraGNN(model.state_dict(), "fp32"), graph, *given)
    assert relative(exact.energy_per_head, each) < 1e-5 < relative(found.energy_per_head, each) < 3e-2
    assert found.edge_grad.dtype == torch.float32
    assert torch.isfinite(found.edge_grad).all()


@pytest.mark.parametrize("max_neighbors", [None, 6])
def test_edge_gradients_are_finite_differences(max_neighbors):
    model = eager.build(eager.Shape(**SMALL))
    fast = FastHydraGNN(model.state_dict(), "fp64")
    graph = lists(random_boxes([12, 25]), max_neighbors)
    given = drawn(2, 3)
    grad = run_fast(fast, graph, *given).edge_grad
    step = 1e-6
    for e in np.random.default_rng(0).integers(graph.n_edges, size=12):
        ends = []
        for sign in (1, -1):
            moved = graph.vec.clone()
            moved[e, 1] += sign * step
            turned = Graph(graph.numbers, graph.ptr, graph.structure, moved, graph.neighbors)
            ends.append(run_fast(fast, turned, *given).energy.sum())
        slope = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope - grad[e, 1]) < 1e-6 * grad.abs().max()


def test_blocks_and_groups_change_nothing(monkeypatch):
    model = eager.build(eager.Shape(**SMALL))
    batch = random_boxes([9, 30, 4, 50, 3, 3, 17])
    graph, given = lists(batch, 8), drawn(7, 3)
    whole = run_fast(FastHydraGNN(model.state_dict(), "fp64"), graph, *given)
    monkeypatch.setattr(hydragnn_fast, "BLOCK_ATOMS", {"cpu": 20})
    monkeypatch.setattr(hydragnn_fast, "GROUP_ATOMS", {"cpu": 60})
    fast = FastHydraGNN(model.state_dict(), "fp64")
    assert worst(run_fast(fast, graph, *given), tuple(whole)) < 1e-13
    # working arrays keep what an earlier, larger batch left in them
    small = lists(random_boxes([5]))
    again, fresh = drawn(1, 3), FastHydraGNN(model.state_dict(), "fp64")
    assert worst(run_fast(fast, small, *again), tuple(run_fast(fresh, small, *again))) == 0


def test_energies_alone_are_the_same():
    model = eager.build(eager.Shape(**SMALL))
    graph, given = lists(crystals()), drawn(4, 3)
    fast = FastHydraGNN(model.state_dict(), "fp64")
    alone, both = run_fast(fast, graph, *given, gradients=False), run_fast(fast, graph, *given)
    assert torch.equal(alone.energy_per_head, both.energy_per_head)
    assert alone.edge_grad.abs().max() == 0 < both.edge_grad.abs().max()


def test_one_head_of_all_the_weight_may_be_evaluated_alone():
    model = eager.build(eager.Shape(**SMALL))
    graph, (attributes, _) = lists(crystals()), drawn(4, 3)
    one = torch.zeros(4, 3, dtype=torch.float64)
    one[:, 1] = torch.tensor([1.0, 2.0, 0.5, 1.0])
    fast = FastHydraGNN(model.state_dict(), "fp64")
    alone, every = (run_fast(fast, graph, attributes, one, every_head=k) for k in (False, True))
    assert alone.energy_per_head[:, [0, 2]].abs().max() == 0 < every.energy_per_head[:, [0, 2]].abs().min()
    assert max(relative(a, b) for a, b in zip(alone[1:3], every[1:3], strict=True)) < 1e-13
    assert relative(alone.energy_per_head[:, 1], every.energy_per_head[:, 1]) < 1e-13


def test_features_are_what_the_heads_read():
    model = eager.build(eager.Shape(**SMALL))
    graph, given = lists(random_boxes([7, 20])), drawn(2, 3)
    found = run_fast(FastHydraGNN(model.state_dict(), "fp64"), graph, *given, features=True).features
    assert found is not None and found.shape == (27, 21)
    near = graph.neighbors
    pooled = model.encode(graph.numbers, graph.vec, near.sender, near.receiver, graph.structure, given[0])
    assert relative(torch.stack([found[:7].sum(0), found[7:].sum(0)]), pooled) < 1e-13


def test_calls_from_threads_do_not_mix():
    models = [eager.build(eager.Shape(**SMALL), seed=k) for k in (0, 1)]
    workspace = Workspace()
    fast = [FastHydraGNN(model.state_dict(), "fp64", workspace=workspace) for model in models]
    graphs = [lists(random_boxes([n, n + 9], seed=n), 9) for n in (30, 51, 17)]
    given = drawn(2, 3)
    jobs = [(model, graph) for model in fast for graph in graphs] * 4
    alone = [run_fast(model, graph, *given) for model, graph in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: run_fast(*job, *given), jobs))
    assert max(worst(a, b) for a, b in zip(together, alone, strict=True)) < 1e-13


def test_an_empty_batch():
    model = eager.build(eager.Shape(**SMALL))
    none = torch.zeros(0, dtype=torch.int64)
    start = torch.zeros(1, dtype=torch.int64)
    found = FastHydraGNN(model.state_dict())(
        none, torch.zeros(0, 3), none, none, start, start, torch.zeros(0), torch.zeros(0), torch.zeros(0, 3)
    )
    assert found.energy_per_head.shape == (0, 3)
    assert found.edge_grad.shape == (0, 3)


def test_spans_hold_every_structure_once():
    ptr = np.array([0, 0, 7, 7, 30, 31, 33, 90, 90])
    cut = list(spans(ptr, 24))
    assert [a for a, _ in cut] == [0, *(b for _, b in cut[:-1])]
    assert cut[-1][1] == 8
    assert all(ptr[b] - ptr[a] <= 24 or b == a + 1 for a, b in cut)


def test_what_is_not_the_architecture_is_refused():
    state = eager.build(eager.Shape(**SMALL)).state_dict()
    with pytest.raises(UsageError, match="unknown precision 'fp16'"):
        FastHydraGNN(state, "fp16")
    with pytest.raises(AtomSieveError, match=r"'graph_convs.1.module_1.update_mlp.2.weight' has shape \(63, 21\)"):
        FastHydraGNN(eager.build(eager.Shape(**SMALL, layers=3)).state_dict())
    with pytest.raises(AtomSieveError, match=r"does not know the entry 'node_embedding\.weight'"):
        FastHydraGNN({**state, "node_embedding.weight": torch.zeros(1)})
    with pytest.raises(AtomSieveError, match=r"has no 'graph_concat_projector\.bias'"):
        FastHydraGNN({k: v for k, v in state.items() if k != "graph_concat_projector.bias"})
    graph, given = lists(awkward()), drawn(3, 3)
    graph.numbers[0] = 119
    with pytest.raises(AtomSieveError, match="atomic number 119 is none"):
        run_fast(FastHydraGNN(state), graph, *given)
    with pytest.raises(AtomSieveError, match="heads of the state dict"):
        FastHydraGNN({**state, "heads_NN.1.branch-0.0.weight": torch.zeros(1)})
