"""HydraGNN's screening workload: its lead model and generator, an eager re-creation of its path beside ours.

    OMP_NUM_THREADS=1 python benchmarks/speed/paper.py device [--structures 24] [--precisions fp64,fp32,bf16]
    OMP_NUM_THREADS=1 python benchmarks/speed/paper.py loop   [--structures 100] [--precisions fp32]
    OMP_NUM_THREADS=1 python benchmarks/speed/paper.py files  [--structures 1000] [--precisions fp32] [--ranks 1,2]

Random structures of 2 to 500 atoms (Z up to 94) in an open box of 10 Angstrom, cutoff 5, at most 20 neighbours; two
PaiNN layers of 337 and sixteen heads of random weights, mixed by a network on the composition; energies and forces.
Structures with two atoms within 0.1 Angstrom, which a screening sets aside, are left out everywhere.

device: what their timer covers, from lists in memory to forces of the mixture. Eager and fast take turns on the same
structures, the same lists and the same number of threads; the fastest of each is taken, so that a busy machine matters
less (`--clock cpu` counts the process's own seconds instead, for one thread on a busy machine).
loop: from positions in memory to energies and forces of each structure. Eager: a k-d tree for each structure, batches
of a fixed count, one result at a time, as theirs. Ours: the predictor in batches of a budget of atoms.
files: from a file of structures to a finished results folder by `screen run`, its start included; beside the path
alone, and beside the eager loop, which neither reads nor writes anything (in FP32 for BF16).

`--device cuda` computes everything there on a GPU: eager as on a CPU, ours by fused kernels.

`--allocator default` leaves glibc's allocator as Python programs have it, `ours` sets it as our commands do. The eager
path makes edge-wide arrays all the time and is several times slower with the default; name the one that was used.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from eager_hydragnn import ELEMENTS, BranchWeights, EagerHydraGNN, build
from scipy.spatial import cKDTree

from atomsieve.cli.launch import relaunch
from atomsieve.gfm import record_files, save_gfm
from atomsieve.gfm.manifest import MIXTURE
from atomsieve.gfm.mixture_file import dump_mixture
from atomsieve.graphs import build_graph
from atomsieve.graphs.distance import shortest_distances
from atomsieve.models.hydragnn.fast.arrays import spans
from atomsieve.models.hydragnn.fast.model import FastHydraGNN
from atomsieve.models.hydragnn.state_dict import from_hydragnn_state
from atomsieve.predict import Predictor
from atomsieve.predict.status import SHORTEST_DISTANCE
from atomsieve.structures import StructureBatch
from atomsieve.structures.dataset.writer import write_structures
from atomsieve.structures.generate import RandomBoxes, generate
from atomsieve.uncertainty.head_mixture import composition, from_hydragnn_mixture

CUTOFF, NEIGHBORS, SEED = 5.0, 20, 42
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.float32}
RECIPE = RandomBoxes(charge=0.0, spin=0.0)


def structures(n: int) -> StructureBatch:
    """Return the first n structures of the generator whose atoms are far enough apart for a screening to compute."""
    drawn = StructureBatch.concatenate(list(generate(RECIPE, 0, 2 * n, SEED)))
    return drawn.take(np.flatnonzero(shortest_distances(drawn) >= SHORTEST_DISTANCE)[:n])


def branch_weights() -> BranchWeights:
    """Return the network that weighs heads, of random weights."""
    torch.manual_seed(1)
    return BranchWeights().double().requires_grad_(False)


def weighed(batch: StructureBatch) -> torch.Tensor:
    """Return the weight of each head in each structure, [S,16]."""
    return branch_weights()(torch.from_numpy(composition(batch.numbers, batch.ptr)))


def row(cells: list[str]) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def head(*names: str) -> None:
    """Print the head of a table."""
    row([*names])
    print("|" + " --- |" * len(names))


def clock_of(options: argparse.Namespace) -> Callable[[], float]:
    """Return a clock: seconds of the wall, or of this process; on a GPU after what it was told to do is done."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    if not options.device.startswith("cuda"):
        return clock
    if options.clock == "cpu":
        raise SystemExit("error: --clock cpu counts no seconds of a GPU; say --clock wall")

    def after() -> float:
        torch.cuda.synchronize(options.device)
        return clock()

    return after


