"""Benchmark of growth: rates of `screen run` against ranks, batches and sizes; its memory against the input.

    python benchmarks/speed/growth.py ranks [--ranks 1,2] [--structures 4000]
    python benchmarks/speed/growth.py budgets [--budgets 256,1024,4096,16384]
    python benchmarks/speed/growth.py sizes [--sizes 2,5,10,20,50,100,200,500]
    python benchmarks/speed/growth.py many --structures 10000000 --ranks 2 --kill [--figure rss.png] [--keep FOLDER]

Everything goes from file to file: candidates are written first (crystals of one size, atoms near the sites of a grid,
15 Angstrom^3 per atom), then the `screen` command runs as a user runs it. Two clocks: the loop, as the run's summary
tells it, and the whole command, start of Python and loading included. The ensemble is an untrained one.

many: one run over many small structures, of 2 atoms if --sizes does not say otherwise. Resident memory of every rank is
sampled every second. With --kill a rank is killed at the middle of the input, and the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

BLOCK = 50_000
"""Structures that are made and written at once."""
HERE = Path(sys.executable).parent


def lattice(n: int, atoms: int, seed: int) -> Any:
    """Return periodic cells of atoms near the sites of a grid, elements at random."""
    from atomsieve.structures import StructureBatch

    rng = np.random.default_rng(seed)
    side = int(np.ceil(atoms ** (1 / 3) - 1e-9))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    sites = grid[np.arange(atoms) * len(grid) // atoms]
    length = (15.0 * atoms) ** (1 / 3)
    places = (sites + rng.uniform(-0.1, 0.1, (n, atoms, 3))) * length / side
    return StructureBatch(
        ptr=np.arange(n + 1, dtype=np.int64) * atoms,
        numbers=rng.integers(1, 90, n * atoms).astype(np.uint8),
        positions=places.reshape(-1, 3),
        cell=np.tile(np.eye(3) * length, (n, 1, 1)),
        pbc=np.ones((n, 3), bool),
        id=np.arange(n, dtype=np.int64),
    )


def candidates(path: Path, n: int, atoms: int) -> Path:
    """Write `n` candidates of so many atoms."""
    from atomsieve.structures.dataset.writer import StructureWriter

    with StructureWriter(path, positions="float32") as writer:
        for start in range(0, n, BLOCK):
            writer.append(lattice(min(BLOCK, n - start), atoms, seed=start))
    return path


def ensemble(folder: Path, options: argparse.Namespace) -> Path:
    """Write an untrained ensemble."""
    from atomsieve.gfm import save_gfm
    from atomsieve.models import Ensemble, HeadSpec, ModelConfig

    references = dict.fromkeys(range(1, 119), -1.0)
    head = HeadSpec(name="any", level_of_theory="none", references=references, scale=1.0, elements={})
    config = ModelConfig(hidden=options.hidden, layers=options.layers, cutoff=options.cutoff)
    return save_gfm(folder, Ensemble(config, [head], list(range(options.members))))


def command(source: Path, gfm: Path, out: Path, ranks: int, *more: str) -> list[str]:
    """Return the command that screens."""
    launch = [str(HERE / "mpirun"), "-n", str(ranks)] if ranks > 1 else []
    return [*launch, str(HERE / "screen"), "run", str(source), "-e", str(gfm), "-o", str(out), "-k", "100", *more]


@dataclass(frozen=True)
class Run:
    """What a finished command tells: its summary, and the seconds of the whole of it."""

    summary: dict[str, Any]
    seconds: float

    @property
    def cells(self) -> str:
        """Cells of a table: rates by both clocks, shares of the stages in the loop's time."""
        n, stages = self.summary["computed_in_this_run"], self.summary["seconds_per_stage"]
        rate = self.summary["structures_per_second"]
        share = {
            name: 100 * stages[name]["mean"] * rate / n for name in ("predict", "wait for input") if name in stages
        }
        shares = " | ".join(f"{share.get(name, 0):.0f} %" for name in ("predict", "wait for input"))
        return f"{rate:,.0f} | {n / self.seconds:,.0f} | {shares}"


HEADER = "loop, structures/s | whole command | computing | waiting for input |"


def screen(source: Path, gfm: Path, out: Path, ranks: int = 1, *more: str) -> Run:
    """Run the command to its end."""
    began = time.perf_counter()
    done = subprocess.run(command(source, gfm, out, ranks, *more), capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 3):
        raise SystemExit(f"screen run ended with code {done.returncode}: {done.stderr[-2000:]}")
    return Run(json.loads((out / "summary.json").read_text()), seconds)


