"""Trains a configuration on the shared sources and writes what came of it: one folder with a result.json per run.

result.json: `name`, `seed`, `kind`, `commit`, `machine`, `core_minutes`, `ranks`, `members`, `parameters` (of one
member); `training` (steps, structures, core_seconds, structures_per_core_second); `inference` (see `judge.timing`);
`heads`, for each head on its test file:

    structures, failed (without a result); energy_mae, energy_baseline (references alone) in meV/atom; force_mae,
    force_baseline (zero forces) in meV/Angstrom per component; coverage of the 90 % interval of energies, z (binomial),
    z_fitted (the calibration's own uncertainty counted), crps of calibrated energies in meV/atom; force_coverage,
    force_z (structures counted as independent, not the components of one), force_crps in meV/Angstrom. A run of one
    member, and a quick one, have no uncertainties.
"""

from __future__ import annotations

import copy
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from judge.scores import LEVEL, coverage_z

if TYPE_CHECKING:
    from atomsieve.evaluation.residuals import HeadRows

RESULT = "result.json"


def lay_over(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with the keys of `change` put in, section by section."""
    out = copy.deepcopy(base)
    for key, value in change.items():
        out[key] = lay_over(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def choose_sources(config: dict[str, Any], sources: list[str]) -> dict[str, Any]:
    """Return the configuration with these sources alone; the default head stays if it is among them."""
    known = [name for item in config["data"] for name in item.get("sources", [])]
    for name in sources:
        if name not in known:
            raise SystemExit(f"--sources: no source is called {name!r}; there are {', '.join(sorted(known))}")
    out = copy.deepcopy(config)
    for item in out["data"]:
        item["sources"] = [name for name in item.get("sources", sources) if name in sources]
    out["data"] = [item for item in out["data"] if item["sources"]]
    if out["default_head"] not in sources:
        out["default_head"] = sources[0]
    return out


def describe_machine() -> str:
    """Return the processor and the number of its cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
        return f"{name}, {len(lines) or 1} cores"
    return name


def describe_commit(tree: Path) -> str:
    """Return the short commit of a checkout, with a + where files differ from it; "unknown" outside of git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(tree), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return (commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) or "unknown"


def write_result(place: Path, result: dict[str, Any]) -> None:
    """Write result.json."""
    (place / RESULT).write_text(json.dumps(result, indent=1) + "\n")


def read_results(results: Path) -> list[dict[str, Any]]:
    """Return the results in a folder, by name and seed, each with its `place`."""
    found = []
    for path in sorted(results.glob(f"*/{RESULT}")):
        found.append(json.loads(path.read_text()) | {"place": str(path.parent)})
    if not found:
        raise SystemExit(f"{results} holds no results; make some with: accuracy.py train --results {results}")
    return sorted(found, key=lambda r: (r["name"], r["seed"]))


def train_run(place: Path, config: dict[str, Any], ranks: int, quick: bool = False) -> None:
    """Train in a folder, or go on training there; a finished one is left as it is. quick : see `quick_training`."""
    from real_data import PROGRAM, run

    path, output = place / "train.yaml", place / "run"
    config = config | {"output": str(output)}
    if path.exists() and yaml.safe_load(path.read_text()) != json.loads(json.dumps(config)):
        raise SystemExit(f"{path} holds another configuration; give another --name or remove {place}")
    place.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    if not (output / "gfm" / "manifest.json").exists():
        program = (sys.executable, Path(__file__).with_name("quick_training.py")) if quick else (PROGRAM, "train")
        run(*program, path, ranks=ranks)


def collect(output: Path, test: Path, quick: bool = False) -> dict[str, Any]:
    """Return what a trained folder says of itself, and its errors and uncertainties on the test file.

    quick : take the errors that the training has written, and no uncertainties.
    """
    from atomsieve.gfm import load_gfm

    ensemble, manifest = load_gfm(output / "gfm")
    config = yaml.safe_load((output / "config.yaml").read_text())
    return {
        "kind": f"{config['model'].get('encoder', 'painn')}, {manifest.kind}",
        "machine": describe_machine(),
        "core_minutes": config["budget"]["core_minutes"],
        "members": len(manifest.members),
        "parameters": sum(p.numel() for p in ensemble.take([0]).parameters()),
        "training": describe_training(output),
        "heads": read_metrics(output) if quick else judge_heads(output / "gfm", test),
    }


def read_metrics(output: Path) -> dict[str, dict[str, Any]]:
    """Return errors and baselines of the test files from a training's metrics.json."""
    keys = ("structures", "energy_mae", "energy_baseline", "force_mae", "force_baseline")
    metrics = json.loads((output / "metrics.json").read_text())["test"]
    return {name: {key: row[key] for key in keys if key in row} for name, row in metrics.items()}


def judge_heads(gfm: Path, test: Path) -> dict[str, dict[str, Any]]:
    """Return the numbers of every head on the structures of its source in the test file."""
    from atomsieve.evaluation.metrics import compute_head_metrics
    from atomsieve.evaluation.residuals import choose_atom_stride, predict_rows
    from atomsieve.gfm import read_calibration
    from atomsieve.predict import Predictor
    from atomsieve.structures import open_structures

    predictor, calibration = Predictor.load(gfm, device="cpu"), read_calibration(gfm).heads
    with open_structures(test) as reader:
        batch, sources = reader.read(0, len(reader)), [s.name for s in reader.sources]
    heads = {}
    for number, name in enumerate(sources):
        position = np.flatnonzero(batch.head == number)
        if name in predictor.heads and len(position):
            own = batch.take(position)
            rows = predict_rows(predictor, own, name, position, choose_atom_stride(own.n_atoms))
            fit = calibration[name].energy_per_atom if name in calibration else None
            heads[name] = summarise_head(rows, compute_head_metrics(rows), fit.structures if fit else None)
    return heads


def summarise_head(rows: HeadRows, metrics: dict[str, Any], calibrated_on: int | None) -> dict[str, Any]:
    """Return the numbers of a head, as the head of this file lists them."""
    row: dict[str, Any] = {"structures": metrics["structures"], "failed": int((rows.status != 0).sum())}
    if energy := metrics.get("energy"):
        off = np.abs(rows.energy - rows.reference) / np.maximum(rows.natoms, 1)
        row |= {"energy_mae": 1e3 * energy["mae"], "energy_baseline": 1e3 * float(np.nanmean(off))}
        if energy["coverage"] is not None:
            row["coverage"] = energy["coverage"]
            row["z"] = coverage_z(energy["coverage"], energy["n"])
            row["z_fitted"] = coverage_z(energy["coverage"], energy["n"], calibrated_on)
        if scores := energy["calibrated"] or energy["raw"]:
            row["crps"] = 1e3 * scores["crps"]
    if force := metrics.get("force"):
        row |= {"force_mae": 1e3 * force["mae"], "force_baseline": 1e3 * float(np.abs(rows.force).mean())}
        if force["coverage"] is not None:
            row["force_coverage"] = force["coverage"]
            row["force_z"] = (force["coverage"] - LEVEL) / max(force["coverage_se"], force["expected_coverage_se"])
        if scores := force["calibrated"] or force["raw"]:
            row["force_crps"] = 1e3 * scores["crps"]
    return row


def describe_training(output: Path) -> dict[str, Any]:
    """Return steps, structures that every member learnt from, and processor time of all ranks, evaluations included.

    The members of an ensemble may be trained in several runs, each with its own order of the data; a structure counts
    in proportion to the members that saw it.
    """
    from atomsieve.train.checkpoint import load_tensors

    states = [load_tensors(path)[1] for path in sorted((output / "runs").glob("*/last.safetensors"))]
    own = [len(state["best"]) for state in states]
    structures = sum(s["structures"] * n for s, n in zip(states, own, strict=True)) / sum(own)
    seconds = sum(state["processor"] for state in states)
    return {
        "steps": max(state["step"] for state in states),
        "structures": structures,
        "core_seconds": seconds,
        "wall_seconds": max(state["elapsed"] for state in states),
        "structures_per_core_second": structures / seconds if seconds else None,
    }


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)
