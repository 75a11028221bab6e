"""All that is to be known of a GPU in one go: checks first, then measurements, as tables.

    python benchmarks/speed/gpu.py [--device cuda] [--quick]

Checks, each against FP64 on the CPU; where one fails nothing is measured:
- the fused kernels (PaiNN's message, HydraGNN's model) beside the plain operations;
- neighbour lists made on the device: the same edges;
- predictors in every precision: energies, forces, spreads; untrained, PaiNN deep and shallow, HydraGNN's model;
- the screening loop: the same bytes with one batch and two batches at work at once, and in two runs.

Measurements: batches at work at once here; the rest by the scripts beside this one, each of which says what it does.
`--quick` takes small sizes. On a CPU (`--device cpu --quick`) the kernels run in Triton's interpreter and all else as
it is: so this script itself is tried where there is no GPU.
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
PRECISIONS = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.3}
"""Largest difference from FP64 on the CPU allowed, over the largest value; random weights are hard on BF16."""


class Checks:
    """Prints each check, and remembers whether all held."""

    def __init__(self) -> None:
        self.held = True
        print("| check | found | allowed | |\n| --- | --- | --- | --- |")

    def __call__(self, name: str, found: float, allowed: float) -> None:
        """Print one; NaN fails."""
        good = bool(found <= allowed)
        self.held &= good
        print(f"| {name} | {found:.1e} | {allowed:.0e} | {'ok' if good else '**WRONG**'} |", flush=True)


def relative(a: Any, b: Any) -> float:
    """Return the largest difference over the largest value."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


def kernels(checks: Checks, device: str) -> None:
    """Check the fused kernels, each in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    if not device.startswith("cuda"):
        env["TRITON_INTERPRET"] = "1"
    for name in ("fused_kernels_program", "hydragnn_gpu_program"):
        done = subprocess.run(
            [sys.executable, "-m", f"tests.models.{name}"],
            cwd=HERE.parents[1],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
            checks(f"{name} ended with {done.returncode}", float("nan"), 0.0)
            continue
        for case, value in json.loads(done.stdout.splitlines()[-1]).items():
            if isinstance(value, dict):
                value = max(value["apart"] if "apart" in value else value.values())
            if isinstance(value, float):
                allowed = {"single": 1e-5, "fp32": 1e-5, "bf16": 3e-2}.get(case, 1e-11)
                checks(f"kernels, {case}", value, allowed)


def lists(checks: Checks, device: str) -> None:
    """Check neighbour lists that are made on the device."""
    import torch
    from growth import lattice

    from atomsieve.graphs import build_graph

    batch = lattice(50, 20, seed=3)
    for most in (None, 20):
        here, there = (
            build_graph(batch, 5.0, max_neighbors=most, device=torch.device(d), dtype=torch.float64)
            for d in ("cpu", device)
        )
        same = here.n_edges == there.n_edges and all(
            torch.equal(getattr(here.neighbors, name), getattr(there.neighbors, name).cpu())
            for name in ("sender", "receiver")
        )
        checks(f"neighbour list, at most {most}: edges that differ", 0.0 if same else 1.0, 0.0)
        if same:
            checks(f"neighbour list, at most {most}: vectors", relative(there.vec.cpu(), here.vec), 1e-12)


def ensembles(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Write untrained ensembles."""
    import crystals
    import paper

    shape = argparse.Namespace(hidden=64, layers=2, cutoff=4.5)
    found = {kind: crystals.untrained(folder / kind, shape, 4, kind) for kind in ("deep", "shallow")}
    return {**found, "hydragnn": paper.ensemble(folder / "hydragnn")}


