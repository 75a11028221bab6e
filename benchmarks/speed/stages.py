"""Benchmark of stages: each stage of a screening alone, and all of them overlapped as `screen run` has them.

    python benchmarks/speed/stages.py [--gfm gfm/ --candidates candidates.bp --head NAME] [--structures 2000]
        [--device cpu]

Alone: one stage after the other over the whole input, one thread: reading chunks; packing them into batches; neighbour
lists and graphs; the network; what else a prediction is (checks, the domain test, uncertainties, rows); reducing
(counting, the table of best rows); writing (to the folder of --out, made durable once at the end). Overlapped:
the loop in one process, where reading has a process of its own and writing a thread. Without --gfm an untrained
ensemble of four members screens crystals of --atoms atoms. The least time of --rounds is taken for each stage.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import growth
import numpy as np

T = TypeVar("T")
LIFTS = {
    "read": "a faster disk, positions in float32, or more ranks, each of which reads its own chunks",
    "pack": "nothing needs to: it sorts numbers that are in memory",
    "graph": "neighbour lists on the device, or more ranks",
    "network": "faster arithmetic: a lower precision, fewer members, a GPU, or more ranks",
    "checks and rows": "larger batches, since most of it is a cost of each call",
    "reduce": "a smaller --top: only rows that may enter the table are looked at",
    "write": "a faster disk, or --local with a disk on each node",
}
"""What would lift a stage."""
MAIN = ("pack", "graph", "network", "checks and rows")
"""Stages that the main thread of a rank goes through; reading and writing go on beside them."""


class Stopwatch:
    """Sums the time of each stage; a GPU is waited for."""

    def __init__(self, cuda: bool) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda = cuda

    def __call__(self, stage: str, call: Callable[[], T]) -> T:
        """Make a call and add its time to a stage."""
        began = time.perf_counter()
        found = call()
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        self.seconds[stage] += time.perf_counter() - began
        return found


class Timed:
    """A predictor whose graphs and networks are timed; otherwise it is that predictor."""

    def __init__(self, predictor: Any, watch: Stopwatch) -> None:
        from atomsieve.graphs import build_graph

        self._predictor = predictor.with_backend(TimedNetwork(predictor.run, watch))
        self._build = lambda *given, **more: watch("graph", lambda: build_graph(*given, **more))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def __call__(self, batch: Any, want: set[str], head: str | None = None) -> Any:
        """Evaluate a batch."""
        return self._predictor(batch, want, head=head, build=self._build)


class TimedNetwork:
    """A backend whose calls are timed; otherwise it is that backend."""

    def __init__(self, run: Any, watch: Stopwatch) -> None:
        self._run, self._watch = run, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def __call__(self, *given: Any) -> Any:
        """Evaluate a graph."""
        return self._watch("network", lambda: self._run(*given))


def alone(options: argparse.Namespace, source: Path, gfm: Path, out: Path) -> dict[str, float]:
    """Return the seconds of each stage over the whole input, one stage after the other."""
    from atomsieve.predict import Predictor
    from atomsieve.predict.packing import BUDGETS
    from atomsieve.screen.engine.runner import Runner
    from atomsieve.screen.results.chunks import Chunks, chunk_size
    from atomsieve.screen.selection.top_k import TopK
    from atomsieve.structures import open_structures
    from atomsieve.structures.fields import CONDITIONS

    watch = Stopwatch(options.device.startswith("cuda"))
    with open_structures(source) as reader:
        n = min(len(reader), options.structures)
        chunks = Chunks(n, chunk_size(n, reader.n_atoms / len(reader)), taper=True)
        reader.read(0, 1, CONDITIONS)
        read = [watch("read", lambda c=c: reader.read(*chunks.span(c), CONDITIONS)) for c in range(chunks.count)]
    predictor: Any = Timed(Predictor.load(gfm, options.head, options.precision, options.device), watch)
    budget, spread = BUDGETS[options.device.partition(":")[0]], "all" if predictor.kind == "deep" else "top"
    runner = Runner(predictor, [predictor.head], False, *budget, 1, 20_000, spread)
    runner(read[0].slice(0, 4), 0)
    watch.seconds = defaultdict(float, read=watch.seconds["read"])  # what the first call cost is not a stage
    begun = [watch("pack", lambda c=c: runner.begin(read[c], chunks.start(c))) for c in range(chunks.count)]
    rows = [watch("predict", lambda work=work: runner.finish(work)[0]) for work in begun]
    rest = watch.seconds.pop("predict") - watch.seconds["graph"] - watch.seconds["network"]
    watch.seconds["checks and rows"] = rest
    top, codes = TopK(1000, "energy_per_atom"), []
    for chunk in rows:
        watch("reduce", lambda chunk=chunk: (top.add(chunk), codes.append(np.unique(chunk["status"]))))
    watch("write", lambda: write(out, chunks, rows))
    return dict(watch.seconds)


def write(out: Path, chunks: Any, rows: list[Any]) -> None:
    """Write all rows as a run does, and make them durable once."""
    from atomsieve.screen.results.files import ResultsFolder
    from atomsieve.screen.results.npy_file import ArrayFiles, ChunkArrays, row_file
    from atomsieve.screen.results.writer import ResultWriter

    folder = ResultsFolder(out)
    folder.ledger.mkdir(parents=True)
    file = row_file(folder, chunks, 1)
    file.prepare()
    with ResultWriter(folder, ArrayFiles(file), 0, 1e9) as writer:
        for number, chunk in enumerate(rows):
            writer.put(number, ChunkArrays(chunk), 0.0)


def overlapped(options: argparse.Namespace, source: Path, gfm: Path, out: Path) -> dict[str, Any]:
    """Return the summary of a run in this process, and the seconds of its loop."""
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen

    given = ScreenOptions(
        head=options.head, precision=options.precision, device=options.device, limit=options.structures
    )
    result = run_screen(source, gfm, given, out=out)
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found | {"loop": result.computed / result.rate}


def table(best: dict[str, float], loop: float, stages: dict[str, Any], n: int) -> None:
    """Print the stages, and name the slowest."""
    names = [name for name in LIFTS if name in best]
    print("| stage | alone, s | structures/s | share of all alone |\n| --- | --- | --- | --- |")
    whole = sum(best[name] for name in names)
    for name in names:
        rate = n / max(best[name], 1e-9)
        print(f"| {name} | {best[name]:.3f} | {rate:,.0f} | {100 * best[name] / whole:.1f} % |")
    print(f"| one after the other | {whole:.3f} | {n / whole:,.0f} | 100 % |")
    main = sum(best[name] for name in MAIN if name in best)
    print(f"| overlapped, the loop | {loop:.3f} | {n / loop:,.0f} | {100 * loop / whole:.1f} % |")
    print(f"| of it, computing alone would take | {main:.3f} | {n / main:,.0f} | {100 * main / whole:.1f} % |\n")
    waits = {name: stages[name]["mean"] for name in ("wait for input", "wait for output") if name in stages}
    said = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in waits.items())
    print(f"In the loop: {said}; the loop takes {loop / main:.2f} of what computing alone takes.")
    slowest = max(names, key=lambda name: best[name])
    print(f"Slowest stage: {slowest} ({100 * best[slowest] / whole:.0f} %). What would lift it: {LIFTS[slowest]}.")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gfm", type=Path)
    parser.add_argument("--candidates", type=Path)
    parser.add_argument("--head")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--structures", type=int, default=2000)
    parser.add_argument("--atoms", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cutoff", type=float, default=4.5)
    parser.add_argument("--out", type=Path, help="where results are written [default: the temporary folder]")
    options = parser.parse_args()
    from atomsieve.cli.launch import relaunch

    relaunch()  # with the allocator's settings, as the commands start
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.out) as place:
        folder = Path(place)
        gfm = options.gfm or growth.ensemble(folder / "gfm", options)
        source = options.candidates or growth.candidates(folder / "c.bp", options.structures, options.atoms)
        best: dict[str, float] = {}
        loops = []
        for k in range(options.rounds):
            for stage, seconds in alone(options, source, gfm, folder / f"alone{k}").items():
                best[stage] = min(best.get(stage, np.inf), seconds)
            loops.append(overlapped(options, source, gfm, folder / f"loop{k}"))
    fastest = min(loops, key=lambda found: found["loop"])
    n = fastest["structures"]
    print(f"{n:,} structures, {options.precision}, {options.device}, one thread, least of {options.rounds} rounds\n")
    table(best, fastest["loop"], fastest["seconds_per_stage"], n)


if __name__ == "__main__":
    main()
