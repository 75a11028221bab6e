"""Train a four-member, sixteen-head ensemble on real labelled sources, and screen real candidates with it.

    python benchmarks/real_data.py --data ../shared/data --work /tmp/real_data            # everything
    python benchmarks/real_data.py --data ../shared/data --work /tmp/real_data --stage train --hours 0.8

Stages: convert (extended XYZ to BP5), train (`atomsieve train` on --ranks MPI ranks of one thread), table (errors per
head on the test files, the correlation of spread and error, speed), screen (the candidate files; Spearman correlation
of predicted and reference formation energy). A stage whose result exists is not repeated; an interrupted training goes
on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from atomsieve.structures import StructureBatch
from atomsieve.structures.manifest import SourceInfo
from atomsieve.structures.reader import open_structures
from atomsieve.structures.writer import StructureWriter, write_structures

PROGRAM = Path(sys.executable).with_name("atomsieve")
SCREENED_WITH = "mptrj"
"""Head (level of theory) with which candidates are screened: the candidates' references are of its kind."""

DRAWN = {
    2.0: ["alexandria", "mptrj", "mattersim_tp", "organics_wb97x", "qm22_b3lyp"],
    0.6: ["elements_mlearn", "hea_nbmotaw", "slab_co2_ni100"],
}
"""Weights in drawing: many elements and stiff bonds are learnt slowly, metals quickly (many atoms in like places)."""

REFERENCES = {
    "wbm_equilibrium": "ref_formation_energy_per_atom",
    "perovskites_abx3": "ref_formation_energy_per_atom",
    "adsorbates_fcc111": "ref_adsorption_energy_per_adsorbate",
    "mp_binaries": None,
}
"""Candidate file and the quantity its reference values mean."""


def configuration(work: Path, hours: float, ranks: int) -> dict:
    """Return the training configuration."""
    with open_structures(work / "train.bp") as reader:
        names = [info.name for info in reader.sources]
    special = [name for group in DRAWN.values() for name in group]
    drawn = {1.0: [name for name in names if name not in special], **DRAWN}
    return {
        "data": [
            *({"path": str(work / "train.bp"), "sources": names, "weight": weight} for weight, names in drawn.items()),
            {"path": str(work / "test.bp"), "use": "test"},
        ],
        "output": str(work / "run"),
        "default_head": SCREENED_WITH,
        "model": {"hidden": 64, "layers": 3, "cutoff": 4.5, "typical_neighbors": 25.0},
        # Members dealt to the ranks need no exchange; with one rank they share geometry instead.
        "ensemble": {"members": 4, "mode": "spread" if ranks > 1 else "together"},
        "split": {"train": 0.97, "val": 0.03, "test": 0.0, "by": "formula"},
        "loss": {"energy": 1.0, "energy_end": 3.0, "force": 3.0, "kind": "mae"},
        "optimizer": {"lr": 1.5e-3, "betas": [0.9, 0.995], "schedule": "cosine", "ema": 0.998, "clip": 20.0},
        "batch": {"atoms": 192, "balance": 0.5},
        "budget": {"hours": hours, "eval_every": 2000, "eval_structures": 300, "checkpoint_minutes": 3},
    }


def levels_of_theory(data: Path) -> list[SourceInfo]:
    """Return the sources, in alphabetical order, with the level of theory that their files state."""
    infos = []
    for folder in sorted(p.parent for p in data.glob("*/train.extxyz.gz")):
        with gzip.open(folder / "train.extxyz.gz", "rt") as file:
            head = file.read(4000)
        found = re.search(r'level_of_theory=(?:"([^"]*)"|(\S+))', head)
        infos.append(SourceInfo(folder.name, (found[1] or found[2]) if found else ""))
    return infos


def convert(data: Path, work: Path) -> None:
    """Convert all sources into train.bp and test.bp."""
    import ase.io

    infos = levels_of_theory(data)
    for part in ("train", "test"):
        target = work / f"{part}.bp"
        if target.exists():
            continue
        began = time.monotonic()
        with StructureWriter(target, sources=infos) as writer:
            for head, info in enumerate(infos):
                images = ase.io.read(data / info.name / f"{part}.extxyz.gz", index=":", format="extxyz")
                batch = StructureBatch.from_ase(images)
                writer.append(batch.replace(head=np.full(len(batch), head, np.int32)))
                print(f"{part:6s} {info.name:20s} {len(batch):6d} structures {batch.n_atoms:8d} atoms", flush=True)
        print(f"{target}: {time.monotonic() - began:.0f} s")


