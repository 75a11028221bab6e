"""Time steps of training of this version and of an older checkout in turns, on the same batches.

    python benchmarks/training_step.py --data real_data/train.bp --old ../older --rounds 5
    python benchmarks/training_step.py --data real_data/train.bp --set optimizer.kind=muon

The configuration is that of `benchmarks/real_data.py` (2 layers of 64 channels, 16 heads, batches of 192 atoms), all
members in one process of one thread. Times are processor time, which other work on the machine changes little. A round
runs a process of each version; what is printed is the median over rounds of milliseconds per step, the structures per
second of all members together, and the ratio of the versions within a round. Losses of the first and last steps show
whether both learn alike. The old checkout needs its compiled kernels (`make venv`, or `setup.py build_ext --inplace`).
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
    """Do `steps` steps after ten that are not counted; return the time of each, its structures and its losses."""
    import torch

    from atomsieve.structures import open_structures
    from atomsieve.train.distributed import ProcessGroup
    from atomsieve.train.log import RunLog
    from atomsieve.train.loop import Run
    from atomsieve.train.prepare import prepare
    from atomsieve.train.run import _ensemble

    torch.set_num_threads(1)
    group = ProcessGroup(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        config = configure(data, members, folder, settings)
        readers = [open_structures(item.path) for item in config.data]
        prepared = prepare(config, readers)
        ensemble = _ensemble(config, prepared.heads, list(range(members)), group)
        run = Run(ensemble, prepared.material, group, Path(folder), RunLog(None), order_seed=0, hours=None)
        make, times, losses, structures = run._make(run.order.epoch(0)), [], [], 0
        for k in range(10 + steps):
            began = time.process_time()
            batch = make(k)
            run.step(batch, False, 0.1)
            if k >= 10:
                times.append(time.process_time() - began)
                structures += len(batch.index)
            losses.append(float(run._recent[-1][0]))
        for reader in readers:
            reader.close()
    return {"seconds": times, "structures": structures, "losses": losses}


def run_version(tree: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run `measure` in a process of its own with the package of `tree`."""
    command = [sys.executable, str(HERE / "training_step.py"), "--one", "--data", str(options.data.resolve())]
    command += ["--members", str(options.members), "--steps", str(options.steps)]
    command += [f"--set={s}" for s in options.settings]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def main() -> None:
    """Measure, and print one line per version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="train.bp of benchmarks/real_data.py")
    parser.add_argument("--old", type=Path, help="checkout of an older version, compiled")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="as of `atomsieve train`")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.data, options.members, options.steps, options.settings)))
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
