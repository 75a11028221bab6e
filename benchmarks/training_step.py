"""Time steps of training of this version and of an older checkout in turns, on the same batches.

    python benchmarks/training_step.py --data real_data/train.bp --old ../older --rounds 5
    python benchmarks/training_step.py --data real_data/train.bp --set optimizer.kind=muon
    python benchmarks/training_step.py --data real_data/train.bp --ranks 1,2 --set batch.atoms=384 [--grow]

The configuration is that of `benchmarks/real_data.py` (2 layers of 64 channels, 16 heads, batches of 192 atoms), all
members in one process of one thread. Times are processor time, which other work on the machine changes little. A round
runs a process of each version; what is printed is the median over rounds of milliseconds per step, the structures per
second of all members together, and the ratio of the versions within a round. Losses of the first and last steps show
whether both learn alike. The old checkout needs its compiled kernels (`make venv`, or `setup.py build_ext --inplace`).

With --ranks, numbers of MPI ranks take turns in place of versions; a batch is divided over the ranks, or with --grow
has as many atoms for each rank. Wall times want a machine that does nothing else. Where it does, the processor time of
the slowest rank of each step, which has the work of the exchange in it but no waiting, says what a quiet one would need
at least; the time from the start of the exchange to its end has the waiting for the slower rank in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


def configure(data: Path, members: int, output: str, settings: list[str]) -> Any:
    """Return the configuration of a run on all sources of `data`."""
    sys.path.append(str(HERE))
    from real_data import configuration

    from atomsieve.train.config import apply_settings, parse_config

    raw = configuration(data.parent, 48.0, 1)
    raw["data"] = [{**item, "path": str(data)} for item in raw["data"] if item.get("use") != "test"]
    raw["output"] = output
    raw["ensemble"] = {**raw["ensemble"], "members": members}
    return parse_config(apply_settings(raw, settings))


def measure(data: Path, members: int, steps: int, settings: list[str]) -> dict[str, Any]:
    """Do `steps` steps after ten that are not counted; return their times, structures and losses.

    seconds [steps] : processor time of the slowest rank. whole [steps] : of all ranks. wall, exchange [steps] : wall
    time of the first rank, and of its exchange of gradients. structures : of all ranks and steps. losses [10 + steps].
    """
    import torch

    from atomsieve.structures import open_structures
    from atomsieve.train.distributed import ProcessGroup, join_process_group, leave_process_group
    from atomsieve.train.log import RunLog
    from atomsieve.train.loop import Run
    from atomsieve.train.prepare import prepare
    from atomsieve.train.run import _ensemble

    torch.set_num_threads(1)
    group, exchange = join_process_group("cpu"), [0.0]
    original = ProcessGroup.sum_gradients

    def sum_gradients(self: ProcessGroup, *given: Any) -> Any:
        began = time.perf_counter()
        out = original(self, *given)
        exchange[0] = time.perf_counter() - began
        return out

    ProcessGroup.sum_gradients = sum_gradients  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        config = configure(data, members, folder, settings)
        readers = [open_structures(item.path) for item in config.data]
        prepared = prepare(config, readers)
        ensemble = _ensemble(config, prepared.heads, list(range(members)), group)
        run = Run(ensemble, prepared.material, group, Path(folder), RunLog(None), order_seed=0, hours=None)
        make, times, losses, structures = run._make(run.order.epoch(0)), [], [], 0
        for k in range(10 + steps):
            began = time.perf_counter(), time.process_time()
            batch = make(k)
            run.step(batch, False, 0.1)
            if k >= 10:
                times.append([time.process_time() - began[1], time.perf_counter() - began[0], exchange[0]])
                structures += len(batch.index)
            losses.append(float(run._recent[-1][0]))
        for reader in readers:
            reader.close()
        found = group.all_gather((times, structures))
    leave_process_group()
    if not group.is_first:
        sys.exit()
    processor = np.array([[row[0] for row in own] for own, _ in found])
    return {
        "seconds": processor.max(0).tolist(),
        "whole": processor.sum(0).tolist(),
        "wall": [row[1] for row in times],
        "exchange": [row[2] for row in times],
        "structures": sum(n for _, n in found),
        "losses": losses,
    }


def run_version(tree: Path, options: argparse.Namespace, ranks: int = 1) -> dict[str, Any]:
    """Run `measure` in a process of its own, or in ranks, with the package of `tree`."""
    from real_data import PROGRAM

    command = [str(PROGRAM.with_name("mpirun")), "-n", str(ranks)] if ranks > 1 else []
    command += [sys.executable, str(HERE / "training_step.py"), "--one", "--data", str(options.data.resolve())]
    command += ["--members", str(options.members), "--steps", str(options.steps)]
    command += [f"--set={s}" for s in options.settings]
    if options.grow:
        command += [f"--set=batch.atoms={read_atoms(options) * ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def read_atoms(options: argparse.Namespace) -> int:
    """Return the atoms of a batch by the settings."""
    return int(configure(options.data, options.members, "run", options.settings).batch.atoms)


def compare_ranks(options: argparse.Namespace) -> None:
    """Measure numbers of ranks in turns; print a line for each, and the ratios to the first."""
    numbers = [int(word) for word in options.ranks.split(",")]
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in numbers}
    for number in range(options.rounds):
        for n in numbers[:: 1 if number % 2 else -1]:
            found[n].append(run_version(HERE.parent, options, n))
    for n, rounds in found.items():
        wall, slowest, whole = (
            1e3 * float(np.median([np.median(r[key]) for r in rounds])) for key in ("wall", "seconds", "whole")
        )
        exchange = float(np.median([np.sum(r["exchange"]) / np.sum(r["wall"]) for r in rounds]))
        rates = (float(np.median([r["structures"] / sum(r[key]) for r in rounds])) for key in ("wall", "whole"))
        losses = rounds[0]["losses"]
        print(
            f"{n} ranks: {wall:.1f} ms/step by wall time, {slowest:.1f} of the slowest rank's processor, {whole:.1f} "
            "of all; {:.1f} structures/s, {:.1f} per core-second; ".format(*rates)
            + f"{100 * exchange:.0f} % of wall time in the exchange; losses {np.mean(losses[:10]):.4f}, "
            f"{np.mean(losses[-10:]):.4f}"
        )
        for key, what in (("wall", "by wall time"), ("seconds", "by the slowest rank's processor time")):
            pairs = zip(found[numbers[0]], rounds, strict=True)
            ratios = [r["structures"] / sum(r[key]) / (b["structures"] / sum(b[key])) for b, r in pairs]
            print(f"  structures/s {what}: {np.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")


def main() -> None:
    """Measure, and print one line per version or number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="train.bp of benchmarks/real_data.py")
    parser.add_argument("--old", type=Path, help="checkout of an older version, compiled")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="as of `atomsieve train`")
    parser.add_argument("--ranks", help="numbers of MPI ranks joined by commas, compared in turns")
    parser.add_argument("--grow", action="store_true", help="batch.atoms are those of each rank")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.data, options.members, options.steps, options.settings)))
        return
    if options.ranks:
        compare_ranks(options)
        return
    trees = {"new": HERE.parent} | ({"old": options.old.resolve()} if options.old else {})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for number in range(options.rounds):
        for name in list(trees)[:: 1 if number % 2 else -1]:
            found[name].append(run_version(trees[name], options))
    for name, rounds in found.items():
        step = float(np.median([np.median(r["seconds"]) for r in rounds]))
        rate = float(np.median([r["structures"] / sum(r["seconds"]) for r in rounds]))
        losses = rounds[0]["losses"]
        print(
            f"{name}: {1e3 * step:.1f} ms/step, {rate:.1f} structures/s; loss {np.mean(losses[:10]):.4f} in the first "
            f"ten steps, {np.mean(losses[-10:]):.4f} in the last ten"
        )
    if options.old:
        pairs = zip(found["old"], found["new"], strict=True)
        ratios = [float(np.median(o["seconds"]) / np.median(n["seconds"])) for o, n in pairs]
        print(f"old / new: {np.median(ratios):.2f} (rounds {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
