"""What a shallow ensemble costs beside one network and beside deep ensembles, and how good it is.

    OMP_NUM_THREADS=1 python benchmarks/shallow.py cost [--hidden 64] [--layers 3] [--cutoff 5] [--training]
    python benchmarks/shallow.py compare RUN [RUN ...]

cost: energies and forces of the mean with the native backend in FP32, random crystals of 20 atoms in batches of 1, 16
and 64. All ways are timed in turns, so that a busy machine slows all alike; times are medians, ratios are to one
network of the same size. `--training` times gradients of a training step instead.

compare: of output folders of `atomsieve train`, the errors on their test parts, and how well the raw spread tells the
size of the errors: root mean square error / root mean square spread (1 is right, above 1 overconfident), rank
correlation of spread and error, parts of the errors within one and two spreads (a Gaussian has 0.68 and 0.95), and by
how many nats the spread of each structure, scaled by one number, beats a constant. All by source; --mean for one row a
run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from speed.ensemble import crystals

from atomsieve.cli.launch import relaunch
from atomsieve.graphs import build_graph
from atomsieve.models import Ensemble, HeadSpec, ModelConfig

FOLDED = 0.7979
"""Mean of the absolute value of a Gaussian, in its standard deviation."""


def take_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median wall time of each call, after one that is not counted; calls are made in turns."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def ensembles(options: argparse.Namespace) -> dict[str, tuple[Ensemble, int | None]]:
    """Return the ways to compare by name: the ensemble, and of how many decoders forces are wanted."""
    config = ModelConfig(hidden=options.hidden, layers=options.layers, cutoff=options.cutoff)
    head = HeadSpec(name="any", level_of_theory="", references={}, scale=1.0, elements={})

    def make(members: int, kind: str) -> Ensemble:
        return Ensemble(config, [head], list(range(members)), kind)  # type: ignore[arg-type]

    found: dict[str, tuple[Ensemble, int | None]] = {
        "one network": (make(1, "deep"), None),
        "shallow 16, forces of the mean": (make(16, "shallow"), None),
    }
    if options.training:
        for drawn in (2, 4, 8):
            found[f"shallow 16, forces of {drawn} decoders"] = (found["shallow 16, forces of the mean"][0], drawn)
    else:
        found["shallow 16, forces of all decoders"] = (found["shallow 16, forces of the mean"][0], 16)
    return {**found, "deep 4": (make(4, "deep"), None), "deep 16": (make(16, "deep"), None)}


def cost(options: argparse.Namespace) -> None:
    """Print a table of times."""
    ways = ensembles(options)
    task = "gradients of a training step" if options.training else "energies and forces"
    print(
        f"{task}; {options.layers} layers of {options.hidden}, cutoff {options.cutoff:g} Angstrom, FP32, "
        f"{torch.get_num_threads()} thread(s), medians of {options.repeats}; ms, ratio to one network"
    )
    print(f"| crystals | {' | '.join(ways)} |\n|{' --- |' * (len(ways) + 1)}")
    for n in (1, 16, 64):
        graph = build_graph(crystals(n, 20), options.cutoff)
        index = torch.zeros(n, dtype=torch.int64)

        def call(model: Ensemble, drawn: int | None, graph=graph, index=index) -> None:  # type: ignore[no-untyped-def]
            members = None if drawn is None else range(drawn)
            if not options.training:
                with torch.no_grad():
                    model(graph, index, force_members=members)
                return
            out = model(graph, index, create_graph=True, force_members=members)
            model.zero_grad()
            (out.energy.pow(2).sum() + out.forces.pow(2).sum()).backward(inputs=list(model.parameters()))

        seconds = take_turns(
            {name: lambda m=m, d=d: call(m, d) for name, (m, d) in ways.items()},  # type: ignore[misc]
            options.repeats,
        )
        base = seconds["one network"]
        cells = [f"{1e3 * s:.1f} ({s / base:.2f})" for s in seconds.values()]
        print(f"| {n} | {' | '.join(cells)} |", flush=True)


def judge(error: np.ndarray, spread: np.ndarray) -> dict[str, float]:
    """Return what the spread says about errors, as named in the page of this file."""
    from scipy.stats import spearmanr

    size = np.abs(error)
    scale = np.mean((error / spread) ** 2)
    likely = 0.5 * np.mean(np.log(scale * spread**2) + error**2 / (scale * spread**2))
    return {
        "rms/spread": float(np.sqrt(np.mean(error**2) / np.mean(spread**2))),
        "rank": float(spearmanr(spread, size).statistic),
        "in 1": float(np.mean(size < spread)),
        "in 2": float(np.mean(size < 2 * spread)),
        "gain": float(0.5 * (np.log(np.mean(error**2)) + 1) - likely),
    }


def run_rows(folder: Path) -> dict[str, dict[str, float]]:
    """Return a row of numbers for each source of a run's test part."""
    import json

    found = np.load(folder / "evaluation_test.npz")
    sources = list(json.loads((folder / "data.json").read_text()))
    rows: dict[str, dict[str, float]] = {}
    for head, name in enumerate(sources):
        own = (found["head"] == head) & np.isfinite(found["energy"])
        if own.sum() < 5:
            continue
        atoms = found["n_atoms"][own]
        members = found["energy_members"][:, own] / atoms
        error, spread = members.mean(0) - found["energy"][own] / atoms, members.std(0, ddof=1)
        row = {"E meV/atom": 1e3 * float(np.abs(error).mean())}
        row |= {f"E {key}": value for key, value in judge(error, spread).items()}
        forced = found["has_forces"][own]
        if forced.sum() >= 5:
            from scipy.stats import spearmanr

            # of a structure there are the mean |error| of a component and the mean length of the spread
            force = found["force_error"][own][forced] / atoms[forced] / 3
            expected = FOLDED * found["force_spread"][own][forced] / np.sqrt(3)
            weights = atoms[forced]
            row["F meV/A"] = 1e3 * float(np.average(force, weights=weights))
            row["F error/spread"] = float(np.average(force, weights=weights) / np.average(expected, weights=weights))
            row["F rank"] = float(spearmanr(expected, force).statistic)
        rows[name] = row
    return rows