def turns(calls: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the shortest time of each call, after one that is not counted; calls are made in turns."""
    best = dict.fromkeys(calls, np.inf)
    for k in range(repeats + 1):
        for name, call in calls.items():
            began = clock()
            call()
            if k:
                best[name] = min(best[name], clock() - began)
    return best


# -- device only ---------------------------------------------------------------------------------------------------


class Inputs:
    """Structures and their lists, as both paths take them."""

    def __init__(self, batch: StructureBatch, device: str = "cpu") -> None:
        self.batch = batch
        self.graph = build_graph(
            batch, CUTOFF, max_neighbors=NEIGHBORS, device=torch.device(device), dtype=torch.float64
        )
        self.mix = weighed(batch).to(device)
        self.attributes = torch.zeros(len(batch), 2, dtype=torch.float64, device=device)

    def eager(self, model: EagerHydraGNN, dtype: torch.dtype, count: int) -> tuple[torch.Tensor, ...]:
        """Return energies of heads, of the mixture, and edge gradients, in batches of `count` structures."""
        found = [
            self._eager(model, dtype, k, min(k + count, len(self.batch))) for k in range(0, len(self.batch), count)
        ]
        return tuple(torch.cat(part) for part in zip(*found, strict=True))

    def _eager(self, model: EagerHydraGNN, dtype: torch.dtype, first: int, last: int) -> tuple[torch.Tensor, ...]:
        g, near = self.graph, self.graph.neighbors
        a, b = int(g.ptr[first]), int(g.ptr[last])
        e, f = int(near.row_ptr[a]), int(near.row_ptr[b])
        return model.fused(
            g.numbers[a:b],
            g.vec[e:f].to(dtype),
            near.sender[e:f] - a,
            near.receiver[e:f] - a,
            g.structure[a:b] - first,
            self.attributes[first:last].to(dtype),
            self.mix[first:last].to(dtype),
        )

    def fast(self, model: FastHydraGNN) -> tuple[torch.Tensor, ...]:
        """Return the same by the fast path."""
        g, near = self.graph, self.graph.neighbors
        charge, spin = self.attributes.unbind(1)
        found = model(g.numbers, g.vec, near.sender, near.receiver, near.row_ptr, g.ptr, charge, spin, self.mix)
        return found.energy_per_head, found.energy, found.edge_grad


def device(options: argparse.Namespace) -> None:
    """Print what both paths take from lists in memory to forces."""
    torch.set_num_threads(options.threads)
    own = Inputs(structures(options.structures), options.device)
    atoms, edges, n = own.graph.n_atoms, own.graph.n_edges, len(own.batch)
    clock, where = clock_of(options), torch.device(options.device)
    print(
        f"{where}, device only: {n} structures, {atoms} atoms, {edges} edges, {options.threads} thread(s); eager in "
        f"batches of {options.eager_batch}; {options.clock} time, fastest of {options.repeats}"
    )
    row(
        ["precision", "path", "atoms/s", "edges/s", "structures/s", "to eager", "to eager FP32", "error", "force error"]
    )
    print("|" + " --- |" * 9)
    truth, base = None, 0.0
    state = build().state_dict()
    for precision in sorted(options.precisions, key=list(DTYPES).index):
        fast, dtype = FastHydraGNN(state, precision, device=where), DTYPES[precision]
        eager = build(precision=dtype).to(where)
        results: dict[str, tuple[torch.Tensor, ...]] = {}

        def call_eager(eager=eager, dtype=dtype, results=results) -> None:  # type: ignore[no-untyped-def]
            results["eager"] = own.eager(eager, dtype, options.eager_batch)

        def call_fast(fast=fast, results=results) -> None:  # type: ignore[no-untyped-def]
            results["fast"] = own.fast(fast)

        both = {"eager": call_eager, "fast": call_fast}
        if precision == "bf16":
            both.pop("eager")  # its products would be rounded the same way, and take longer than in FP32
        seconds = turns(both, options.repeats, clock)  # type: ignore[arg-type]
        if precision == "fp32":
            base = seconds["eager"]
        truth = truth or results.get("eager")
        for path, s in seconds.items():
            to_same = f"{seconds['eager'] / s:.1f}" if "eager" in seconds else ""
            error, force = (relative(results[path][k], truth[k]) if truth else np.nan for k in (1, 2))
            rates = [f"{x / s:,.0f}" for x in (atoms, edges)] + [
                f"{n / s:.1f}",
                to_same,
                f"{base / s:.1f}" if base else "",
            ]
            row([precision, path, *rates, f"{error:.0e}", f"{force:.0e}"])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


# -- loop ----------------------------------------------------------------------------------------------------------


def eager_loop(
    model: EagerHydraGNN, batch: StructureBatch, dtype: torch.dtype, count: int, device: str = "cpu"
) -> list[tuple[float, np.ndarray]]:
    """Return energy and forces of each structure, the way of their script: lists, batches and results one by one."""
    weights, found = branch_weights().to(dtype), []
    for first in range(0, len(batch), count):
        parts = [_one(batch, k) for k in range(first, min(first + count, len(batch)))]
        sizes = [len(numbers) for numbers, _, _ in parts]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        numbers = torch.from_numpy(np.concatenate([p[0] for p in parts])).long()
        positions = torch.from_numpy(np.concatenate([p[1] for p in parts])).to(dtype)
        edge = torch.from_numpy(np.concatenate([p[2] + starts[k] for k, p in enumerate(parts)], axis=1))
        structure = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(sizes))
        counts = torch.stack(
            [torch.bincount(numbers[structure == k], minlength=ELEMENTS + 1)[1:] for k in range(len(parts))]
        )
        mix = weights(counts.to(dtype)).to(device)
        numbers, positions, edge, structure = (t.to(device) for t in (numbers, positions, edge, structure))
        vec = positions[edge[1]] - positions[edge[0]]
        _, energy, grad = model.fused(
            numbers,
            vec,
            edge[1],
            edge[0],
            structure,
            torch.zeros(len(parts), 2, dtype=dtype, device=device),
            mix,
        )
        forces = torch.zeros_like(positions).index_add(0, edge[0], grad).index_add(0, edge[1], -grad)
        found += [(energy[k].item(), forces[structure == k].cpu().numpy()) for k in range(len(parts))]
    return found


def _one(batch: StructureBatch, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, positions and edges (receiver, sender) of one structure, by a k-d tree."""
    own = slice(int(batch.ptr[k]), int(batch.ptr[k + 1]))
    positions = np.asarray(batch.positions[own])
    far, near = cKDTree(positions).query(positions, NEIGHBORS + 1, distance_upper_bound=CUTOFF)
    receiver, place = np.nonzero(np.isfinite(far) & (near != np.arange(len(positions))[:, None]))
    return batch.numbers[own], positions, np.stack([receiver, near[receiver, place]])


def our_loop(predictor: Predictor, batch: StructureBatch, atoms: int) -> Iterator[np.ndarray]:
    """Yield forces of batches of a budget of atoms by the predictor."""
    for first, last in spans(batch.ptr, atoms):
        yield predictor(batch.slice(first, last), ("energy", "forces"), head="auto").forces


def ensemble(folder: Path) -> Path:
    """Write the model and its weights of heads as an ensemble folder."""
    made = from_hydragnn_state(build().state_dict())
    save_gfm(folder, made, default_head="branch-0")
    mixture = from_hydragnn_mixture(branch_weights().state_dict(), [h.name for h in made.heads])
    record_files(folder, {MIXTURE: dump_mixture(mixture)})
    return folder


def loop(options: argparse.Namespace) -> None:
    """Print what both loops take from positions in memory to results."""
    torch.set_num_threads(options.threads)
    batch = structures(options.structures)
    few = batch.slice(0, min(options.eager_structures, len(batch)))
    clock = clock_of(options)
    print(
        f"{options.device}, loop: {len(batch)} structures, {batch.n_atoms} atoms (eager: {len(few)}, {few.n_atoms}), "
        f"{options.clock} time"
    )
    head("precision", "path", "atoms/s", "structures/s", "to eager")
    with tempfile.TemporaryDirectory() as place:
        folder = ensemble(Path(place) / "gfm")
        for precision in options.precisions:
            model = build(precision=DTYPES[precision]).to(options.device)
            predictor = Predictor.load(folder, precision=precision, device=options.device)
            seconds = turns(
                {
                    "eager": lambda m=model, p=precision: eager_loop(  # type: ignore[misc]
                        m, few, DTYPES[p], options.eager_batch, options.device
                    ),
                    "fast": lambda p=predictor: list(our_loop(p, batch, options.batch_atoms)),  # type: ignore[misc]
                },
                options.repeats,
                clock,
            )
            rates = {"eager": few.n_atoms / seconds["eager"], "fast": batch.n_atoms / seconds["fast"]}
            each = {"eager": len(few) / seconds["eager"], "fast": len(batch) / seconds["fast"]}
            for path, rate in rates.items():
                row([precision, path, f"{rate:,.0f}", f"{each[path]:.1f}", f"{rate / rates['eager']:.1f}"])


# -- file to file --------------------------------------------------------------------------------------------------


def files(options: argparse.Namespace) -> None:
    """Print what `screen run` takes from a file of structures to a results folder, beside the path alone."""
    batch = structures(options.structures)
    few, cpu = batch.slice(0, min(options.eager_structures, len(batch))), options.clock == "cpu"
    alone, clock = Inputs(batch.slice(0, min(40, len(batch))), options.device), clock_of(options)
    print(
        f"{options.device}, file to file: {len(batch)} structures, {batch.n_atoms} atoms; {options.clock} time of the "
        f"whole command; the eager loop: {few.n_atoms} atoms"
    )
    head("precision", "ranks", "seconds", "structures/s", "atoms/s", "path alone", "to path", "eager loop", "to eager")
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder, source = ensemble(Path(place) / "gfm"), Path(place) / "boxes.bp"
        write_structures(source, batch)
        for precision in options.precisions:
            torch.set_num_threads(1)
            dtype = DTYPES[precision]
            fast = FastHydraGNN(build().state_dict(), precision, device=torch.device(options.device))
            model = build(precision=dtype).to(options.device)
            seconds = turns(
                {
                    "fast": lambda f=fast: alone.fast(f),  # type: ignore[misc]
                    "eager": lambda m=model, d=dtype: eager_loop(m, few, d, options.eager_batch, options.device),  # type: ignore[misc]
                },
                2,
                clock,
            )
            path, eager = alone.graph.n_atoms / seconds["fast"], few.n_atoms / seconds["eager"]
            for ranks in options.ranks:
                runs = [_screen(folder, source, precision, ranks, cpu, options.device) for _ in range(options.repeats)]
                took = statistics.median(runs)
                rate = batch.n_atoms / took
                share = rate if cpu else rate / ranks
                cells = [f"{took:.1f}", f"{len(batch) / took:.1f}", f"{rate:,.0f}"]
                beside = [f"{path:,.0f}", f"{share / path:.2f}", f"{eager:,.0f}", f"{share / eager:.1f}"]
                row([precision, str(ranks), *cells, *beside])


def _clock(cpu: bool) -> float:
    """Return seconds of the wall clock, or those that finished child processes have computed."""
    spent = os.times()
    return spent.children_user + spent.children_system if cpu else time.perf_counter()


def _screen(folder: Path, source: Path, precision: str, ranks: int, cpu: bool, device: str) -> float:
    """Return the seconds of one `screen run`."""
    out = folder.parent / "results"
    program = [str(Path(sys.executable).parent / "screen"), "run", str(source), "--ensemble", str(folder)]
    program += ["--head", "auto", "--precision", precision, "--out", str(out), "--overwrite", "--quiet", "--forces"]
    program += ["--device", device]
    if ranks > 1:
        program = [str(Path(sys.executable).parent / "mpirun"), "-n", str(ranks), *program]
    began = _clock(cpu)
    done = subprocess.run(
        program, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    took = _clock(cpu) - began
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(program)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return took


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    listed = lambda kind: lambda text: [kind(x) for x in text.split(",")]  # noqa: E731
    for name, task, count, precisions in (
        ("device", device, 24, "fp64,fp32,bf16"),
        ("loop", loop, 100, "fp32"),
        ("files", files, 1000, "fp32"),
    ):
        verb = verbs.add_parser(name, help=str(task.__doc__).splitlines()[0])
        verb.add_argument("--structures", type=int, default=count)
        verb.add_argument("--precisions", type=listed(str), default=precisions.split(","))
        verb.add_argument("--repeats", type=int, default=3 if name != "files" else 1)
        verb.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 1)))
        verb.add_argument("--clock", choices=("wall", "cpu"), default="wall")
        verb.add_argument("--device", default="cpu", help="cpu or cuda")
        verb.add_argument("--allocator", choices=("ours", "default"), default="ours")
        verb.add_argument("--eager-batch", type=int, default=8, help="structures in a batch of the eager path")
        verb.add_argument("--eager-structures", type=int, default=16, help="structures that the eager loop is given")
        verb.add_argument("--batch-atoms", type=int, default=4096, help="atoms in a batch of our loop")
        verb.add_argument("--ranks", type=listed(int), default=[1], help="files: processes, e.g. 1,2")
        verb.add_argument("--folder", type=Path, help="files: where the temporary folder is made")
        verb.set_defaults(task=task)
    options = parser.parse_args()
    if options.allocator == "ours":
        relaunch()
    options.task(options)


if __name__ == "__main__":
    main()