def train(work: Path, hours: float, ranks: int, settings: list[str]) -> None:
    """Train, or go on training."""
    path = work / "train.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump(configuration(work, hours, ranks), sort_keys=False))
    if (work / "run" / "gfm" / "manifest.json").exists():
        return
    command = [str(PROGRAM), "train", str(path), *(f"--set={s}" for s in settings)]
    if ranks > 1:
        command = [str(PROGRAM.with_name("mpirun")), "-n", str(ranks), *command]
        command = ["env", "OMP_NUM_THREADS=1", *command]
    print(" ".join(command), flush=True)
    began = time.monotonic()
    subprocess.run(command, check=True)
    (work / "seconds.txt").write_text(f"{time.monotonic() - began:.0f}")


def speed(work: Path) -> list[str]:
    """Return what the logs say of the speed of training."""
    lines = []
    for path in sorted((work / "run" / "runs").glob("*/log.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [r for r in rows if r["kind"] == "train"]
        if steps:
            rate = np.median([r["structures_per_second"] for r in steps])
            lines.append(
                f"run {path.parent.name}: {steps[-1]['step']} steps in {steps[-1]['elapsed'] / 60:.1f} min, "
                f"median {rate:.1f} structures/s, {steps[-1]['skipped']} skipped"
            )
    return lines


def table(work: Path) -> None:
    """Print errors per head beside their baselines."""
    from atomsieve.train.plots import metrics_table

    metrics = json.loads((work / "run" / "metrics.json").read_text())["test"]
    print(metrics_table(metrics))
    fifth = sum(r["energy_ratio"] < 0.2 for r in metrics.values())
    third = sum(r["energy_ratio"] < 1 / 3 for r in metrics.values())
    forced = {n: r for n, r in metrics.items() if r.get("force_baseline", 0) > 50}
    good = sum(r["force_ratio"] < 1 / 3 for r in forced.values())
    print(f"\nenergy: {fifth} of {len(metrics)} heads below 1/5 of the references alone, {third} below 1/3")
    print(f"forces: {good} of {len(forced)} heads (zero-force error above 50 meV/A) below 1/3 of zero forces")
    for line in speed(work):
        print(line)


def formation_energy(energy: np.ndarray, composition: np.ndarray, head: str, work: Path) -> np.ndarray:
    """Return the energy per atom minus element references: a formation energy up to terms linear in composition."""
    data = json.loads((work / "run" / "data.json").read_text())[head]
    references = np.zeros(composition.shape[1])
    for number, value in data["references"].items():
        references[int(number)] = value
    return (energy - composition @ references) / composition.sum(1)


def screen(data: Path, work: Path) -> None:
    """Predict the candidate files and compare ranks with the reference values."""
    import ase.io
    from scipy.stats import spearmanr

    from atomsieve.predict import Predictor
    from atomsieve.train.references import element_counts

    predictor = Predictor.load(work / "run" / "gfm", head=SCREENED_WITH)
    headings = ("candidates", "structures", "ok", "structures/s", "reference", "Spearman", f"head {SCREENED_WITH}")
    print("\n| " + " | ".join(headings) + " |\n" + "| --- " * len(headings) + "|")
    for name, key in REFERENCES.items():
        images = ase.io.read(data / "candidates" / f"{name}.extxyz.gz", index=":", format="extxyz")
        batch = StructureBatch.from_ase(images)
        if not (work / f"{name}.bp").exists():
            write_structures(work / f"{name}.bp", batch)
        began = time.monotonic()
        with open_structures(work / f"{name}.bp") as reader:
            parts = [predictor(b, want={"energy", "spread"}) for b in reader.iter_batches(200)]
        seconds = time.monotonic() - began
        energy = np.concatenate([p.energy for p in parts])
        ok = np.concatenate([p.status for p in parts]) == 0
        row = f"| {name} | {len(batch)} | {ok.sum()} | {len(batch) / seconds:.0f} | {key or '-'} |"
        if key is not None:
            reference = np.array([float(a.info.get(key, np.nan)) for a in images])
            predicted = formation_energy(energy, element_counts(batch), SCREENED_WITH, work)
            good = ok & np.isfinite(reference) & np.isfinite(predicted)
            row += f" {spearmanr(predicted[good], reference[good]).statistic:.3f} | over {good.sum()} |"
        else:
            row += " - | |"
        print(row, flush=True)


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("real_data"))
    parser.add_argument("--hours", type=float, default=0.83, help="wall time of training")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stage", choices=("all", "convert", "train", "table", "screen"), default="all")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="passed on to `atomsieve train`")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.stage in ("all", "convert"):
        convert(options.data, work)
    if options.stage in ("all", "train"):
        train(work, options.hours, options.ranks, options.settings)
    if options.stage in ("all", "table"):
        table(work)
    if options.stage in ("all", "screen"):
        screen(options.data, work)


if __name__ == "__main__":
    main()