def numbers(text: str) -> list[int]:
    """Return the numbers of a list on the command line."""
    return [int(part) for part in text.split(",")]


@contextmanager
def place(options: argparse.Namespace) -> Iterator[Path]:
    """Give a folder for the files: the user's, or one that is removed."""
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        yield options.keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def describe(options: argparse.Namespace) -> str:
    """Say what is screened with."""
    members = "one member" if options.members == 1 else f"{options.members} members"
    return f"{members} of {options.layers} x {options.hidden}, cutoff {options.cutoff:g} Angstrom, FP32"


def ranks(options: argparse.Namespace, folder: Path) -> None:
    """Print rates against ranks."""
    size = numbers(options.sizes)[0]
    gfm, source = ensemble(folder / "gfm", options), candidates(folder / "c.bp", options.structures, size)
    print(f"{options.structures:,} crystals of {size} atoms; {describe(options)}; one thread a rank\n")
    print(f"| ranks | ratio | {HEADER}\n| --- | --- | --- | --- | --- | --- |")
    first = 0.0
    for n in numbers(options.ranks):
        run = screen(source, gfm, folder / f"ranks{n}", n)
        first = first or run.summary["structures_per_second"]
        print(f"| {n} | {run.summary['structures_per_second'] / first:.2f} | {run.cells} |", flush=True)


def budgets(options: argparse.Namespace, folder: Path) -> None:
    """Print rates against the atoms of a batch."""
    size = numbers(options.sizes)[0]
    gfm, source = ensemble(folder / "gfm", options), candidates(folder / "c.bp", options.structures, size)
    print(f"{options.structures:,} crystals of {size} atoms; {describe(options)}; one thread\n")
    print(f"| atoms a batch | ratio | resident MiB | {HEADER}\n| --- | --- | --- | --- | --- | --- | --- |")
    first = 0.0
    for atoms in numbers(options.budgets):
        run = screen(source, gfm, folder / f"budget{atoms}", 1, "--max-atoms", str(atoms), "--max-edges", "100000000")
        rate, memory = run.summary["structures_per_second"], run.summary["memory"]["largest_resident_bytes"]
        first = first or rate
        print(f"| {atoms:,} | {rate / first:.2f} | {memory / 2**20:,.0f} | {run.cells} |", flush=True)