def predictors(checks: Checks, device: str, folders: dict[str, Path]) -> None:
    """Check predictors on the device in every precision."""
    from growth import lattice

    from atomsieve.predict import Predictor

    plain = lattice(20, 20, seed=5)
    charged = plain.replace(charge=np.zeros(len(plain), np.float32), spin=np.zeros(len(plain), np.float32))
    for name, folder in folders.items():
        batch = charged if name == "hydragnn" else plain
        want = {"energy", "forces"} if name == "hydragnn" else {"energy", "forces", "spread"}
        truth = Predictor.load(folder, precision="fp64")(batch, want)
        for precision, allowed in PRECISIONS.items():
            found = Predictor.load(folder, precision=precision, device=device)(batch, want)
            for column in ("energy", "forces", "energy_std"):
                if (value := getattr(found, column)) is not None and np.isfinite(value).all():
                    checks(f"{name}, {precision}: {column}", relative(value, getattr(truth, column)), allowed)
            checks(f"{name}, {precision}: rows without a result", float(found.status.astype(bool).sum()), 0.0)


def loop(device: str, folder: Path, structures: int, lanes: int) -> tuple[bytes, float]:
    """Return the rows of a chunk and structures/s by a number of batches at work at once."""
    from growth import lattice

    from atomsieve.predict import Predictor
    from atomsieve.predict.packing import usual_budget
    from atomsieve.screen.engine.cuda_streams import StreamedPredictor
    from atomsieve.screen.engine.runner import Runner

    batch, predictor = lattice(structures, 20, seed=1), Predictor.load(folder, device=device)
    with StreamedPredictor(predictor, lanes) as several:
        runner = Runner(several, [predictor.head], False, *usual_budget(predictor), None, 20_000)
        runner(batch.slice(0, min(200, structures)), 0)  # what a first call costs is not counted
        began = time.perf_counter()
        rows, *_ = runner(batch, 0)
        return rows.tobytes(), structures / (time.perf_counter() - began)


def screening(checks: Checks, device: str, folder: Path, structures: int) -> None:
    """Check that results do not depend on how many batches are at work, and measure what two are worth."""
    found = {(lanes, k): loop(device, folder, structures, lanes) for k in (0, 1) for lanes in (1, 2)}
    first = found[1, 0][0]
    checks("screening loop: runs that differ from the first", sum(rows != first for rows, _ in found.values()), 0.0)
    one, two = (max(found[lanes, k][1] for k in (0, 1)) for lanes in (1, 2))
    print(
        f"\n{structures:,} crystals of 20 atoms, four members: {one:,.0f} structures/s with one batch at work, "
        f"{two:,.0f} with two (ratio {two / one:.2f})\n"
    )


def measure(device: str, quick: bool) -> None:
    """Run the scripts beside this one."""
    few = ["--structures", "4"] if quick else []
    calls = [
        ["paper.py", "device", *(few or ["--structures", "200", "--eager-batch", "50"])],
        [
            "paper.py",
            "loop",
            *(few or ["--structures", "400", "--eager-batch", "50", "--eager-structures", "100"]),
            "--batch-atoms",
            "65536",
        ],
        [
            "paper.py",
            "files",
            *(few or ["--structures", "5000", "--eager-batch", "50", "--eager-structures", "100"]),
            "--precisions",
            "fp64,fp32,bf16",
        ],
        ["crystals.py", "members", "--sizes", "1,16" if quick else "1,16,64,1024", "--rounds", "3" if quick else "9"],
        ["stages.py", "--structures", "200" if quick else "50000"],
    ]
    for call in calls:
        print(f"\n## {' '.join(call)} --device {device}\n", flush=True)
        done = subprocess.run([sys.executable, str(HERE / call[0]), *call[1:], "--device", device], check=False)
        if done.returncode:
            print(f"**ended with {done.returncode}**", flush=True)


def main() -> int:
    """Read the command line; the exit code says whether every check held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    import torch

    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}\n")
    checks = Checks()
    with tempfile.TemporaryDirectory() as place:
        kernels(checks, options.device)
        lists(checks, options.device)
        folders = ensembles(Path(place), options)
        predictors(checks, options.device, folders)
        screening(checks, options.device, folders["deep"], 300 if options.quick else 50_000)
    if not checks.held:
        print("error: checks failed; nothing is measured", file=sys.stderr)
        return 1
    measure(options.device, options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
