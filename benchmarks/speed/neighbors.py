"""Structures per second of every neighbour list implementation, one thread, beside vesin.

    python benchmarks/speed/neighbors.py [--cutoff 5] [--sizes 2,8,20,50,100,500] [--seconds 1]

Crystals of random atoms at 18 cubic Angstrom per atom (about 29 neighbours within 5 Angstrom) in moderately skewed
cells. Batched implementations get one call per 4,000 atoms; vesin gets one call per structure, in its own order.
Times are processor time of this thread, the best of several repeats, so that other jobs on the machine disturb little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch

from atomsieve.graphs import build_graph, count_edges, neighbor_list
from atomsieve.structures.batch import StructureBatch

ATOMS_PER_CALL = 4000
VOLUME_PER_ATOM = 18.0


def crystals(n_structures: int, n_atoms: int, seed: int = 0) -> StructureBatch:
    """Return crystals of `n_atoms` random atoms each."""
    rng = np.random.default_rng(seed)
    length = (n_atoms * VOLUME_PER_ATOM) ** (1 / 3)
    cell = length * (np.eye(3) + rng.uniform(-0.2, 0.2, (n_structures, 3, 3)))
    cell *= (length / np.cbrt(np.abs(np.linalg.det(cell))))[:, None, None]
    positions = np.einsum("snk,skc->snc", rng.random((n_structures, n_atoms, 3)), cell).reshape(-1, 3)
    return StructureBatch(
        ptr=np.arange(n_structures + 1) * n_atoms,
        numbers=np.full(len(positions), 6, np.uint8),
        positions=positions,
        cell=cell,
        pbc=np.ones((n_structures, 3), bool),
        id=np.arange(n_structures),
    )


def best(work: Callable[[], object], seconds: float) -> float:
    """Return the least processor time of one call, over at least three calls and about `seconds` of them."""
    shortest, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or spent < seconds:
        start = time.thread_time()
        work()
        took = time.thread_time() - start
        shortest, spent, calls = min(shortest, took), spent + took, calls + 1
    return shortest


def vesin_calls(batch: StructureBatch, cutoff: float) -> Callable[[], object] | None:
    """Return a function that lists all structures with vesin, or None if it is not installed."""
    if find_spec("vesin") is None:
        return None
    import vesin

    calculator = vesin.NeighborList(cutoff=cutoff, full_list=True)
    parts = [batch.slice(s, s + 1) for s in range(batch.n_structures)]

    def work() -> None:
        for part in parts:
            calculator.compute(points=part.positions, box=part.cell[0], periodic=True, quantities="ijSD")

    return work


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Angstrom")
    parser.add_argument("--sizes", default="2,8,20,50,100,500", help="atoms per structure")
    parser.add_argument("--seconds", type=float, default=0.5, help="about this long per number")
    args = parser.parse_args()
    torch.set_num_threads(1)
    slower = ["torch"] + (["nvalchemi"] if find_spec("nvalchemiops") else [])
    heads = ["atoms", "edges/atom", "graph", "list", "count", *slower, "vesin", "graph/vesin"]
    print("structures per second, one thread; graph = native list and float32 vectors")
    print(" ".join(f"{h:>11}" for h in heads))
    for size in (int(text) for text in args.sizes.split(",")):
        batch = crystals(max(1, ATOMS_PER_CALL // size), size)
        edges = count_edges(batch, args.cutoff).sum()
        times = [
            best(lambda b=batch: build_graph(b, args.cutoff, implementation="native"), args.seconds),
            best(lambda b=batch: neighbor_list(b, args.cutoff, implementation="native"), args.seconds),
            best(lambda b=batch: count_edges(b, args.cutoff, implementation="native"), args.seconds),
            *(best(lambda b=batch, i=i: neighbor_list(b, args.cutoff, implementation=i), args.seconds) for i in slower),
        ]
        vesin_work = vesin_calls(batch, args.cutoff)
        times.append(best(vesin_work, args.seconds) if vesin_work else float("nan"))
        rates = [batch.n_structures / t for t in times]
        cells = [f"{size:>11}", f"{edges / batch.n_atoms:>11.1f}", *(f"{r:>11.0f}" for r in rates)]
        print(" ".join([*cells, f"{rates[0] / rates[-1]:>11.1f}"]), flush=True)


if __name__ == "__main__":
    main()
