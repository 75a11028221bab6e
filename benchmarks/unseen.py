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
            "lr": 3e-3, "betas": [0.9, 0.99], "schedule": "cosine", "ema": 0.99, "clip": 20.0, "warmup": 0.01,
        },
        "batch": {"atoms": 192},
        "budget": {"hours": minutes / 60, "eval_every": 1000, "eval_structures": 200, "checkpoint_minutes": 3},
    }  # fmt: skip
    (work / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run(PROGRAM, "train", work / "train.yaml")


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("unseen"))
    parser.add_argument("--minutes", type=float, default=9.0, help="wall time of training")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "extreme.bp").exists():
        make_data(options.data, work)
    if not (work / "run" / "gfm" / "manifest.json").exists():
        train(work, options.minutes)


if __name__ == "__main__":
    main()
