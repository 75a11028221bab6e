"""How a screening grows: a simulation from recorded chunk times, and what of it grows with structures and ranks.

    python benchmarks/speed/scale.py [--times benchmarks/scale_times.csv] [--figure docs/figures/scale.png]
    python benchmarks/speed/scale.py --results results/        # chunk times of a run of your own, from its ledger

Chunks are cut by the code that screens. Structures come in runs of --alike that take equally long, each run as much
longer or shorter than the mean as a recorded chunk drawn at random. Ranks take the next chunk when they are free, as
`screen run` does; beside it, equal parts for all ranks at the start. What is assumed and what was measured is printed
with the tables.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atomsieve.screen.results import ledger
from atomsieve.screen.results.chunks import LARGEST_CHUNK, Chunks
from atomsieve.screen.results.columns import ROW
from atomsieve.screen.results.ledger import KNOWN, Entry
from atomsieve.structures.dataset.manifest import DatasetManifest, PartRow, StepRow
from atomsieve.structures.source import SourceInfo

RANKS = (16, 128, 1024, 4096, 16384)
PER_NODE = 8
SMALL = 1024  # structures per chunk, asked for
SPREAD = 0.03  # standard deviation of the speed of ranks
SLOW, SLOW_SHARE = 0.5, 0.02  # stragglers: speed and share of ranks
CLAIM = 20e-6  # seconds that the counter needs for one claim; claims wait for each other
RESTART = 120.0  # seconds from a death to the first chunk of the next start
COMMIT, COLLECT = 2.0, 600.0  # seconds: defaults of `screen run`
NODE_HOURS = 50_000.0  # between two failures of one node
STEP, STEPS_PER_PART = 20_000, 1000  # of dataset folders, the defaults of their writer
Floats = NDArray[np.float64]


def recorded(path: Path) -> Floats:
    """Return the seconds per structure of recorded chunks, over their mean."""
    with open(path, newline="") as file:
        rows = [(int(row["structures"]), float(row["seconds"])) for row in csv.DictReader(file)]
    n, seconds = np.array(rows, float).T
    return (seconds / n) / (seconds.sum() / n.sum())


def record(results: Path, path: Path) -> None:
    """Write the chunk times of a results folder."""
    found = ledger.read(results / "ledger")
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["structures", "seconds"])
        out.writerows([found[chunk][-1].structures, found[chunk][-1].seconds] for chunk in sorted(found))


# -- the simulation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What the structures cost: structures/s and rank, recorded times over their mean, structures that are alike."""

    rate: float
    times: Floats
    alike: int


