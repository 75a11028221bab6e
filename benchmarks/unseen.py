"""Does an ensemble know what it was not trained on? Leave chemistry out, train, and look who notices.

    python benchmarks/unseen.py --data ../shared/data --work unseen --minutes 9

Trained: the training files of mptrj and alexandria without any structure that holds oxygen and a 3d metal (Sc to Zn).
Evaluated with the head mptrj: (a) its own test file without that chemistry; (b) the chemistry left out, of both files
of mptrj; (c) the test file of mattersim_tp, crystals far off equilibrium. The energies of (b) and (c) hold systematic
shifts (Hubbard U of oxides; other settings), so a correction per element is fitted to their errors first.
Stages: data, train, report. A stage whose result exists is not repeated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

PROGRAM = Path(sys.executable).with_name("atomsieve")
METALS_3D = range(21, 31)
HEAD = "mptrj"
SETS = {"own": "own test", "left_out": "O with a 3d metal", "extreme": "mattersim_tp"}


def run(*words: object) -> None:
    """Run a command of ours, shown first."""
    command = [str(w) for w in words]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def left_out(batch) -> np.ndarray:
    """Return [S]: structures that hold oxygen and a 3d metal."""
    owner, n = batch.structure_of_atom, len(batch)
    oxygen = np.bincount(owner, batch.numbers == 8, n) > 0
    return oxygen & (np.bincount(owner, np.isin(batch.numbers, METALS_3D), n) > 0)


def make_data(data: Path, work: Path) -> None:
    """Convert the three sources and divide mptrj and alexandria."""
    from atomsieve.structures import SourceInfo, StructureBatch, StructureWriter, open_structures

    keys = ("--source-key", "source", "--level-key", "level_of_theory", "--quiet")
    found: dict[tuple[str, str], StructureBatch] = {}
    levels = {}
    for name in ("mptrj", "alexandria", "mattersim_tp"):
        for part in ("train", "test"):
            path = work / f"{name}_{part}.bp"
            if not path.exists():
                run(PROGRAM, "data", "convert", data / name / f"{part}.extxyz.gz", path, *keys)
            with open_structures(path) as reader:
                found[name, part] = reader.read(0, len(reader))
                levels[name] = reader.sources[0].level_of_theory

    def write(name: str, parts: list[tuple[str, StructureBatch]]) -> None:
        sources = [SourceInfo(source, levels[source]) for source, _ in parts]
        with StructureWriter(work / f"{name}.bp", sources=sources, overwrite=True) as writer:
            for k, (_, batch) in enumerate(parts):
                writer.append(batch.replace(head=np.full(len(batch), k, np.int32)))
        print(f"{name}: {', '.join(f'{len(b)} of {s}' for s, b in parts)}")

    train = [(name, found[name, "train"]) for name in ("mptrj", "alexandria")]
    write("train", [(name, batch.take(~left_out(batch))) for name, batch in train])
    own, test = found["mptrj", "train"], found["mptrj", "test"]
    write("own", [("mptrj", test.take(~left_out(test)))])
    write("left_out", [("mptrj", StructureBatch.concatenate([own.take(left_out(own)), test.take(left_out(test))]))])
    write("extreme", [("mattersim_tp", found["mattersim_tp", "test"])])


def train(work: Path, minutes: float) -> None:
    """Train four members together."""
    config = {
        "data": [{"path": str(work / "train.bp")}],
        "output": str(work / "run"),
        "default_head": HEAD,
        "model": {"hidden": 64, "layers": 2, "cutoff": 4.5, "typical_neighbors": 25.0},
        "ensemble": {"members": 4, "mode": "together"},
        "split": {"train": 0.82, "val": 0.03, "test": 0.0, "calibration": 0.15, "by": "formula"},
        "loss": {"energy": 1.0, "energy_end": 3.0, "force": 3.0, "force_floor": 0.6, "energy_range": [0.05, 0.2]},
        "optimizer": {
            "lr": 3e-3,
            "betas": [0.9, 0.99],
            "schedule": "cosine",
            "ema": 0.99,
            "clip": 20.0,
            "warmup": 0.01,
        },
        "batch": {"atoms": 192},
        "budget": {"hours": minutes / 60, "eval_every": 1000, "eval_structures": 200, "checkpoint_minutes": 3},
    }
    (work / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run(PROGRAM, "train", work / "train.yaml")


def corrected(error: np.ndarray, batch) -> np.ndarray:
    """Return energy errors [S] eV less what a constant per element explains (ridge regression, 1 eV)."""
    content = np.zeros((len(batch), 119))
    np.add.at(content, (batch.structure_of_atom, batch.numbers), 1.0)
    fraction = content / batch.counts[:, None]
    size = fraction.T @ fraction + 0.1 * np.eye(119)
    shift = np.linalg.solve(size, fraction.T @ (error / batch.counts))
    return error - content @ shift


def judge(work: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each set, errors, spreads, distances and reasons of the structures with a result, and all reasons."""
    from atomsieve.predict import Predictor
    from atomsieve.structures import open_structures

    predictor = Predictor.load(work / "run" / "gfm", head=HEAD)
    out = {}
    for name in SETS:
        with open_structures(work / f"{name}.bp") as reader:
            batch = reader.read(0, len(reader))
        found = predictor(batch, {"energy", "forces", "spread"})
        good = np.flatnonzero(found.status == 0)
        atoms = np.repeat(found.status == 0, batch.counts)
        kept = batch.take(good)
        raw = error = found.energy[good] - kept.energy
        if name != "own":
            error = corrected(error, kept)

        def mean(values: np.ndarray, batch=kept) -> np.ndarray:
            return np.add.reduceat(values, batch.ptr[:-1]) / batch.counts

        out[name] = {
            "all": found.outside,
            "outside": found.outside[good],
            "distance": found.distance[good],
            "energy": np.abs(error) / kept.counts,
            "raw energy": np.abs(raw) / kept.counts,
            "force": mean(np.linalg.norm(found.forces[atoms] - kept.forces, axis=1)),
            "energy spread": found.energy_std[good] / kept.counts,
            "force spread": mean(np.linalg.norm(found.forces_std[atoms], axis=1)),
        }
    return out


