"""Train a four-member, sixteen-head ensemble on real labelled sources, and screen real candidates with it.

    python benchmarks/real_data.py --data ../shared/data --work real_data            # everything
    python benchmarks/real_data.py --data ../shared/data --work real_data --stage train --core-minutes 48

Stages: convert (`atomsieve data convert`), train (`atomsieve train` on --ranks MPI ranks of one thread), table (errors
per head on the test files, the correlation of spread and error, speed), screen (`screen run` on the candidate files;
Spearman correlation of predicted and reference formation energy where there is one). A stage whose result exists is not
repeated; an interrupted training goes on.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

PROGRAM = Path(sys.executable).with_name("atomsieve")
SCREENED_WITH = "mptrj"
"""Head (level of theory) with which candidates are screened: most of their references are of its kind."""

REFERENCES = {
    "wbm_equilibrium": "ref_formation_energy_per_atom",
    "perovskites_abx3": "ref_formation_energy_per_atom",
    "adsorbates_fcc111": None,
    "mp_binaries": None,
}
"""Candidate file and the info key of its reference formation energy (eV/atom), if it has one."""

DRAWN = {
    1.0: ["ethanol_pbe", "fad_ccsdt", "tio2_qe", "qm22_b3lyp", "organics_wb97x"],
    3.2: ["alexandria", "mptrj", "mattersim_tp"],
    1.2: ["oxides_am05", "oxides_lda", "oxides_pbe", "oxides_pbesol"],
    0.6: ["elements_mlearn", "hea_nbmotaw", "slab_co2_ni100", "water_pbe0ts"],
}
"""How often sources are drawn beyond the general rule: crystals of many elements are the hardest to learn."""


def configuration(work: Path, core_minutes: float, ranks: int) -> dict:
    """Return the training configuration."""
    return {
        "data": [
            *(
                {"path": str(work / "train.bp"), "sources": names, "weight": weight}
                | ({"split_by": "structure"} if names[0] == "elements_mlearn" else {})
                for weight, names in DRAWN.items()
            ),
            {"path": str(work / "test.bp"), "use": "test"},
        ],
        "output": str(work / "run"),
        "default_head": SCREENED_WITH,
        "model": {"hidden": 64, "layers": 2, "cutoff": 4.5, "typical_neighbors": 25.0},
        # Members dealt to the ranks need no exchange; with one rank they share geometry instead.
        "ensemble": {"members": 4, "mode": "spread" if ranks > 1 else "together"},
        # What calibrates is kept like the test files are: by formula, but for alloys and frames of dynamics.
        "split": {"train": 0.77, "val": 0.03, "test": 0.0, "calibration": 0.2, "by": "formula"},
        "loss": {"energy": 1.0, "energy_end": 3.0, "force": 3.0, "force_floor": 0.6, "energy_range": [0.05, 0.2]},
        "optimizer": {
            "lr": 3e-3,
            "betas": [0.9, 0.99],
            "schedule": "cosine",
            "ema": 0.999,
            "clip": 20.0,
            "warmup": 0.01,
        },
        "batch": {"atoms": 192, "balance": 0.5},
        "budget": {"core_minutes": core_minutes, "eval_every": 4000, "eval_structures": 300, "checkpoint_minutes": 3},
    }


def run(*words: object, ranks: int = 1) -> float:
    """Run a command of ours, shown first; return its wall time in seconds."""
    command = [str(w) for w in words]
    if ranks > 1:
        command = [str(PROGRAM.with_name("mpirun")), "-n", str(ranks), *command]
    print(" ".join(command), flush=True)
    began = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 3):  # 3: done, but some structures have no result
        sys.exit(code)
    return time.monotonic() - began


def convert(data: Path, work: Path) -> None:
    """Convert all sources into train.bp and test.bp."""
    for part in ("train", "test"):
        target = work / f"{part}.bp"
        if not target.exists():
            files = sorted(data.glob(f"*/{part}.extxyz.gz"))
            keys = ("--source-key", "source", "--level-key", "level_of_theory")
            print(f"{target}: {run(PROGRAM, 'data', 'convert', *files, target, *keys, '--quiet'):.0f} s")


def train(work: Path, core_minutes: float, ranks: int, settings: list[str]) -> None:
    """Train, or go on training."""
    path = work / "train.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump(configuration(work, core_minutes, ranks), sort_keys=False))
    if not (work / "run" / "gfm" / "manifest.json").exists():
        run(PROGRAM, "train", path, *(f"--set={s}" for s in settings), ranks=ranks)


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
    from atomsieve.gfm.evaluation_file import format_table

    metrics = json.loads((work / "run" / "metrics.json").read_text())["test"]
    print(format_table(metrics))
    fifth = sum(r["energy_ratio"] < 0.2 for r in metrics.values())
    third = sum(r["energy_ratio"] < 1 / 3 for r in metrics.values())
    forced = {n: r for n, r in metrics.items() if r.get("force_baseline", 0) > 50}
    good = sum(r["force_ratio"] < 1 / 3 for r in forced.values())
    print(f"\nenergy: {fifth} of {len(metrics)} heads below 1/5 of the references alone, {third} below 1/3")
    print(f"forces: {good} of {len(forced)} heads (zero-force error above 50 meV/A) below 1/3 of zero forces")
    for line in speed(work):
        print(line)


def elemental_energies(images: list) -> np.ndarray:
    """Return the energy of an atom of each element in its elemental crystal, [119] eV, that reference values rest on.

    Solved from total energies and formation energies of compounds (Materials Project settings); NaN where unknown.
    """
    counts = np.array([np.bincount(atoms.numbers, minlength=119) for atoms in images], float)
    total = np.array([atoms.info["ref_energy"] for atoms in images], float)
    formation = np.array([atoms.info["ref_formation_energy_per_atom"] for atoms in images], float)
    known = np.flatnonzero(counts.sum(0))
    out = np.full(119, np.nan)
    out[known] = np.linalg.lstsq(counts[:, known], total - formation * counts.sum(1), rcond=None)[0]
    return out


def formation_energy(rows: np.ndarray, images: list, elements: np.ndarray) -> np.ndarray:
    """Return predicted formation energies, eV/atom, against the elemental crystals; NaN for elements not known."""
    return (rows["energy"] - [elements[atoms.numbers].sum() for atoms in images]) / rows["natoms"]


def read_candidates(data: Path, name: str) -> list:
    """Return a candidate file as ASE atoms."""
    from ase.io.extxyz import read_xyz

    # From memory: ASE seeks back to every frame, which gzip can only do by starting again.
    with gzip.open(data / "candidates" / f"{name}.extxyz.gz", "rt") as file:
        return list(read_xyz(io.StringIO(file.read()), slice(None)))


def screen(data: Path, work: Path, ranks: int) -> None:
    """Screen the candidate files and compare ranks with the reference values."""
    from scipy.stats import spearmanr

    elements = elemental_energies(read_candidates(data, "wbm_equilibrium"))
    lines = []
    for name, key in REFERENCES.items():
        source, path, out = data / "candidates" / f"{name}.extxyz.gz", work / f"{name}.bp", work / f"{name}.results"
        if not path.exists():
            run(PROGRAM, "data", "convert", source, path, "--quiet")
        options = ("--ensemble", work / "run" / "gfm", "--head", SCREENED_WITH, "--out", out)
        seconds = run(PROGRAM, "screen", "run", path, *options, ranks=ranks)
        rows = np.load(out / "rows.npy")
        ok = rows["status"] == 0
        line = f"| {name} | {len(rows)} | {ok.sum()} | {len(rows) / seconds:.0f} |"
        if key is None:
            lines.append(f"{line} - | - |")
            continue
        images = read_candidates(data, name)
        reference = np.array([float(atoms.info[key]) for atoms in images])
        predicted = formation_energy(rows, images, elements)
        ok &= np.isfinite(predicted)
        found = spearmanr(predicted[ok], reference[ok]).statistic
        spread = spearmanr(rows["energy_std"][ok] / rows["natoms"][ok], np.abs(predicted - reference)[ok]).statistic
        lines.append(f"{line} {found:.2f} | {spread:.2f} |")
    print(f"\nscreened with the head {SCREENED_WITH}; structures/s is file to file, start of the program included")
    print("| candidates | structures | with a result | structures/s | Spearman E_f | Spearman spread and |error| |")
    print("\n".join(["| --- | --- | --- | --- | --- | --- |", *lines]))


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("real_data"))
    parser.add_argument("--core-minutes", type=float, default=100.0, help="processor time of training, all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stage", choices=("all", "convert", "train", "table", "screen"), default="all")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="passed on to `atomsieve train`")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.stage in ("all", "convert"):
        convert(options.data, work)
    if options.stage in ("all", "train"):
        train(work, options.core_minutes, options.ranks, options.settings)
    if options.stage in ("all", "table"):
        table(work)
    if options.stage in ("all", "screen"):
        screen(options.data, work, options.ranks)


if __name__ == "__main__":
    main()
