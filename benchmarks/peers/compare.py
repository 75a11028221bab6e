"""Trains a peer on single sources, evaluates it on their test files, and sets it beside ours.

Errors are of the same test structures, in the same units, as ours. A peer's result.json has the form of ours
(`judge.training`), without uncertainties, and says by `peer` how its process is started.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from judge.report import format_number, format_row, group_by_name, mean_heads
from judge.timing import PeerProcess, draw_crystals
from judge.training import describe_machine, say, write_result

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Peer:
    """A package: its program here, what is installed into its environment, and what it is called."""

    program: str
    requirements: tuple[str, ...]
    title: str


PEERS = {
    "mace": Peer("mace_program.py", ("torch==2.13.0", "mace-torch==0.3.16"), "MACE"),
}


class PeerError(Exception):
    """A peer's process failed."""


def make_environment(name: str, folder: Path) -> Path:
    """Return the interpreter of a peer's environment, which is made and filled if it is not there."""
    place, peer = folder / name, PEERS[name]
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    stamp = place / "requirements.txt"
    wanted = "\n".join(peer.requirements) + "\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *peer.requirements], check=True)
        stamp.write_text(wanted)
    return python


def read_images(data: Path, source: str, part: str) -> list[Any]:
    """Return a source's file as ASE atoms with their labels."""
    from ase.io.extxyz import read_xyz

    # From memory: the reader goes back to each structure, and a compressed file is then read again from its start.
    with gzip.open(data / source / f"{part}.extxyz.gz", "rt") as file:
        return list(read_xyz(io.StringIO(file.read()), slice(None)))


def write_plain(images: list[Any], path: Path) -> None:
    """Write structures with REF_energy and REF_forces, the keys that peers read, and nothing else."""
    from ase import Atoms
    from ase.io import write

    plain = []
    for image in images:
        atoms = Atoms(image.numbers, image.positions, cell=image.cell, pbc=image.pbc)
        atoms.info["REF_energy"] = image.get_potential_energy()
        atoms.arrays["REF_forces"] = image.get_forces()
        plain.append(atoms)
    write(path, plain, format="extxyz")


def fit_references(images: list[Any]) -> np.ndarray:
    """Return least-squares energies of the elements, [119] eV, smallest where the data cannot tell."""
    counts = np.array([np.bincount(atoms.numbers, minlength=119) for atoms in images], float)
    sizes = counts.sum(1, keepdims=True)
    energy = np.array([atoms.get_potential_energy() for atoms in images])
    return np.linalg.lstsq(counts / sizes, energy / sizes[:, 0], rcond=None)[0]


def judge_predictions(
    images: list[Any], references: np.ndarray, energy: np.ndarray, forces: np.ndarray
) -> dict[str, Any]:
    """Return errors and baselines, meV/atom and meV/Angstrom per component.

    energy [S] eV, forces [N,3] eV/Angstrom : predictions of the images, in their order.
    """
    sizes = np.array([len(atoms) for atoms in images])
    true = np.array([atoms.get_potential_energy() for atoms in images])
    pulled = np.concatenate([atoms.get_forces() for atoms in images])
    alone = np.array([references[atoms.numbers].sum() for atoms in images])
    return {
        "structures": len(images),
        "energy_mae": 1e3 * float(np.abs((energy - true) / sizes).mean()),
        "energy_baseline": 1e3 * float(np.abs((alone - true) / sizes).mean()),
        "force_mae": 1e3 * float(np.abs(forces - pulled).mean()),
        "force_baseline": 1e3 * float(np.abs(pulled).mean()),
    }


def train_peer(
    name: str, python: Path, data: Path, source: str, minutes: float, settings: list[str], place: Path, seed: int
) -> dict[str, Any]:
    """Train a peer on one source in a process of its own; write and return its result.

    What an interrupted run left in the folder is removed first.

    Raises
    ------
    PeerError
        if its process fails; the line names its log.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    program, model = HERE / PEERS[name].program, place / "model.pt"
    images = {part: read_images(data, source, part) for part in ("train", "test")}
    for part, found in images.items():
        write_plain(found, place / f"{part}.extxyz")
    words = [f"--set={s}" for s in [f"seed={seed}", *settings]]
    start = [str(python), str(program)]
    with (place / "log.txt").open("w") as log:
        for task in (
            ["train", "--train", str(place / "train.extxyz"), "--seconds", str(60 * minutes), *words],
            ["predict", "--data", str(place / "test.extxyz"), "--out", str(place / "predicted.npz")],
        ):
            command = [*start, *task, "--model", str(model)]
            if subprocess.run(command, stdout=log, stderr=log, cwd=place, check=False).returncode:
                raise PeerError(f"{PEERS[name].title} failed at {source}; see {place / 'log.txt'}")
    found, about = np.load(place / "predicted.npz"), json.loads(model.with_suffix(".json").read_text())
    heads = {
        source: judge_predictions(images["test"], fit_references(images["train"]), found["energy"], found["forces"])
    }
    training = about["training"]
    training["structures_per_core_second"] = training["structures"] / training["core_seconds"]
    result = {
        "name": place.name.removesuffix(f"-s{seed}"),
        "seed": seed,
        "kind": PEERS[name].title,
        "machine": describe_machine(),
        "requirements": PEERS[name].requirements,
        "settings": about["settings"],
        "core_minutes": minutes,
        "ranks": 1,
        "members": 1,
        "parameters": about["parameters"],
        "training": training,
        "heads": heads,
        "peer": {"name": name, "python": str(python), "model": str(model), "source": source},
    }
    write_result(place, result)
    row = heads[source]
    say(
        f"{place.name}: {row['energy_mae']:.2f} meV/atom, {row['force_mae']:.1f} meV/A, {training['steps']} steps, "
        f"{training['structures_per_core_second']:.1f} structures per core-second"
    )
    return result


def open_peer(result: dict[str, Any], structures: int, place: Path) -> PeerProcess:
    """Start the process of a peer that evaluates crystals of its source's elements."""
    peer = result["peer"]
    numbers = {int(z) for atoms in read_numbers(Path(result["place"]) / "train.extxyz") for z in atoms}
    path = place / f"{Path(result['place']).name}.npz"
    np.savez(path, **draw_crystals(structures, sorted(numbers)).present())
    program = HERE / PEERS[peer["name"]].program
    return PeerProcess([peer["python"], str(program), "serve", "--model", peer["model"], "--crystals", str(path)])