def auroc(bad: np.ndarray, score: np.ndarray) -> float:
    """Return the probability that a bad structure has a larger score than a good one."""
    from scipy.stats import rankdata

    rank, n = rankdata(score), int(bad.sum())
    return float((rank[bad].sum() - n * (n + 1) / 2) / (n * (len(bad) - n))) if 0 < n < len(bad) else float("nan")


def largest(score: np.ndarray, share: float) -> np.ndarray:
    """Return [S]: the given share of structures with the largest scores."""
    chosen = np.zeros(len(score), bool)
    chosen[np.argsort(-score, kind="stable")[: round(share * len(score))]] = True
    return chosen


def report(found: dict[str, dict[str, np.ndarray]]) -> str:
    """Return the tables: who is flagged and why, and which of the worst tenth is noticed by what."""
    from atomsieve.predict import Outside

    names = [reason.name for reason in Outside]
    heads = [
        "set",
        "structures",
        "flagged",
        *names,
        "median energy error meV/atom: inside, flagged",
        "before the correction",
        "median force error meV/Å: inside, flagged",
    ]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, title in SETS.items():
        own = found[name]
        shares = [f"{(own['all'] & reason != 0).mean():.1%}" for reason in Outside]
        flag = own["outside"] != 0
        errors = [
            ", ".join(f"{1e3 * np.median(own[kind][which]):.0f}" if which.any() else "-" for which in (~flag, flag))
            for kind in ("energy", "raw energy", "force")
        ]
        cells = [title, str(len(own["all"])), f"{(own['all'] != 0).mean():.1%}", *shares, *errors]
        lines.append(f"| {' | '.join(cells)} |")
    heads = [
        "set",
        "error",
        "flagged",
        "worst 10 % flagged",
        "top 10 % by spread",
        "top 20 % by spread",
        "by spread, as many as flagged",
        "flagged or top 20 % by spread",
        "top 20 % by distance",
        "AUROC spread",
        "AUROC distance",
    ]
    lines += ["", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, title in {**SETS, "every": "all three"}.items():
        own = pooled(found) if name == "every" else found[name]
        flag, far = own["outside"] != 0, own["distance"]
        for kind in ("energy", "force"):
            bad, spread = largest(own[kind], 0.1), own[f"{kind} spread"]
            caught = [
                flag,
                largest(spread, 0.1),
                largest(spread, 0.2),
                largest(spread, flag.mean()),
                flag | largest(spread, 0.2),
                largest(far, 0.2),
            ]
            cells = [f"{who[bad].mean():.0%}" for who in caught]
            scores = [f"{auroc(bad, spread):.2f}", f"{auroc(bad, far):.2f}"]
            lines.append(f"| {title} | {kind} | {flag.mean():.0%} | {' | '.join(cells + scores)} |")
    return "\n".join(lines)


def pooled(found: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the structures of all sets together."""
    return {key: np.concatenate([own[key] for own in found.values()]) for key in found["own"]}


def figure(found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw errors against distance, and how many of the worst tenth are found by looking at a share of all."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    image, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for (name, title), colour in zip(SETS.items(), ("C0", "C3", "C2"), strict=True):
        own, ax = found[name], axes[0]
        flag = own["outside"] != 0
        for which, fill in ((~flag, "none"), (flag, colour)):
            ax.scatter(
                own["distance"][which],
                1e3 * own["force"][which],
                s=9,
                lw=0.6,
                edgecolors=colour,
                facecolors=fill,
                label=title if fill != "none" else None,
            )
    axes[0].axvline(1.0, color="k", lw=0.8, ls="--")
    axes[0].set(
        yscale="log",
        ylim=(10, None),
        xlabel="distance (limit 1); filled: flagged",
        ylabel="mean force error of the structure, meV/Å",
    )
    axes[0].legend(fontsize=8)
    own, share = pooled(found), np.linspace(0.0, 1.0, 101)
    for ax, kind in zip(axes[1:], ("energy", "force"), strict=True):
        bad = largest(own[kind], 0.1)
        for score, label in ((own[f"{kind} spread"], f"{kind} spread"), (own["distance"], "distance")):
            ax.plot(share, [largest(score, s)[bad].mean() for s in share], label=label)
        flag = own["outside"] != 0
        ax.plot(flag.mean(), flag[bad].mean(), "k*", ms=11, label="flag")
        ax.plot(share, share, color="grey", lw=0.8, ls=":")
        ax.set(xlabel="share of all looked at", ylabel="share of the worst 10 % found", title=f"{kind} error")
        ax.legend(fontsize=8, loc="lower right")
    image.savefig(path, dpi=110)


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("unseen"))
    parser.add_argument("--minutes", type=float, default=9.0, help="wall time of training")
    parser.add_argument("--figure", type=Path, default=None, help="where to draw the figure")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "extreme.bp").exists():
        make_data(options.data, work)
    if not (work / "run" / "gfm" / "manifest.json").exists():
        train(work, options.minutes)
    found = judge(work)
    print(report(found))
    figure(found, options.figure or work / "unseen.png")


if __name__ == "__main__":
    main()