class World:
    """Chunks with their costs (seconds at full speed), and ranks with their speeds."""

    def __init__(self, chunks: Chunks, ranks: int, load: Load, seed: int, slow: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.starts = chunks.starts()
        sizes = np.diff(self.starts)
        self.costs = sizes / load.rate
        for size in np.unique(sizes):
            mine = np.flatnonzero(sizes == size)
            runs = max(1, round(int(size) / load.alike))
            self.costs[mine] *= rng.choice(load.times, (len(mine), runs)).mean(axis=1)
        self.speeds = rng.lognormal(-(SPREAD**2) / 2, SPREAD, ranks)
        if slow:
            self.speeds[rng.permutation(ranks)[: max(1, round(SLOW_SHARE * ranks))]] *= SLOW
        self.ideal = self.costs.sum() / self.speeds.sum()

    def parts(self) -> float:
        """Return the time where every rank gets an equal number of structures in one piece at the start."""
        ranks = len(self.speeds)
        cuts = self.starts[-1] * np.arange(ranks + 1) / ranks
        done = np.interp(cuts, self.starts, np.concatenate([[0.0], np.cumsum(self.costs)]))
        return float((np.diff(done) / self.speeds).max())

    def claims(self, todo: NDArray[np.int64], begin: float, until: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Hand out chunks in order from `begin`; return when each begins and ends, and its rank (-1: after `until`)."""
        starts, ends = np.full(len(todo), np.inf), np.full(len(todo), np.inf)
        owner = np.full(len(todo), -1)
        free = [(begin, rank) for rank in range(len(self.speeds))]
        counter, costs, speeds = begin, self.costs[todo].tolist(), self.speeds.tolist()
        for k, cost in enumerate(costs):
            now, rank = free[0]
            now = counter = max(now, counter) + CLAIM
            if now > until:
                break
            end = now + cost / speeds[rank]
            heapq.heapreplace(free, (end, rank))
            starts[k], ends[k], owner[k] = now, end, rank
        return starts, ends, owner

    def whole(self) -> float:
        """Return the time of an undisturbed run."""
        return float(self.claims(np.arange(len(self.costs)), 0.0, np.inf)[1].max())

    def with_failure(self, at: float, collect: float | None, seed: int) -> tuple[float, float]:
        """Return the time of a run of which a node dies at `at`, and the rank-seconds of work lost.

        collect : seconds between two collections of results from nodes; None where results are not kept on nodes.
        """
        rng = np.random.default_rng(seed)
        starts, ends, owner = self.claims(np.arange(len(self.costs)), 0.0, at)
        durable = ends <= at - rng.uniform(0, COMMIT)
        if collect is not None:
            dead = owner // PER_NODE == rng.integers(-(-len(self.speeds) // PER_NODE))
            durable &= ~dead | (ends <= at - rng.uniform(0, min(collect, at)))
        spent = np.where(owner >= 0, np.minimum(ends, at) - starts, 0.0)
        lost = float(spent[~durable].sum())
        todo = np.flatnonzero(~durable)
        return float(self.claims(todo, at + RESTART, np.inf)[1].max()), lost


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{' ---: |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def balance(n: int, load: Load, repeats: int) -> dict[str, list[float]]:
    """Print and return the share of the ideal speed by ranks and by how work is handed out."""
    sizes = {
        "fixed": Chunks(n, LARGEST_CHUNK),
        "guided": Chunks(n, LARGEST_CHUNK, taper=True),
        f"--chunk-size {SMALL:,}": Chunks(n, SMALL),
    }
    ways = ["equal parts", *sizes, *(f"{way}, stragglers" for way in ("equal parts", *list(sizes)[1:]))]
    found: dict[str, list[float]] = {way: [] for way in ways}
    rows = []
    for ranks in RANKS:
        shares: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(repeats):
            for way, chunks in sizes.items():
                for slow in (False, True):
                    said = way + ", stragglers" * slow
                    world = World(chunks, ranks, load, seed, slow)
                    if said in shares:
                        shares[said].append(world.ideal / world.whole())
                    if way == "fixed":
                        shares[said.replace("fixed", "equal parts")].append(world.ideal / world.parts())
        for way in ways:
            found[way].append(float(np.mean(shares[way])))
        hours = n / load.rate / ranks / 3600
        rows.append([f"{ranks:,}", f"{hours:.3g}", *(f"{100 * found[way][-1]:.1f}" for way in ways)])
    title = f"{n:,} structures, {load.alike:,} alike in a row: share of the ideal speed in % (mean of {repeats})"
    table(title, ["ranks", "hours, ideal", *ways], rows)
    return found


def failures(n: int, load: Load, repeats: int) -> None:
    """Print what one failure of a node costs at a random moment, and what that is at the stated rate."""
    rows = []
    ways: dict[str, float | None] = {
        "results folder": None,
        "--local": COLLECT,
        "--local, collected at the end": np.inf,
    }
    for ranks in RANKS[1:]:
        added: dict[str, list[float]] = {way: [] for way in ways}
        lost: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(repeats):
            world = World(Chunks(n, LARGEST_CHUNK, taper=True), ranks, load, seed)
            whole = world.whole()
            at = float(np.random.default_rng(seed).uniform(0.05, 0.95)) * whole
            for way, collect in ways.items():
                time, work = world.with_failure(at, collect, seed)
                added[way].append(time - whole)
                lost[way].append(work / 3600)
        expected = ranks / PER_NODE * whole / 3600 / NODE_HOURS
        rows.append(
            [
                f"{ranks:,}",
                f"{whole / 3600:.3g}",
                f"{expected:.2g}",
                *(f"{np.mean(added[way]):.0f} s; {np.mean(lost[way]):.3g} h" for way in ways),
            ]
        )
    table(
        f"{n:,} structures, one node of {PER_NODE} ranks dies at a random moment (mean of {repeats}): seconds that the "
        f"run takes longer, {RESTART:.0f} of them the restart; hours of ranks computed for nothing",
        ["ranks", "hours", f"failures at 1 in {NODE_HOURS:,.0f} node hours", *ways],
        rows,
    )


# -- what grows -------------------------------------------------------------------------------------------------------


def measured() -> dict[str, float]:
    """Return bytes that were measured now: of a ledger line, of the input's manifest per step, of a chunk in memory."""
    line = len(ledger.encode(Entry(61_035, 2**31, None, 16384, {0: 16300, 3: 84}, 1.7e9, 54.123456)))
    rows = [
        StepRow(structures=STEP, atoms=460_000, end=k * 10**7, crc32=2**31, counts_crc32=2**31)
        for k in range(STEPS_PER_PART)
    ]
    fields = ["ptr", "numbers", "positions", "cell", "pbc", "id"]
    part = PartRow(
        path="part-00000.r000.bp", fields=fields, positions="float64", structures=STEP, atoms=1, files={}, steps=rows
    )
    text = json.dumps(DatasetManifest.of([part], [SourceInfo("x")], {}).model_dump(), indent=1)
    tracemalloc.start()
    held = DatasetManifest(**json.loads(text))
    step = tracemalloc.get_traced_memory()[0] / len(held.parts[0].steps)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    known = np.zeros(100_000, KNOWN)
    done = set(known["chunk"].tolist()) | set(range(len(known)))
    todo = list(range(1000, 1000 + len(known)))
    chunk = (tracemalloc.get_traced_memory()[0] - before) / len(known)
    tracemalloc.stop()
    assert done and todo
    return {"line": line, "manifest": len(text) / STEPS_PER_PART, "step": step, "chunk": chunk}


def grows(rate: float) -> None:
    """Print what a run needs at 10^9 and at 10^12 structures."""
    of = measured()
    rows: list[list[str]] = []
    cases = [(10**9, 1024), (10**9, 16384), (10**12, 16384)]
    found: list[list[str]] = []
    for n, ranks in cases:
        chunks, steps = Chunks(n, LARGEST_CHUNK, taper=True).count, n // STEP
        hours = n / rate / ranks / 3600
        found.append(
            [
                f"{hours:.3g} h",
                f"{chunks:,}",
                f"{n * ROW.itemsize / 1e12:.3g} TB",
                f"{chunks * of['line'] / 1e6:.4g} MB",
                f"{ranks:,}",
                f"{chunks / hours / 3600:.3g}",
                f"{ranks / COMMIT:,.0f}",
                f"{ranks / COLLECT:.3g}",
                f"{steps * of['manifest'] / 1e6:.4g} MB",
                f"{4 * -(-steps // STEPS_PER_PART):,}",
                f"{steps * of['step'] / 1e6:.4g} MB",
                f"{chunks * of['chunk'] / 1e6:.4g} MB",
                f"{chunks * 16 / 1e6:.4g} MB",
                f"{n * ROW.itemsize / ranks / 1e6:.4g} MB",
                f"{ranks / PER_NODE * hours / NODE_HOURS:.2g}",
            ]
        )
    names = [
        f"time at {rate:g} structures/s and rank",
        "chunks",
        "rows.npy",
        "ledgers, all",
        "ledger files",
        "claims of chunks per second",
        "commits per second on the shared disk",
        "the same with --local",
        "manifest of the input",
        "files of the input",
        "memory per rank: manifest of the input",
        "memory per rank: chunks known, done, to do",
        "sent to each rank at a continued start",
        "rows checked by each rank at a continued start",
        f"node failures at 1 in {NODE_HOURS:,.0f} node hours",
    ]
    for k, name in enumerate(names):
        rows.append([name, *(column[k] for column in found)])
    print(
        f"\nmeasured now: {of['line']:.0f} bytes per ledger line; {of['manifest']:.0f} bytes of JSON and "
        f"{of['step']:.0f} bytes of memory per step of the input; {of['chunk']:.0f} bytes of memory per chunk"
    )
    table("what grows", ["", *(f"{n:.0e} structures, {ranks:,} ranks" for n, ranks in cases)], rows)


def figure(path: Path, found: dict[str, list[float]], n: int) -> None:
    """Draw the share of the ideal speed against the number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(6.4, 3.6), constrained_layout=True)
    colours = {"equal parts": "C1o", "fixed": "C2s", "guided": "C0^"}
    for way, shares in found.items():
        style = colours.get(way.partition(", ")[0], "C3v") + ("--" if "stragglers" in way else "-")
        ax.plot(RANKS, [100 * share for share in shares], style, label=way, markersize=4)
    ax.set_xscale("log", base=2)
    ax.set_xticks(RANKS, [f"{ranks:,}" for ranks in RANKS])
    ax.set_ylim(0, 103)
    ax.set_xlabel("ranks")
    ax.set_ylabel("share of the ideal speed, %")
    ax.set_title(f"{n:,} structures, simulated", fontsize=10)
    ax.legend(fontsize=7)
    fig.savefig(path, dpi=150)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, default=Path(__file__).with_name("scale_times.csv"))
    parser.add_argument("--results", type=Path, help="write --times from the ledger of this results folder first")
    parser.add_argument("--rate", type=float, default=300.0, help="structures per second and rank")
    parser.add_argument("--alike", type=int, default=1024, help="structures in a row that take equally long")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.results is not None:
        record(options.results, options.times)
    times = recorded(options.times)
    low, high = np.quantile(times, [0.05, 0.95])
    print(
        f"{len(times)} recorded chunk times per structure, over their mean: standard deviation {times.std():.2f}, 5 % "
        f"below {low:.2f}, 5 % above {high:.2f}, largest {times.max():.2f}"
    )
    print(
        f"assumed: {options.rate:g} structures/s and rank; {PER_NODE} ranks per node; speeds of ranks vary by "
        f"{100 * SPREAD:.0f} %; stragglers: {100 * SLOW_SHARE:.0f} % of the ranks at {100 * SLOW:.0f} % of the "
        f"speed; {1e6 * CLAIM:.0f} us per claim, one after another; {RESTART:.0f} s for a restart"
    )
    load = Load(options.rate, times, options.alike)
    found = balance(10**9, load, options.repeats)
    failures(10**9, load, 4 * options.repeats)
    grows(options.rate)
    if options.figure is not None:
        figure(options.figure, found, 10**9)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