def sizes(options: argparse.Namespace, folder: Path) -> None:
    """Print rates against the atoms of a structure; every size gets as many atoms in all."""
    gfm = ensemble(folder / "gfm", options)
    print(f"{options.atoms:,} atoms in crystals of one size; {describe(options)}; one thread\n")
    print(f"| atoms | structures | atoms/s, loop | {HEADER}\n| --- | --- | --- | --- | --- | --- | --- |")
    for size in numbers(options.sizes):
        n = max(options.atoms // size, 1)
        source = candidates(folder / f"c{size}.bp", n, size)
        run = screen(source, gfm, folder / f"size{size}")
        rate = run.summary["structures_per_second"] * size
        print(f"| {size} | {n:,} | {rate:,.0f} | {run.cells} |", flush=True)


# -- one long run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Structures done, and resident bytes of the largest rank, the largest reading process, and all together."""

    seconds: float
    done: int
    rank: int
    reading: int
    all: int


def look(process: subprocess.Popen[bytes], out: Path, began: float) -> Sample:
    """Return how much memory the processes of a run hold now."""
    resident: dict[bool, list[int]] = {True: [0], False: [0]}
    for child in family(process.pid):
        try:
            reads = any("engine.reader_process" in word for word in child.cmdline())
            resident[reads].append(child.memory_info().rss)
        except psutil.Error:
            continue
    return Sample(
        time.perf_counter() - began,
        last_event(out, "progress").get("done", 0),
        max(resident[False]),
        max(resident[True]),
        sum(resident[False]) + sum(resident[True]),
    )


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all below it that run Python."""
    try:
        top = psutil.Process(pid)
        return [p for p in [top, *top.children(recursive=True)] if "python" in Path(p.exe()).name]
    except psutil.Error:
        return []


def last_event(out: Path, name: str) -> dict[str, Any]:
    """Return the last event of a kind in the log of a run."""
    log = out / "run.log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    events = [json.loads(line) for line in lines[-20:]]
    return next((event for event in reversed(events) if event["event"] == name), {})


def watched(call: list[str], out: Path, kill_at: int | None) -> tuple[list[Sample], int]:
    """Run a command and sample it every second; kill one rank once so many are done. Return samples and code."""
    began, samples = time.perf_counter(), []
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        samples.append(look(process, out, began))
        if kill_at is not None and samples[-1].done >= kill_at:
            workers = [p for p in family(process.pid) if not any("engine.reader_process" in w for w in p.cmdline())]
            workers[-1].send_signal(signal.SIGKILL)
            kill_at = None
        time.sleep(1.0)
    return samples, process.returncode


def many(options: argparse.Namespace, folder: Path) -> None:
    """Run over many small structures, print memory against structures done."""
    size, n, n_ranks = numbers(options.sizes)[0], options.structures, numbers(options.ranks)[-1]
    gfm = ensemble(folder / "gfm", options)
    began = time.perf_counter()
    source = folder / "many.bp"
    if not source.exists():
        candidates(source, n, size)
        print(f"candidates written in {time.perf_counter() - began:,.0f} s")
    out = folder / "many"
    call = command(source, gfm, out, n_ranks)
    parts: list[list[Sample]] = []
    began = time.perf_counter()
    if options.kill:
        samples, code = watched(call, out, n // 2)
        parts.append(samples)
        before = samples[-1].done
        print(f"a rank was killed with {before:,} structures done; the command ended with code {code}")
    samples, code = watched(call, out, None)
    parts.append(samples)
    seconds = time.perf_counter() - began
    if code not in (0, 3):
        raise SystemExit(f"screen run ended with code {code}; see {out}/run.log.jsonl")
    summary = json.loads((out / "summary.json").read_text())
    rate = f"{summary['structures_per_second']:,.0f} structures/s in the last start"
    print(
        f"\n{n:,} crystals of {size} atoms on {n_ranks} ranks; {describe(options)}: {seconds:,.0f} s, status "
        f"{summary['status']}, {rate}, which computed {summary['computed_in_this_run']:,}\n"
    )
    print(
        "| start | done | largest rank, MiB | largest reader, MiB | all processes, MiB |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for k, part in enumerate(parts):
        for s in part[:: max(len(part) // 8, 1)]:
            print(f"| {k + 1} | {s.done:,} | {s.rank / 2**20:,.0f} | {s.reading / 2**20:,.0f} | {s.all / 2**20:,.0f} |")
        print(
            f"| {k + 1} | growth per million after a fifth of the way | {slope(part, 'rank'):.1f} | "
            f"{slope(part, 'reading'):.1f} | {slope(part, 'all'):.1f} |"
        )
    if options.figure is not None:
        draw(parts, options.figure, n)


def slope(samples: list[Sample], of: str) -> float:
    """Return the growth of memory, MiB per million structures, while structures were computed."""
    kept = [s for s in samples if samples[0].done < s.done < samples[-1].done]
    kept = kept[len(kept) // 5 :]
    if len({s.done for s in kept}) < 2:
        return float("nan")
    return float(1e6 * np.polyfit([s.done for s in kept], [getattr(s, of) for s in kept], 1)[0] / 2**20)


def draw(parts: list[list[Sample]], figure: Path, n: int) -> None:
    """Draw memory against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fig, axes = pyplot.subplots(figsize=(8, 3))
    start = 0.0
    for k, part in enumerate(parts):
        at = [start + s.seconds for s in part]
        for of, colour in (("all", "C0"), ("rank", "C1"), ("reading", "C2")):
            name = {"all": "all processes", "rank": "largest rank", "reading": "largest reader"}[of]
            axes.plot(at, [getattr(s, of) / 2**20 for s in part], colour, label=name if k == 0 else None)
        start = at[-1]
        if k < len(parts) - 1:
            axes.axvline(start, color="grey", linestyle=":", label="a rank is killed")
    axes.set(xlabel="seconds", ylabel="resident MiB", title=f"{n:,} structures", ylim=(0, None))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    fig.tight_layout()
    fig.savefig(figure, dpi=120)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("ranks", "budgets", "sizes", "many"))
    parser.add_argument("--structures", type=int, default=4000)
    parser.add_argument("--atoms", type=int, default=40_000, help="for sizes: atoms in all")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--budgets", default="256,1024,4096,16384")
    parser.add_argument("--sizes", help="atoms of a structure [default: 20, or 2 for many, or a range]")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cutoff", type=float, default=4.5)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--keep", type=Path, help="where files are made and stay; candidates there are used again")
    options = parser.parse_args()
    usual = {"many": "2", "sizes": "2,5,10,20,50,100,200,500"}
    options.sizes = options.sizes or usual.get(options.task, "20")
    with place(options) as folder:
        {"ranks": ranks, "budgets": budgets, "sizes": sizes, "many": many}[options.task](options, folder)


if __name__ == "__main__":
    main()