def read_numbers(path: Path) -> list[np.ndarray]:
    """Return the atomic numbers of each structure of a plain file."""
    from ase.io import read

    return [atoms.numbers for atoms in read(path, index=":", format="extxyz")]


def pair_groups(results: list[dict[str, Any]], peer: str) -> dict[str, tuple[list[dict[str, Any]], ...]]:
    """Return for each source of a peer our runs of it (or none) and the peer's, runs that differ by their seed alone.

    Ours are the runs without a `peer` that have the source as their only head, the last of several names.
    """
    groups = list(group_by_name(results).values())
    ours = {next(iter(g[0]["heads"])): g for g in groups if not by(g[0]) and len(g[0]["heads"]) == 1}
    theirs = {g[0]["peer"]["source"]: g for g in groups if by(g[0]) == peer}
    return {source: (ours.get(source, []), group) for source, group in theirs.items()}


def format_peers(results: list[dict[str, Any]], peer: str) -> str:
    """Return a table of a peer's runs beside our runs of the same sources, in Markdown."""
    title = PEERS[peer].title
    headings = ["source", "references alone", "zero forces"]
    headings += [f"{what}: ours, {title}" for what in ("E MAE meV/atom", "F MAE meV/A")] + ["E ratio", "F ratio"]
    headings += [f"{what}: ours, {title}" for what in ("training structures/core-s", "inference CPU ms")] + ["speed"]
    lines = [format_row(headings), "|" + " --- |" * len(headings)]
    for source, (own_group, group) in pair_groups(results, peer).items():
        row, own = mean_heads(group)[source], mean_heads(own_group)[source] if own_group else {}
        cells = [source, f"{row['energy_baseline']:.1f}", f"{row['force_baseline']:.1f}"]
        keys = ("energy_mae", "force_mae")
        cells += [f"{format_number(own.get(key), '.2f')}, {row[key]:.2f}" for key in keys]
        cells += [format_number(own[key] / row[key] if key in own else None, ".3f") for key in keys]
        for part, key, form in (("training", "structures_per_core_second", ".0f"), ("inference", "cpu_ms", ".2f")):
            pair = [(g[0].get(part) or {}).get(key) if g else None for g in (own_group, group)]
            cells.append(", ".join(format_number(v, form) for v in pair))
        cells.append(format_number(pair[1] / pair[0] if None not in pair else None, ".1f"))
        lines.append(format_row(cells))
    return "\n".join(lines)


def draw_peers(results: list[dict[str, Any]], peer: str, path: Path) -> list[str]:
    """Draw errors against the processor time of inference, ours and the peer's of a source joined; return the sources.

    A source is drawn where both have been timed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    pairs = {s: pair for s, pair in pair_groups(results, peer).items() if all(g and "inference" in g[0] for g in pair)}
    if not pairs:
        return []
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.6), sharex=True, layout="constrained")
    places = [group[0]["inference"]["cpu_ms"] for pair in pairs.values() for group in pair]
    keys = {"energy_mae": "energy MAE, meV/atom", "force_mae": "force MAE, meV/Å"}
    for axis, (key, what) in zip(axes, keys.items(), strict=True):
        for source, pair in pairs.items():
            x = [group[0]["inference"]["cpu_ms"] for group in pair]
            y = [mean_heads(group)[source][key] for group in pair]
            axis.plot(x, y, color="0.75", lw=1, zorder=1)
            for k, colour in enumerate(("C0", "C1")):
                axis.plot(x[k], y[k], "o", color=colour, ms=6, zorder=2)
        axis.set(
            xscale="log", yscale="log", ylabel=what, xlabel="processor time of inference, ms per crystal of 20 atoms"
        )
        axis.set_xlim(0.5 * min(places), 4 * max(places))
        last = -math.inf
        for height, source in sorted((mean_heads(pair[1])[source][key], source) for source, pair in pairs.items()):
            shown = max(axis.transAxes.inverted().transform(axis.transData.transform((1, height)))[1], last + 0.04)
            axis.text(0.98, shown, source, transform=axis.transAxes, ha="right", va="center", fontsize=8, color="0.3")
            last = shown
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            side.set_major_formatter(FormatStrFormatter("%g"))
            side.set_minor_formatter(NullFormatter())
        axis.grid(which="major", color="0.92", zorder=0)
        axis.tick_params(which="both", labelsize=8)
    named = (("C0", "ours"), ("C1", PEERS[peer].title))
    axes[0].legend(
        [pyplot.Line2D([], [], marker="o", ls="", color=c) for c, _ in named], [n for _, n in named], fontsize=8
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return list(pairs)


def by(result: dict[str, Any]) -> str | None:
    """Return the peer whose result it is, None of ours."""
    return (result.get("peer") or {}).get("name")