def compare(options: argparse.Namespace) -> None:
    """Print a table of runs by source, or of means over sources."""
    table = {folder: run_rows(folder) for folder in options.run}
    names = list(dict.fromkeys(key for rows in table.values() for row in rows.values() for key in row))
    print(f"| run | source | {' | '.join(names)} |\n|{' --- |' * (len(names) + 2)}")
    for folder, rows in table.items():
        if options.mean:
            mean = {key: float(np.mean([row[key] for row in rows.values() if key in row])) for key in names}
            rows = {"mean": mean}
        for source, row in rows.items():
            cells = [f"{row[key]:.2f}" if key in row else "" for key in names]
            print(f"| {folder.name} | {source} | {' | '.join(cells)} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    timed = verbs.add_parser("cost", help="times of a call")
    timed.add_argument("--hidden", type=int, default=64)
    timed.add_argument("--layers", type=int, default=3)
    timed.add_argument("--cutoff", type=float, default=5.0)
    timed.add_argument("--repeats", type=int, default=15)
    timed.add_argument("--training", action="store_true", help="a training step instead of energies and forces")
    timed.set_defaults(task=cost)
    judged = verbs.add_parser("compare", help="errors and spreads of finished runs")
    judged.add_argument("run", type=Path, nargs="+")
    judged.add_argument("--mean", action="store_true", help="one row a run: means over its sources")
    judged.set_defaults(task=compare)
    options = parser.parse_args()
    relaunch()  # with the allocator's settings, as the commands start
    options.task(options)


if __name__ == "__main__":
    main()
