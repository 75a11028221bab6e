"""Does picking pay? Train, screen and pick from a pool, label, train again; beside it the same with random picks.

    python benchmarks/active_learning.py --data ../shared/data --work active_learning

The pool is the training file of organics_wb97x with its labels hidden, as it is: dimers of small molecules at eight
distances each, and a drug-like molecule at 300 K and at mixed temperatures up to 1200 K; unequal in number, size and
difficulty. Each seed starts from the same random structures for both ways. Every round runs what a user would:
`atomsieve train`, `screen run`, `screen pick`; the picked structures get their labels. All trainings have the same
number of steps. Errors are on the test file.
A training whose ensemble exists is not repeated; the table and the figure are written anew each time.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

PROGRAM = Path(sys.executable).with_name("atomsieve")
SOURCE = "organics_wb97x"
WAYS = ("picked", "random")
TITLES = {
    "energy_mae": "energy MAE, meV/atom",
    "energy_rmse": "energy RMSE, meV/atom",
    "force_mae": "force MAE, meV/Å",
    "force_rmse": "force RMSE, meV/Å",
}


def run(*words: object, log: Path) -> None:
    """Run a command of ours; what it says goes to a file."""
    command = [str(w) for w in words]
    with log.open("a") as file:
        print(*command, file=file, flush=True)
        if subprocess.run(command, check=False, stdout=file, stderr=file).returncode not in (0, 3):
            sys.exit(f"failed: {' '.join(command)}; see {log}")


class Pool:
    """All structures that can be labelled, by index."""

    def __init__(self, path: Path) -> None:
        from atomsieve.structures import open_structures

        with open_structures(path) as reader:
            self.batch, self.sources = reader.read(0, len(reader)), reader.sources

    def __len__(self) -> int:
        return len(self.batch)

    def write(self, path: Path, index: np.ndarray) -> None:
        """Write some of the structures as a dataset."""
        from atomsieve.structures import StructureWriter

        with StructureWriter(path, sources=self.sources, overwrite=True) as writer:
            writer.append(self.batch.take(index))


def configuration(data: Path, output: Path, steps: int, seed: int) -> dict:
    """Return the configuration of one training."""
    return {
        "data": [{"path": str(data)}],
        "output": str(output),
        "model": {"hidden": 32, "layers": 2, "cutoff": 4.5, "typical_neighbors": 15.0},
        "ensemble": {"members": 3, "mode": "together", "seed": seed},
        "split": {"train": 0.9, "val": 0.1, "test": 0.0, "calibration": 0.0, "by": "structure"},
        "loss": {"energy": 1.0, "energy_end": 3.0, "force": 3.0},
        "optimizer": {"lr": 4e-3, "schedule": "cosine", "ema": 0.99, "clip": 20.0, "warmup": 0.02},
        "batch": {"atoms": 192},
        "budget": {"steps": steps, "eval_every": steps // 4, "checkpoint_minutes": 10},
    }


def errors(gfm: Path, test: Path) -> dict[str, float]:
    """Return the errors of an ensemble on the test file, meV/atom and meV/Angstrom (components)."""
    from atomsieve.predict import Predictor
    from atomsieve.structures import open_structures

    with open_structures(test) as reader:
        batch = reader.read(0, len(reader))
    found = Predictor.load(gfm)(batch, {"energy", "forces"})
    energy = 1e3 * (found.energy - batch.energy) / batch.counts
    force = 1e3 * (found.forces - batch.forces)
    good = found.status == 0
    force, energy = force[np.repeat(good, batch.counts)], energy[good]
    return {
        "energy_mae": float(np.abs(energy).mean()),
        "energy_rmse": float(np.sqrt((energy**2).mean())),
        "force_mae": float(np.abs(force).mean()),
        "force_rmse": float(np.sqrt((force**2).mean())),
        "judged": int(good.sum()),
    }


def pick(pool: Pool, chosen: np.ndarray, gfm: Path, place: Path, n: int) -> np.ndarray:
    """Screen the rest of the pool and return the indices of the structures picked."""
    rest = np.setdiff1d(np.arange(len(pool)), chosen)
    pool.write(place / "rest.bp", rest)
    log = place / "log.txt"
    run(
        PROGRAM,
        "screen",
        "run",
        place / "rest.bp",
        "--ensemble",
        gfm,
        "--out",
        place / "results",
        "--overwrite",
        "--quiet",
        log=log,
    )
    out = ("--out", place / "picked.extxyz", "--overwrite")
    run(PROGRAM, "screen", "pick", place / "results", "--n", n, *out, log=log)
    with (place / "picked.csv").open() as file:
        return rest[[int(row["position"]) for row in csv.DictReader(file)]]


def learn(pool: Pool, test: Path, work: Path, options: argparse.Namespace, seed: int) -> list[dict]:
    """Run all rounds of one seed, both ways; return one row per training."""
    rows = []
    first = np.sort(np.random.default_rng([seed, 7]).permutation(len(pool))[: options.start])
    for way in WAYS:
        chosen = first
        for turn in range(options.rounds + 1):
            place = work / f"seed{seed}" / (f"{way}{turn}" if turn else "start")
            place.mkdir(parents=True, exist_ok=True)
            gfm = place / "run" / "gfm"
            if not (place / "errors.json").exists():
                pool.write(place / "train.bp", np.sort(chosen))
                config = configuration(place / "train.bp", place / "run", options.steps, 100 * seed)
                (place / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
                run(PROGRAM, "train", place / "train.yaml", "--overwrite", log=place / "log.txt")
                (place / "errors.json").write_text(json.dumps(errors(gfm, test)))
            found = json.loads((place / "errors.json").read_text())
            rows.append({"seed": seed, "way": way, "structures": len(chosen), **found})
            print(json.dumps(rows[-1]), flush=True)
            if turn == options.rounds:
                break
            stored = place / f"next_{way}.npy"
            if not stored.exists():
                if way == "picked":
                    more = pick(pool, chosen, gfm, place, options.add)
                else:
                    draw = np.random.default_rng([seed, 8, turn])
                    more = draw.permutation(np.setdiff1d(np.arange(len(pool)), chosen))[: options.add]
                np.save(stored, more)
            chosen = np.concatenate([chosen, np.load(stored)])
    return rows


def summary(rows: list[dict]) -> dict[tuple[str, int], dict[str, tuple[float, float]]]:
    """Return mean and standard error over the seeds, per way and number of structures."""
    out = {}
    for way in WAYS:
        for n in sorted({r["structures"] for r in rows if r["way"] == way}):
            own = [r for r in rows if r["way"] == way and r["structures"] == n]
            values = {key: np.array([r[key] for r in own]) for key in TITLES}
            size = max(len(own), 1) ** 0.5
            out[way, n] = {k: (v.mean(), v.std(ddof=1) / size if len(v) > 1 else 0.0) for k, v in values.items()}
    return out


def table(rows: list[dict]) -> str:
    """Return the learning curves as a table: mean and standard error over the seeds."""
    found = summary(rows)
    lines = ["| labelled | chosen | " + " | ".join(TITLES.values()) + " |", "| --- | --- |" + " --- |" * len(TITLES)]
    for n in sorted({n for _, n in found}):
        for way in WAYS:
            if (way, n) in found and (n > min(m for _, m in found) or way == "picked"):
                name = "start" if n == min(m for _, m in found) else way
                cells = [f"{m:.1f} ± {e:.1f}" for m, e in found[way, n].values()]
                lines.append(f"| {n} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rows: list[dict], path: Path) -> None:
    """Draw the learning curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = summary(rows)
    image, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    for ax, (key, title) in zip(axes, TITLES.items(), strict=True):
        for way, colour in zip(WAYS, ("C0", "C1"), strict=True):
            points = sorted(n for w, n in found if w == way)
            mean, error = np.array([found[way, n][key] for n in points]).T
            label = "screen pick" if way == "picked" else "random"
            ax.errorbar(points, mean, error, color=colour, marker="o", ms=4, capsize=3, label=label)
            for seed in sorted({r["seed"] for r in rows}):
                own = sorted((r["structures"], r[key]) for r in rows if r["way"] == way and r["seed"] == seed)
                ax.plot(*zip(*own, strict=True), color=colour, lw=0.6, alpha=0.4)
        ax.set(title=title, xlabel="labelled structures", yscale="log")
        ax.grid(alpha=0.3, which="both")
    axes[0].legend()
    image.savefig(path, dpi=110)


def main() -> None:
    """Run the rounds, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("active_learning"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", type=int, default=60, help="structures labelled at the start")
    parser.add_argument("--add", type=int, default=60, help="structures labelled after each round")
    parser.add_argument("--steps", type=int, default=500, help="steps of each training")
    parser.add_argument("--figure", type=Path, default=None, help="where to draw the learning curves")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    keys = ("--source-key", "source", "--level-key", "level_of_theory", "--quiet")
    for part in ("train", "test"):
        if not (work / f"{part}.bp").exists():
            source = options.data / SOURCE / f"{part}.extxyz.gz"
            run(PROGRAM, "data", "convert", source, work / f"{part}.bp", *keys, log=work / "log.txt")
    pool = Pool(work / "train.bp")
    rows: list[dict] = []
    for seed in range(options.seeds):
        rows += learn(pool, work / "test.bp", work, options, seed)
    (work / "rows.json").write_text(json.dumps(rows, indent=1))
    print(f"\n{table(rows)}")
    figure(rows, options.figure or work / "active_learning.png")


if __name__ == "__main__":
    main()
