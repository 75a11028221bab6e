"""Time energies and forces, and a training step, of stacked members by each implementation of the message.

    OMP_NUM_THREADS=2 python benchmarks/speed/ensemble.py [--atoms 20] [--structures 64] [--hidden 64] [--layers 3]

Ratios are against the plain message over edges with one member after the other, measured in the same run; times are
medians. Structures are random crystals, cutoff 5 Angstrom.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch

from atomsieve.graphs import Graph, build_graph
from atomsieve.models import Ensemble, HeadSpec, ModelConfig
from atomsieve.models.messages.message import message
from atomsieve.models.painn import encoder as painn
from atomsieve.native import kernels
from atomsieve.structures import StructureBatch


def crystals(n: int, atoms: int, seed: int = 0) -> StructureBatch:
    """Return random periodic structures at 15 Angstrom^3 per atom, atoms on a jittered grid."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    length = (15.0 * atoms) ** (1 / 3)
    positions = [(rng.permutation(grid)[:atoms] + rng.uniform(-0.1, 0.1, (atoms, 3))) * length / side for _ in range(n)]
    return StructureBatch(
        ptr=np.arange(n + 1, dtype=np.int64) * atoms,
        numbers=rng.integers(1, 90, n * atoms).astype(np.uint8),
        positions=np.concatenate(positions),
        cell=np.tile(np.eye(3) * length, (n, 1, 1)),
        pbc=np.ones((n, 3), bool),
        id=np.arange(n, dtype=np.int64),
    )


def median_time(call: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def predict(models: list[Ensemble], graph: Graph) -> None:
    """Energies and forces of all members."""
    index = torch.zeros(graph.n_structures, dtype=torch.int64)
    for model in models:
        with torch.no_grad():
            model(graph, index)


def learn(models: list[Ensemble], graph: Graph) -> None:
    """Gradients of a loss on energies and forces by all parameters."""
    index = torch.zeros(graph.n_structures, dtype=torch.int64)
    for model in models:
        out = model(graph, index, create_graph=True)
        model.zero_grad()
        (out.energy.pow(2).sum() + out.forces.pow(2).sum()).backward()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, default=20)
    parser.add_argument("--structures", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    batch = crystals(options.structures, options.atoms)
    graph = build_graph(batch, 5.0)
    config = ModelConfig(hidden=options.hidden, layers=options.layers)
    head = HeadSpec(name="any", level_of_theory="", references={}, scale=1.0, elements={})
    together = [Ensemble(config, [head], list(range(options.members)))]
    apart = [Ensemble(config, [head], [seed]) for seed in range(options.members)]
    print(
        f"{options.structures} structures, {graph.n_atoms} atoms, {graph.n_edges} edges, {options.members} members, "
        f"{options.layers} x {options.hidden}, FP32, {torch.get_num_threads()} threads; energies and forces"
    )
    ways = [
        ("edges", apart),
        ("edges", together),
        ("native", apart),
        ("native", together),
        ("layers", apart),
        ("layers", together),
    ]
    print("| task | message | members | ms | structures/s | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for task in (predict, learn):
        base = 0.0
        for way, models in ways:
            if (way == "layers" and task is learn) or (way in ("native", "layers") and kernels() is None):
                continue
            with mock.patch.multiple(painn, **patches(way)):
                seconds = median_time(functools.partial(task, models, graph), options.repeats)
            base = base or seconds
            how = "stacked" if models is together else "one by one"
            print(
                f"| {task.__name__} | {way} | {how} | {1e3 * seconds:.0f} | {options.structures / seconds:.0f} | "
                f"{base / seconds:.1f} |",
                flush=True,
            )


def patches(way: str) -> dict[str, object]:
    """Return what is to be replaced in `painn` so that layers go one way: compiled as a whole, or with a message."""
    if way == "layers":
        return {"layer_serves": painn.layer_serves}
    return {"layer_serves": lambda *given: False, "message": functools.partial(message, implementation=way)}


if __name__ == "__main__":
    main()
